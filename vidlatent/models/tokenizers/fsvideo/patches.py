"""Decoding and encoding by parts, exactly (FSVideo 2.2).

The inner stages attend over the whole frame, and cost little; the outer ones are convolutions,
which a crop decodes correctly except near its cut sides. So the inner stages run on the whole
latent, and the outer ones

* on one random crop in training (``decode_patch``: gradients still reach everything before it),
* tile by tile (``decode_tiled``, ``encode_tiled``) where a whole frame does not fit,
* on a window of frames (``decode_windows``) for a decoder that looks both ways in time.

A *cell* is one position of the inner stages' output: 8x8 pixels in the published model, where cut
sides spoil 50 pixels. Nothing is spoilt at the true border of the frame: the zeros that
convolutions see there are the ones that they see in the whole frame.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vidlatent.errors import VidlatentError
from vidlatent.models.tokenizers.fsvideo.model import Autoencoder

__all__ = [
    "Reach",
    "Region",
    "decode_inner",
    "decode_part",
    "decode_patch",
    "decode_tiled",
    "decode_windows",
    "decoder_reach",
    "decoder_tiles",
    "encode_tiled",
    "encoder_end",
    "encoder_reach",
    "outer_stage",
    "tiles",
    "valid_window",
    "window_margins",
]

Condition = tuple[jax.Array, ...] | None


class Reach(NamedTuple):
    """How far a cut spoils what is computed from a part.

    Attributes:
      space: pixels (of the end result) from a cut side.
      left, right: frames from a cut start or end. The first cell frame of a part that does not
        start the clip counts as a clip's first frame, i.e. for one frame only.
    """

    space: int
    left: int
    right: int


class Region(NamedTuple):
    """A piece of a video and its place in the whole.

    Attributes:
      video: ``[B, T, H, W, 3]``, from frame 0 on.
      top, left: pixel position of its corner.
    """

    video: jax.Array
    top: Any
    left: Any


def outer_stage(model: Autoencoder) -> int:
    """The stage after which (going out) there is no attention: 3 in the published model."""
    kinds = model.decoder_block_types or model.block_types
    stage = next((i for i, kind in enumerate(kinds) if kind == "evit"), len(kinds) - 1)
    if stage == 0:
        raise VidlatentError("this model attends at full resolution: it has no stages to cut.")
    return stage


def decoder_reach(model: Autoencoder, begin: int | None = None, end: int = -1) -> Reach:
    """Reach of a cut of block ``begin``'s output (None: of the latent) into block ``end``'s.

    ``end`` -1 is the video. A block of k convolutions makes ``2 m + k`` of a reach of m.
    """
    kinds = model.decoder_block_types or model.block_types
    last = len(kinds) - 1
    space, left, right = (0, 0, 0) if begin is not None else (1, 1, 1)
    early, late = {"causal": (2, 0), "centred": (1, 1), "group": (1, 0)}[model.decoder_time]
    if model.temporal_kernel == 1:
        early = late = 0
    if begin is None:
        left, right = early, late
    for stage in range(last if begin is None else begin - 1, max(end, 0) - 1, -1):
        depth = model.decoder_depths[stage]
        convs = depth * (2 if kinds[stage] == "res" else 1)
        if stage < last:
            shuffled = model.up_type == "shuffle"
            # A shuffling operation convolves before it doubles.
            space = 2 * (space + 1) if shuffled else 2 * space + 1
            if stage in model.temporal_down:
                left = 2 * (left + early * shuffled) - (left > 0)
                right = 2 * (right + late * shuffled)
            convs_in_time = convs + (not (shuffled and stage in model.temporal_down))
        else:
            convs_in_time = convs
        space += convs
        left, right = left + early * convs_in_time, right + late * convs_in_time
    if end < 0 and model.decoder_depths[0]:
        space, left, right = space + 1, left + early, right + late
    return Reach(space, left, right)


def encoder_end(model: Autoencoder) -> int:
    """The last encoder block before any attention."""
    kinds = model.block_types
    end = next((i for i, kind in enumerate(kinds) if kind == "evit"), len(kinds) - 1) - 1
    if end < 0:
        raise VidlatentError("this model attends at full resolution: it has no stages to cut.")
    return end


def encoder_reach(model: Autoencoder, end: int) -> int:
    """Pixels of a cut side that the output of encoder block ``end`` depends on wrongly."""
    reach, scale = 1, 1
    if model.encoder_depths[0] == 0:
        scale = 2
    for stage in range(end + 1):
        depth = model.encoder_depths[stage]
        if depth:
            reach += scale * (2 * depth + 1)
            scale *= 2
    return reach


def valid_window(start: Any, size: int, whole: int, scale: int, margin: int) -> tuple[Any, int]:
    """The right part of a decoded crop along one side: first pixel inside the crop, and length.

    The length does not depend on where the crop lies, so that it can be drawn inside ``jit``; the
    window leans on the frame's border where the crop does.

    Args:
      start, size, whole: the crop's first cell, its cells and the frame's.
      scale: pixels per cell.
      margin: pixels spoilt at a cut side.
    """
    if size == whole:
        return 0, scale * size
    length = scale * size - 2 * margin
    if length <= 0:
        raise VidlatentError(
            f"a crop of {size} cells ({scale * size} pixels) has no right pixel: both sides spoil "
            f"{margin}; use more than {2 * margin // scale} cells."
        )
    at_end = jnp.where(start + size == whole, 2 * margin, margin)
    return jnp.where(start == 0, 0, at_end), length


def decode_patch(
    model: Autoencoder,
    params: Any,
    latent: jax.Array,
    start: tuple[Any, Any],
    size: tuple[int, int],
    *,
    frames: int | None = None,
    condition: Condition = None,
    rngs: Any = None,
) -> Region:
    """Decode a crop, for training on sizes whose whole decoding does not fit.

    Args:
      model: the autoencoder.
      params: its parameters.
      latent: ``[B, t, h, w, c]``, whole.
      start: first row and column of the crop in cells; may be traced.
      size: rows and columns of cells.
      frames: latent frames to decode, from the first on (a later start would spoil most of a
        causal decoder's clip); None for all.
      condition: frame 0's features, whole.
      rngs: random streams, such as ``{'noise': key}``.

    Returns:
      The part of the crop that equals the whole decoding; compare it with the same part of the
      target.
    """
    stage = outer_stage(model)
    run = functools.partial(model.apply, {"params": params}, rngs=rngs)
    x = run(latent, stage, condition, method="decode_inner")
    reach, scale = decoder_reach(model, stage), 2**stage
    plans = [
        valid_window(place, cells, whole, scale, reach.space)
        for place, cells, whole in zip(start, size, x.shape[2:4], strict=True)
    ]
    cut = frames is not None and frames < x.shape[1]
    x = x[:, :frames]
    x = lax.dynamic_slice(x, (0, 0, *start, 0), (*x.shape[:2], *size, x.shape[-1]))
    video = run(x, stage, condition, start, method="decode_outer")
    kept = video.shape[1] - (reach.right if cut else 0)
    if kept <= 0:
        raise VidlatentError(
            f"the first {frames} latent frames decode to {video.shape[1]} frames, of which the "
            f"last {reach.right} would need later ones: take more."
        )
    (top, rows), (left, columns) = plans
    video = lax.dynamic_slice(
        video, (0, 0, top, left, 0), (video.shape[0], kept, rows, columns, video.shape[-1])
    )
    return Region(video, scale * start[0] + top, scale * start[1] + left)


def tiles(whole: int, core: int, margin: int) -> tuple[int, list[tuple[int, int, int]]]:
    """Cover ``whole`` cells by parts of one size.

    Returns:
      The parts' size, and for each ``(first, first wanted, end of the wanted)``: a part computes
      from ``first`` on, and its wanted cells are ``margin`` or more from its cut sides.
    """
    if core < 1:
        raise VidlatentError(f"a tile of {core} cells: use 1 or more.")
    size = min(whole, core + 2 * margin)
    parts = []
    for begin in range(0, whole, core):
        first = min(max(begin - margin, 0), whole - size)
        parts.append((first, begin, min(begin + core, whole)))
    return size, parts


def decoder_tiles(
    model: Autoencoder, cells: tuple[int, ...], core: int
) -> list[tuple[int, list[tuple[int, int, int]]]]:
    """``tiles`` of the outer stages along height and width, of a map of so many ``cells``."""
    stage = outer_stage(model)
    margin = -(-decoder_reach(model, stage).space // 2**stage)
    return [tiles(whole, core, margin) for whole in cells]


@functools.partial(jax.jit, static_argnums=(0, 3))
def decode_inner(
    model: Autoencoder, params: Any, latent: jax.Array, stage: int, condition: Condition
) -> jax.Array:
    """The stages within ``stage``, with all attention, of a latent."""
    return model.apply({"params": params}, latent, stage, condition, method="decode_inner")


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def decode_part(
    model: Autoencoder,
    params: Any,
    x: jax.Array,
    stage: int,
    size: tuple[int, int, int],
    start: tuple[Any, Any, Any],
    condition: Condition,
) -> jax.Array:
    """Outer stages on frames and cells ``start`` of ``decode_inner``'s ``x``, ``size`` of them."""
    part = lax.dynamic_slice(x, (0, *start, 0), (x.shape[0], *size, x.shape[-1]))
    return model.apply({"params": params}, part, stage, condition, start[1:], method="decode_outer")


def decode_tiled(
    model: Autoencoder, params: Any, latent: jax.Array, core: int, condition: Condition = None
) -> np.ndarray:
    """``model.decode`` of a whole clip with the outer stages tile by tile; equal to it.

    Args:
      core: side of a tile in cells, without the margin that is computed twice (7 cells on each
        side in the published model: 1.7 times the work at 48 cells).

    Returns:
      ``[B, T, H, W, 3]`` float32 in host memory.
    """
    stage = outer_stage(model)
    x = decode_inner(model, params, latent, stage, condition)
    return _decode_parts(model, params, x, stage, (0, x.shape[1]), core, condition)


def _decode_parts(model, params, x, stage, frames, core, condition):
    """Outer stages on ``frames`` (first, count) of ``x``: at once, or tile by tile (``core``)."""
    begin, count = frames
    if not core:
        size = (count, *x.shape[2:4])
        return decode_part(model, params, x, stage, size, (begin, 0, 0), condition)
    scale = 2**stage
    rows, columns = decoder_tiles(model, x.shape[2:4], core)
    video = None
    for row in rows[1]:
        for column in columns[1]:
            size, start = (count, rows[0], columns[0]), (begin, row[0], column[0])
            part = np.asarray(decode_part(model, params, x, stage, size, start, condition))
            if video is None:
                sides = [scale * whole for whole in x.shape[2:4]]
                video = np.empty((*part.shape[:2], *sides, part.shape[-1]), part.dtype)
            (to_y, from_y), (to_x, from_x) = (_places(p, scale) for p in (row, column))
            video[:, :, to_y, to_x] = part[:, :, from_y, from_x]
    return video


def _places(part: tuple[int, int, int], scale: int) -> tuple[slice, slice]:
    """Where a part's wanted pixels go in the whole, and where they are in the part."""
    first, begin, end = (scale * cells for cells in part)
    return slice(begin, end), slice(begin - first, end - first)


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def _encode_part(model, params, video, stage, size, start):
    shape = (*video.shape[:2], *size, video.shape[-1])
    part = lax.dynamic_slice(video, (0, 0, *start, 0), shape)
    return model.apply({"params": params}, part, stage, method="encode_outer")


@functools.partial(jax.jit, static_argnums=(0, 3))
def _encode_inner(model, params, x, stage):
    return model.apply({"params": params}, x, stage, method="encode_inner")


def encode_tiled(
    model: Autoencoder, params: Any, video: jax.Array, core: int
) -> tuple[jax.Array, Condition]:
    """``model.encode`` of a whole clip with the outer stages tile by tile; equal to it.

    Args:
      video: ``[B, T, H, W, 3]`` in [-1, 1].
      core: side of a tile in cells, without its margin (40 pixels in the published model).

    Returns:
      The latent mean, and frame 0's features for a decoder that takes them (else None).
    """
    model.latent_spec.check_video(*video.shape[1:4])
    end = encoder_end(model)
    scale = 2 ** (end + 1)
    margin = -(-encoder_reach(model, end) // scale)
    rows, columns = (tiles(side // scale, core, margin) for side in video.shape[2:4])
    size = (scale * rows[0], scale * columns[0])
    grid, features = [], []
    for row in rows[1]:
        parts, seen = [], []
        for column in columns[1]:
            start = (scale * row[0], scale * column[0])
            x, feature = _encode_part(model, params, video, end, size, start)
            (_, y), (_, z) = (_places(p, 1) for p in (row, column))
            parts.append(x[:, :, y, z])
            (_, y), (_, z) = (_places(p, 2) for p in (row, column))
            seen.append(feature[:, y, z])
        grid.append(jnp.concatenate(parts, axis=3))
        features.append(jnp.concatenate(seen, axis=2))
    mean, later = _encode_inner(model, params, jnp.concatenate(grid, axis=2), end)
    if not model.takes_condition:
        return mean, None
    later[end] = jnp.concatenate(features, axis=1)
    if any(stage not in later for stage in model.cross_stages):
        raise VidlatentError(
            f"tiles keep features from stage {end} on, but cross_stages is {model.cross_stages}."
        )
    return mean, tuple(later[stage] for stage in model.cross_stages)


def window_margins(model: Autoencoder) -> tuple[int, int, Reach]:
    """Latent frames before and after a window that its video needs, and how far inner stages look.

    Raises:
      VidlatentError: time is doubled in the inner stages, too.
    """
    stage = outer_stage(model)
    if any(i >= stage for i in model.temporal_down):
        raise VidlatentError("windows need all temporal down operations in the outer stages.")
    step = model.latent_spec.t
    outer = decoder_reach(model, stage)
    before = -(-(outer.left + step - 1) // step)
    return before, -(-outer.right // step), decoder_reach(model, None, stage)


def decode_windows(
    model: Autoencoder,
    params: Any,
    latents: Iterable[jax.Array],
    core: int,
    condition: Condition = None,
    cells: int = 0,
) -> Iterator[jax.Array]:
    """Decode a stream with a decoder that looks both ways in time, equal to decoding it whole.

    Each window of ``core`` latent frames is decoded together with the latent frames around it that
    its frames depend on: the inner stages on 29 more at either side in the published model, the
    outer ones, where the work is, on 13. (A decoder that streams by a cache needs none of this.)

    Args:
      latents: latent frames ``[B, h, w, c]`` in order.
      core: latent frames of a window, at least; the last one takes what is computed for it.
      cells: side of the tiles that the outer stages are cut into, as of ``decode_tiled``; 0: none.

    Yields:
      Videos ``[B, T, H, W, 3]``, in order.
    """
    stage, step = outer_stage(model), model.latent_spec.t
    before, after, inner = window_margins(model)
    stream = iter(latents)
    held: list[jax.Array] = []
    base = begin = 0  # clip positions of held[0] and of the next wanted latent frame
    done = False
    while True:
        while not done and base + len(held) < begin + core + after + inner.right:
            frame = next(stream, None)
            done = frame is None
            held += [] if done else [frame]
        total = base + len(held)
        if begin >= total:
            return
        end = min(begin + core, total)
        first, last = max(0, begin - before), min(total, end + after)
        if done and last == total:  # computed to the end for this window already
            end = total
        low = max(0, first - inner.left)
        high = min(total, last + inner.right)
        piece = jnp.stack(held[low - base : high - base], axis=1)
        x = decode_inner(model, params, piece, stage, condition)
        frames = (first - low, last - first)
        video = _decode_parts(model, params, x, stage, frames, cells, condition)
        # Frames of latent j in a part that starts at latent f: step (j - f) - step + 1 and on.
        skip = 0 if begin == 0 else step * (begin - first - 1) + 1
        yield video[:, skip : step * (end - first - 1) + 1]
        drop = max(0, end - before - inner.left) - base
        held, base, begin = held[drop:], base + drop, end
