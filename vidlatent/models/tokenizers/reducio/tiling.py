"""Frames larger than the network was trained on, tile by tile (Reducio, released code and 3).

Larger frames are always cut so (``SpaceWay.rule``): the network is trained on 256 pixels, and its
norms and attention pool the frame, so that whole frames have other latents than tiles. Which of the
two a codec cuts by must not depend on the memory at hand.

There are two ways. ``*_published`` reproduce the released code exactly: tiles of 320 pixels every
256, cut off at the far edges, blended linearly in place, content features blended but not cropped.
``*_evenly`` keep the sizes and fix what the released code leaves to chance:

- every tile has the full size, and tiles are spread evenly, so that one program serves all (in the
  released code a frame 272 pixels wide ends in a tile of 16, too few for its norms' statistics);
- blends are symmetric and do not depend on the order of tiles;
- a tile's content features are those of its own pixels;
- tiling depends on both sides of the frame, not on the height alone (``needs_tiles``).

Time is never tiled. In both ways norms take their statistics over a tile, not over the frame.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from vidlatent.errors import VidlatentError
from vidlatent.models.tokenizers.cutting import CutSize, FrameCoder, SpaceWay
from vidlatent.models.tokenizers.reducio.latent import MotionPosterior, normalise

if TYPE_CHECKING:
    from vidlatent.models.tokenizers.reducio.model import ReducioVAE

__all__ = [
    "FrameTiles",
    "SeparateTiles",
    "find_borders",
    "condition_evenly",
    "decode_evenly",
    "encode_evenly",
    "needs_tiles",
    "condition_published",
    "decode_published",
    "encode_published",
    "list_space_ways",
]

# Distance of the tiles in the released code, whose tiles read a quarter more.
_CORE = 256


def list_space_ways(model: ReducioVAE) -> tuple[SpaceWay, ...]:
    """Tiles of both ways, for ``Tokenizer.list_space_ways``."""
    keys = ("tile_pixels", "tile_overlap_pixels")
    even, published = (
        functools.partial(_make_tiles, model, published=published) for published in (False, True)
    )
    sizes, rule = (), False
    if _CORE % (4 * model.latent_spec.h) == 0:  # else these tiles miss the latent's grid
        words = "tiles of 320 pixels (each with norms of its own: not the result of whole frames)"
        sizes = (CutSize(words, {"space": "tiles"}, cuts=FrameTiles(_CORE).read),)
        # Trained on 256 pixels alone. The paper cuts larger videos, the released code above 320.
        rule = True
    return (
        SpaceWay("tiles", False, keys, even, sizes, rule=rule),
        SpaceWay("tiles_published", False, keys, published),
    )


def _make_tiles(model: ReducioVAE, codec: Any, published: bool) -> SeparateTiles:
    """Tiles as ``config.codec`` asks for them."""
    core = codec.tile_pixels or _CORE
    beyond = core // 4 if codec.tile_overlap_pixels < 0 else codec.tile_overlap_pixels
    if not 0 <= beyond <= core:
        raise VidlatentError(
            f"config.codec.tile_overlap_pixels={beyond}: use 0 to tile_pixels, {core}."
        )
    tiles = FrameTiles(core, Fraction(beyond, core))
    tiles.latent(model.latent_spec.h)  # raises where they miss the latent's grid
    return SeparateTiles(model, tiles, published)


# One condition for each tile, rows of tiles first.
TileConditions = list[list[Any]]
# None for a decoder that reads no content frame.
Conditions = TileConditions | None


@dataclasses.dataclass(frozen=True)
class FrameTiles:
    """Sizes in pixels.

    Attributes:
      core: distance from tile to tile.
      overlap: how far a tile reads beyond its core, as a share of the core. Pass a Fraction unless
        it is a power of two: sizes are rounded down to integers.
    """

    core: int = 256
    overlap: float | Fraction = 0.25

    @property
    def read(self) -> int:
        """Side of a tile."""
        return int(self.core * (1 + self.overlap))

    def blend_of(self, read: int) -> int:
        """Nominal blend of a map whose tiles are ``read`` long."""
        return int(read / (1 + self.overlap) * self.overlap)

    def latent(self, factor: int) -> FrameTiles:
        """The same tiles on the latent."""
        small = FrameTiles(self.core // factor, self.overlap)
        if (small.core * factor, small.read * factor) != (self.core, self.read):
            raise VidlatentError(
                f"tiles of {self.core} and {self.read} pixels do not fall on the latent's grid of "
                f"{factor}: choose multiples of it."
            )
        return small


def needs_tiles(height: int, width: int, tiles: FrameTiles, height_only: bool = False) -> bool:
    """Whether a frame is larger than one tile; ``height_only`` is the released code's test."""
    return (height if height_only else max(height, width)) > tiles.read


def find_borders(
    height: int, width: int, tiles: FrameTiles, published: bool
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Rows and columns at which a tile's weight becomes positive or zero."""
    lines = []
    for side in (height, width):
        starts = [span.start for span in _spans(side, tiles)] if published else _starts(side, tiles)
        reach = tiles.core + int(tiles.core * tiles.overlap) if published else tiles.read
        ends = [start + reach for start in starts[:-1]]
        lines.append(tuple(sorted({*starts[1:], *(end for end in ends if end < side)})))
    return tuple(lines)


# jit caches by function object: a new wrapper in every call would compile every time.
@functools.lru_cache(maxsize=8)
def _compiled(model: Any, method: str) -> Callable[..., Any]:
    def call(params, *args, **kwargs):
        return model.apply({"params": params}, *args, **kwargs, method=method)

    return jax.jit(call)


class SeparateTiles(FrameCoder):
    """Reducio's operations on frames larger than a tile, one call for each tile.

    Attributes:
      tiles: their sizes.
      published: cut as the released code does, which looks at the height alone; else evenly.
    """

    def __init__(self, model: ReducioVAE, tiles: FrameTiles, published: bool):
        super().__init__(model)
        self.tiles, self.published = tiles, published
        name = "tiles_published" if published else "tiles"
        self.cut = f"{name}:{tiles.core}+{tiles.read - tiles.core}"

    def cut_into_tiles(self, height, width):
        if not needs_tiles(height, width, self.tiles, height_only=self.published):
            return None
        core, read = self.tiles.core, self.tiles.read
        return -(-height // core) * -(-width // core), (min(height, read), min(width, read))

    def encode(self, params, video, cache=None):
        if not self.cut_into_tiles(*video.shape[2:4]):
            return super().encode(params, video, cache)
        run = encode_published if self.published else encode_evenly
        return run(self.model, params, video, self.tiles), None

    def encode_condition(self, params, frames):
        if not self.cut_into_tiles(*frames.shape[1:3]):
            return super().encode_condition(params, frames)
        run = condition_published if self.published else condition_evenly
        return run(self.model, params, frames, self.tiles)

    def decode(self, params, latent, condition=None, cache=None):
        spec = self.model.latent_spec
        if not self.cut_into_tiles(latent.shape[2] * spec.h, latent.shape[3] * spec.w):
            return super().decode(params, latent, condition, cache)
        run = decode_published if self.published else decode_evenly
        return run(self.model, params, latent, condition, self.tiles), None

    def find_borders(self, height, width):
        if not self.cut_into_tiles(height, width):
            return (), ()
        return find_borders(height, width, self.tiles, self.published)


# As the released code does it.


def encode_published(
    model: Any, params: Any, video: jax.Array, tiles: FrameTiles
) -> MotionPosterior:
    """Posterior of the whole frame from blended and cropped moments of the tiles.

    Args:
      video: ``[B, T, H, W, 3]`` in [-1, 1].
    """
    run = _compiled(model, "moments")
    grid = [
        [run(params, video[:, :, y, x]) for x in _spans(video.shape[3], tiles)]
        for y in _spans(video.shape[2], tiles)
    ]
    latent = tiles.latent(model.latent_spec.h)
    # Moments are joined, not samples: the frame is sampled and normalised as a whole.
    moments = _joined(grid, latent)
    return MotionPosterior.of_moments(moments, model.latent_frames)


def condition_published(
    model: Any, params: Any, frame: jax.Array, tiles: FrameTiles
) -> TileConditions:
    """Per tile its content features, blended level by level with its neighbours', not cropped.

    Args:
      frame: content frames ``[B * clips, H, W, 3]``.
    """
    run = _compiled(model, "encode_condition")
    grid = [
        [run(params, frame[:, y, x]) for x in _spans(frame.shape[2], tiles)]
        for y in _spans(frame.shape[1], tiles)
    ]
    return _blended_features(grid, tiles)


def decode_published(
    model: Any, params: Any, latent: jax.Array, conditions: Conditions, tiles: FrameTiles
) -> jax.Array:
    """Video ``[B, T, H, W, 3]`` from the latent and one condition per tile."""
    model, latent = _renormalise(model, latent)
    small = tiles.latent(model.latent_spec.h)
    rows, columns = (list(_spans(size, small)) for size in latent.shape[2:4])
    conditions = _check_grid(conditions, len(rows), len(columns))
    run = _compiled(model, "decode")
    grid = [
        [
            run(params, latent[:, :, y, x], condition=conditions[i][j])[0]
            for j, x in enumerate(columns)
        ]
        for i, y in enumerate(rows)
    ]
    return _joined(grid, tiles)


def _renormalise(model: Any, latent: jax.Array) -> tuple[Any, jax.Array]:
    """With ``renorm_latent``, the latent normalised as a whole, and a model that leaves it so.

    A tile normalised by itself would lose its brightness and contrast relative to the others.
    """
    if not model.renorm_latent:
        return model, latent
    normalised = normalise(latent, model.latent_frames)
    return model.clone(parent=None, renorm_latent=False), normalised


def _check_grid(conditions: Conditions, rows: int, columns: int) -> TileConditions:
    if conditions is None:
        return [[None] * columns] * rows
    found = (len(conditions), len(conditions[0]) if conditions else 0)
    if found != (rows, columns):
        raise VidlatentError(
            f"the conditions are of {found[0]}x{found[1]} tiles, the latent has {rows}x{columns}: "
            "make both from frames of one size, with the same tiles."
        )
    return conditions


def _spans(size: int, tiles: FrameTiles) -> list[slice]:
    return [slice(start, min(start + tiles.read, size)) for start in range(0, size, tiles.core)]


@functools.partial(jax.jit, static_argnums=1)
def _joined(grid: Sequence[Sequence[jax.Array]], tiles: FrameTiles) -> jax.Array:
    """Tiles ``[B, T, H, W, C]`` blended and cropped into the whole."""
    blend = int(tiles.core * tiles.overlap)
    return _cropped(_blended(grid, lambda _: blend, 2), tiles.core, 2)


@functools.partial(jax.jit, static_argnums=1)
def _blended_features(grid: TileConditions, tiles: FrameTiles) -> TileConditions:
    """Tiles of feature maps ``[B, H, W, C]``, blended map by map."""
    levels = [
        _blended([[maps[k] for maps in row] for row in grid], tiles.blend_of, 1)
        for k in range(len(grid[0][0]))
    ]
    return [
        [tuple(level[y][x] for level in levels) for x in range(len(grid[0]))]
        for y in range(len(grid))
    ]


def _blended(
    grid: TileConditions, extent: Callable[[int], int], axis: int
) -> list[list[jax.Array]]:
    """Blend each tile with the one above, then with the one to its left, in raster order.

    Neighbours enter as they are after their own blending.

    Args:
      grid: arrays whose rows lie along ``axis``, columns along the next.
      extent: longest blend for a neighbour of a given length.
    """
    done: list[list[jax.Array]] = []
    for i, row in enumerate(grid):
        done.append([])
        for j, tile in enumerate(row):
            if i:
                tile = _ramp(done[i - 1][j], tile, extent, axis)
            if j:
                tile = _ramp(done[i][j - 1], tile, extent, axis + 1)
            done[i].append(tile)
    return done


def _ramp(a: jax.Array, b: jax.Array, extent: Callable[[int], int], axis: int) -> jax.Array:
    """``b`` whose first part fades in from the last part of ``a``."""
    length = a.shape[axis]
    # The last tile can be shorter than the nominal blend.
    n = min(length, b.shape[axis], extent(length))
    shape = [1] * b.ndim
    shape[axis] = n
    # From 0 on: the first row is the neighbour's alone, as released.
    weight = jnp.asarray(np.arange(n) / max(n, 1), b.dtype).reshape(shape)
    ending = jax.lax.slice_in_dim(a, length - n, length, axis=axis)
    start, rest = jnp.split(b, [n], axis=axis)
    return jnp.concatenate([ending * (1 - weight) + start * weight, rest], axis=axis)


def _cropped(grid: Sequence[Sequence[jax.Array]], core: int, axis: int) -> jax.Array:
    """First ``core`` rows and columns of each tile, side by side."""
    rows = []
    for row in grid:
        parts = [
            jax.lax.slice_in_dim(tile, 0, min(core, tile.shape[axis + 1]), axis=axis + 1)
            for tile in row
        ]
        whole = jnp.concatenate(parts, axis=axis + 1)
        rows.append(jax.lax.slice_in_dim(whole, 0, min(core, whole.shape[axis]), axis=axis))
    return jnp.concatenate(rows, axis=axis)


# Evenly spread tiles.


def encode_evenly(model: Any, params: Any, video: jax.Array, tiles: FrameTiles) -> MotionPosterior:
    """Posterior of the whole frame from evenly spread tiles; ``video`` ``[B, T, H, W, 3]``."""
    plan = _Placement(video.shape[2:4], tiles, model.latent_spec.h)
    run = _compiled(model, "moments")
    grid = [[run(params, video[:, :, y, x]) for x in plan.columns] for y in plan.rows]
    moments = _averaged(grid, *plan.placed(1, plan.factor))
    return MotionPosterior.of_moments(moments, model.latent_frames)


def condition_evenly(
    model: Any, params: Any, frame: jax.Array, tiles: FrameTiles
) -> TileConditions:
    """Per tile the content features of its own pixels; ``frame`` ``[B * clips, H, W, 3]``."""
    plan = _Placement(frame.shape[1:3], tiles, model.latent_spec.h)
    run = _compiled(model, "encode_condition")
    return [[run(params, frame[:, y, x]) for x in plan.columns] for y in plan.rows]


def decode_evenly(
    model: Any, params: Any, latent: jax.Array, conditions: Conditions, tiles: FrameTiles
) -> jax.Array:
    """Video ``[B, T, H, W, 3]`` from the latent and one condition per tile."""
    model, latent = _renormalise(model, latent)
    factor = model.latent_spec.h
    plan = _Placement(latent.shape[2:4], tiles.latent(factor), 1)
    conditions = _check_grid(conditions, len(plan.rows), len(plan.columns))
    run = _compiled(model, "decode")
    grid = [
        [
            run(params, latent[:, :, y, x], condition=condition)[0]
            for x, condition in zip(plan.columns, row, strict=True)
        ]
        for y, row in zip(plan.rows, conditions, strict=True)
    ]
    return _averaged(grid, *plan.placed(factor, 1))


class _Placement:
    """Where the tiles of a frame lie: ``rows`` and ``columns`` are slices of it.

    Starts are multiples of ``factor``, and the same on pixels and on the latent.
    """

    def __init__(self, size: tuple[int, int], tiles: FrameTiles, factor: int):
        self.factor, self.size = factor, tuple(size)
        small = tiles.latent(factor)
        self.rows, self.columns = (
            [
                slice(start * factor, start * factor + min(tiles.read, side))
                for start in _starts(side // factor, small)
            ]
            for side in size
        )

    def placed(self, times: int, over: int) -> tuple[tuple[int, ...], ...]:
        """Size and starts, scaled by ``times / over``, for ``_averaged``."""
        rows, columns = (
            tuple(span.start * times // over for span in spans)
            for spans in (self.rows, self.columns)
        )
        return tuple(side * times // over for side in self.size), rows, columns


def _starts(size: int, tiles: FrameTiles) -> list[int]:
    """Starts of as few tiles as cover ``size`` with at least the nominal overlap, spread evenly."""
    if size <= tiles.read:
        return [0]
    gaps = -(-(size - tiles.read) // tiles.core)
    return [round(i * (size - tiles.read) / gaps) for i in range(gaps + 1)]


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _averaged(
    grid: Sequence[Sequence[jax.Array]],
    sizes: tuple[int, int],
    rows: tuple[int, ...],
    columns: tuple[int, ...],
) -> jax.Array:
    """Tiles that start at ``rows`` and ``columns``, weighed by how far inside them a pixel lies."""
    first = grid[0][0]
    height, width = first.shape[2:4]
    down, across = _shares(rows, height, sizes[0]), _shares(columns, width, sizes[1])
    whole = jnp.zeros((*first.shape[:2], *sizes, first.shape[-1]), first.dtype)
    for top, row in zip(rows, grid, strict=True):
        for left, tile in zip(columns, row, strict=True):
            # [height, width, 1], which broadcasts over [B, T, height, width, C].
            weight = jnp.asarray(down[top][:, None, None] * across[left][:, None], tile.dtype)
            area = (slice(None), slice(None), slice(top, top + height), slice(left, left + width))
            whole = whole.at[area].add(tile * weight)
    return whole


def _shares(starts: Sequence[int], length: int, size: int) -> dict[int, np.ndarray]:
    """For each start the weight at each position of its tile; weights sum to 1 everywhere.

    Over an overlap they rise linearly, symmetric for both tiles.
    """
    total = np.zeros(size)
    raw = {}
    for place, start in enumerate(starts):
        weight = np.ones(length)
        if place:
            n = starts[place - 1] + length - start
            # Half steps keep the two ramps mirror images and every weight above 0.
            weight[:n] *= (np.arange(n) + 0.5) / n
        if place + 1 < len(starts):
            n = start + length - starts[place + 1]
            weight[length - n :] *= ((np.arange(n) + 0.5) / n)[::-1]
        raw[start] = weight
        total[start : start + length] += weight
    # Divided by the sum, since evenly spread tiles may overlap in threes.
    return {start: weight / total[start : start + length] for start, weight in raw.items()}
