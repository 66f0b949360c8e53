"""FSAE's outer stages tile by tile, exactly: frames that do not fit into memory whole.

The inner stages attend over the whole frame and run whole. A tile of the outer ones that is read
with a margin of true neighbours gives exactly what the whole frame gives (``reach``). The loop over
tiles is part of the compiled program: it needs the workspace of one tile, and its caches are values
like those of the whole model.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vidlatent.errors import VidlatentError
from vidlatent.models.tokenizers.base import Posterior
from vidlatent.models.tokenizers.cutting import CutSize, SpaceWay, WindowProgram
from vidlatent.models.tokenizers.fsvideo.reach import (
    compute_tile_margins,
    find_encoder_end,
    find_outer_stage,
    has_outer_stages,
)
from vidlatent.models.tokenizers.fsvideo.windows import WindowedFrames, decode_part, run_inner

if TYPE_CHECKING:
    from vidlatent.models.tokenizers.fsvideo.model import Autoencoder

__all__ = ["ExactTiles", "TileGrid", "make_grid", "cover_line", "list_space_ways"]

# Caches of attention to frame 0, which are the same for every tile.
_SHARED = "first_frame_attn_"
# Sides in pixels that 'auto' tries; the first that fits is taken.
_SIDES = (1024, 768, 512, 384, 256, 192, 128)
_DEFAULT_SIDE = 512


def list_space_ways(model: Autoencoder) -> tuple[SpaceWay, ...]:
    """Tiles, for ``Tokenizer.list_space_ways``."""
    sides = ()
    if has_outer_stages(model):
        # A side must be whole cells of encoder and decoder alike; both are powers of two.
        cell = max(cell for cell, _ in compute_tile_margins(model))
        sides = tuple(side for side in _SIDES if side % cell == 0)
    sizes = tuple(
        CutSize(
            f"tiles of {side} pixels (the same result)",
            {"space": "tiles", "tile_pixels": side},
            cuts=side,
        )
        for side in sides
    )
    keys = ("tile_pixels", "tile_overlap_pixels")
    return (SpaceWay("tiles", True, keys, functools.partial(_make_tiles, model), sizes),)


def _make_tiles(model: Autoencoder, codec: Any) -> ExactTiles:
    """Tiles as ``config.codec`` asks for them."""
    coder = ExactTiles(model, codec.tile_pixels or _DEFAULT_SIDE)
    if codec.tile_overlap_pixels >= 0:
        (_, decoder), (_, encoder) = compute_tile_margins(model)
        raise VidlatentError(
            f"config.codec.tile_overlap_pixels={codec.tile_overlap_pixels}: tiles of "
            f"{model.latent_spec.name} read {decoder} pixels beyond each side (encoder "
            f"{encoder}), no less and no more, which makes them exact: leave it out."
        )
    return coder


@dataclasses.dataclass(frozen=True)
class TileGrid:
    """Tiles of one size over a map, in cells.

    Attributes:
      size: rows and columns that a tile reads.
      core: rows and columns that it is wanted for.
      read, wanted: for each tile, row by row, the first of them ``[tiles, 2]``.
    """

    size: tuple[int, int]
    core: tuple[int, int]
    read: np.ndarray
    wanted: np.ndarray

    @property
    def count(self) -> int:
        return len(self.read)

    @property
    def sides(self) -> tuple[int, int]:
        """Rows and columns of the whole map."""
        return tuple(int(a) + b for a, b in zip(self.wanted[-1], self.core, strict=True))


def cover_line(whole: int, core: int, margin: int) -> tuple[int, list[tuple[int, int, int]]]:
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
        # Moved inwards at the borders, so that parts of one size fit and share a program.
        first = min(max(begin - margin, 0), whole - size)
        parts.append((first, begin, min(begin + core, whole)))
    return size, parts


def make_grid(whole: tuple[int, int], core: int, margin: int) -> TileGrid:
    """Tiles of ``core`` cells a side, read with ``margin`` cells of true neighbours.

    The last tile of a row or column lies against the border and shares more with the one before.
    """
    lines = [cover_line(side, core, margin) for side in whole]
    cores = tuple(min(core, side) for side in whole)
    firsts = [[part[0] for part in parts] for _, parts in lines]
    begins = [
        [min(part[1], side - wanted) for part in parts]
        # The last wanted part is moved back too, so that it has the size of the others.
        for (_, parts), side, wanted in zip(lines, whole, cores, strict=True)
    ]
    read, wanted = (
        # All pairs of a row and a column, row by row: [tiles, 2].
        np.stack(np.meshgrid(*pair, indexing="ij"), axis=-1).reshape(-1, 2)
        for pair in (firsts, begins)
    )
    return TileGrid((lines[0][0], lines[1][0]), cores, read, wanted)


class ExactTiles(WindowedFrames):
    """FSAE's operations with the outer stages tile by tile; results are those of whole frames.

    Caches belong to this way of cutting: whole frames cannot continue from them.

    Args:
      core: side of a tile in pixels without its margin, which is computed twice (50 pixels on each
        side in the published decoder: 1.7 times the work at 384 pixels).

    Raises:
      VidlatentError: tiles that are no multiple of a cell, or a model that attends at full
        resolution.
    """

    def __init__(self, model: Autoencoder, core: int):
        super().__init__(model)
        self._decoder, self._encoder = compute_tile_margins(model)
        for cell, _ in (self._decoder, self._encoder):
            if core < cell or core % cell:
                side = max(self._decoder[0], self._encoder[0])
                raise VidlatentError(
                    f"config.codec.tile_pixels={core}: tiles of {model.latent_spec.name} consist "
                    f"of cells of {side} pixels; use a multiple of that."
                )
        self.core = core

    def encode(self, params, video, cache=None):
        """As ``FrameCoder.encode``."""
        end = find_encoder_end(self.model)
        run = functools.partial(self.model.apply, {"params": params})
        # Caches of the inner stages, which run whole, and of every tile.
        old = cache or {"inner": None, "tiles": None}

        def one(part, held, origin):
            x, _, held = run(part, end, held, method="encode_outer")
            return (x,), held

        grid = self._encoder_grid(*video.shape[2:4])
        (x,), kept, _ = _over_tiles(one, video, grid, self._encoder[0], (1,), old["tiles"])
        mean, _, inner = run(x, end, old["inner"], method="encode_inner")
        return Posterior(mean), {"inner": inner, "tiles": kept}

    def encode_condition(self, params, frames):
        """As ``FrameCoder.condition``: features of frame 0 from the tiles' own."""
        end = find_encoder_end(self.model)
        if min(self.model.cross_stages) < end:  # tiles keep none from so far out
            return super().encode_condition(params, frames)
        run = functools.partial(self.model.apply, {"params": params})

        def one(part, held, origin):
            x, features, _ = run(part, end, method="encode_outer")
            return (x, features), {}

        grid = self._encoder_grid(*frames.shape[1:3])
        (x, features), _, _ = _over_tiles(
            one, frames[:, None], grid, self._encoder[0], (1, 2), None
        )
        _, later, _ = run(x, end, method="encode_inner")
        # Features of block `end` come from the tiles, those of later stages from the whole map.
        return tuple({**later, end: features}[stage][:, 0] for stage in self.model.cross_stages)

    def decode(self, params, latent, condition=None, cache=None):
        """As ``FrameCoder.decode``."""
        stage = find_outer_stage(self.model)
        run = functools.partial(self.model.apply, {"params": params})
        old = cache or {"inner": None, "tiles": None, "shared": {}}
        x, inner = run(latent, stage, condition, old["inner"], method="decode_inner")

        def one(part, held, origin):
            video, held = run(part, stage, condition, origin, held, method="decode_outer")
            return (video,), held

        grid = self._decoder_grid(x.shape[2:4])
        (video,), kept, shared = _over_tiles(
            one, x, grid, 1, (self._decoder[0],), old["tiles"], old["shared"]
        )
        return video, {"inner": inner, "tiles": kept, "shared": shared}

    def decode_frames(self, params, x, first, count, condition):
        """As of whole frames; returns an array in host memory, since a window is long."""
        stage, cell, grid = (
            find_outer_stage(self.model),
            self._decoder[0],
            self._decoder_grid(x.shape[2:4]),
        )
        video = None
        for read, wanted in zip(grid.read, grid.wanted, strict=True):
            size, start = (count, *grid.size), (first, *(int(place) for place in read))
            part = decode_part(self.model, params, x, stage, size, start, condition)
            part = np.asarray(part)
            if video is None:
                sides = [cell * side for side in grid.sides]
                video = np.empty((*part.shape[:2], *sides, part.shape[-1]), part.dtype)
            # Where the wanted part lies in the frame, and where in the tile.
            to, of = (
                tuple(
                    slice(cell * a, cell * (a + n)) for a, n in zip(begin, grid.core, strict=True)
                )
                for begin in (wanted, wanted - read)
            )
            video[:, :, *to] = part[:, :, *of]
        return video

    def plan_window(
        self, params: Any, latent: Any, size: int, condition: Any = None
    ) -> WindowProgram:
        """The outer stages of one tile of a window, where the work is."""
        read, count, made = self._first_window(latent.shape[1], size)
        model, stage = self.model, find_outer_stage(self.model)
        piece = jax.ShapeDtypeStruct((1, read, *latent.shape[2:]), latent.dtype)
        x = jax.eval_shape(
            lambda *args: run_inner(model, *args[:2], stage, args[2]), params, piece, condition
        )
        grid = self._decoder_grid(x.shape[2:4])
        if grid.count == 1:
            return super().plan_window(params, latent, size, condition)
        part = (count, *grid.size)

        def decode(params, x, condition, start):
            return decode_part(model, params, x, stage, part, tuple(start), condition)

        start = jax.ShapeDtypeStruct((3,), jnp.int32)
        sides = tuple(self._decoder[0] * side for side in grid.size)
        return WindowProgram(decode, (x, condition, start), made, count, grid.count, sides)

    def find_borders(self, height, width):
        cell = self._decoder[0]
        grid = self._decoder_grid((height // cell, width // cell))
        return tuple(
            # The frame's own edge, 0, is no border between tiles.
            tuple(sorted({int(begin) * cell for begin in grid.wanted[:, axis]} - {0}))
            for axis in (0, 1)
        )

    def _decoder_grid(self, cells: tuple[int, int]) -> TileGrid:
        cell, margin = self._decoder
        return make_grid(cells, self.core // cell, margin // cell)

    def _encoder_grid(self, height: int, width: int) -> TileGrid:
        cell, margin = self._encoder
        return make_grid((height // cell, width // cell), self.core // cell, margin // cell)


def _over_tiles(
    one: Callable[..., tuple[tuple[jax.Array, ...], Any]],
    x: jax.Array,
    grid: TileGrid,
    before: int,
    after: tuple[int, ...],
    kept: Any,
    shared: Any = None,
) -> tuple[tuple[jax.Array, ...], Any, Any]:
    """Run ``one`` on every tile, one after the other, and put the results together.

    Args:
      one: ``(part, cache, origin) -> (results, cache)``; ``origin`` is the tile's first row and
        column in cells.
      x: map ``[B, T, H, W, C]``.
      grid: its tiles.
      before: positions of ``x`` to a cell.
      after: positions of each result to a cell.
      kept: caches of all tiles ``[tiles, ...]``, None at the start of a stream.
      shared: the part of the cache that all tiles share.

    Returns:
      The whole results, the caches and their shared part.
    """
    first = kept is None
    shared = shared or {}
    read = jnp.asarray(grid.read)

    def tile(index, kept, shared):
        origin = read[index]
        start = (0, 0, before * origin[0], before * origin[1], 0)
        shape = (*x.shape[:2], *(before * side for side in grid.size), x.shape[-1])
        held = None
        if not first:
            held = {**jax.tree.map(lambda leaf: leaf[index], kept), **shared}
        made, new = one(lax.dynamic_slice(x, start, shape), held, (origin[0], origin[1]))
        own = {name: value for name, value in new.items() if not name.startswith(_SHARED)}
        return made, own, {name: new[name] for name in new if name.startswith(_SHARED)}

    made, own, common = jax.eval_shape(tile, 0, kept, shared)

    def zeros(leaf, *lead):
        return jnp.zeros((*lead, *leaf.shape), leaf.dtype)

    if first:
        kept = jax.tree.map(lambda leaf: zeros(leaf, grid.count), own)
        shared = jax.tree.map(zeros, common)
    results = tuple(_blank(y, grid, scale) for y, scale in zip(made, after, strict=True))

    def step(index, carry):
        results, kept, shared = carry
        made, own, shared = tile(index, kept, shared)
        results = tuple(
            _put(whole, part, grid, index, scale)
            for whole, part, scale in zip(results, made, after, strict=True)
        )
        kept = jax.tree.map(lambda whole, leaf: whole.at[index].set(leaf), kept, own)
        return results, kept, shared

    return lax.fori_loop(0, grid.count, step, (results, kept, shared))


def _blank(part: Any, grid: TileGrid, scale: int) -> jax.Array:
    """Zeros for the whole result of which a tile makes ``part``; ``scale`` positions to a cell."""
    sides = (scale * side for side in grid.sides)
    return jnp.zeros((*part.shape[:2], *sides, part.shape[-1]), part.dtype)


def _put(
    whole: jax.Array, part: jax.Array, grid: TileGrid, index: jax.Array, scale: int
) -> jax.Array:
    """Write the wanted part of a tile's result to its place; ``scale`` positions to a cell."""
    read, wanted = (jnp.asarray(places)[index] for places in (grid.read, grid.wanted))
    skip, place = (wanted - read) * scale, wanted * scale
    shape = (*part.shape[:2], *(scale * side for side in grid.core), part.shape[-1])
    part = lax.dynamic_slice(part, (0, 0, skip[0], skip[1], 0), shape)
    return lax.dynamic_update_slice(whole, part, (0, 0, place[0], place[1], 0))
