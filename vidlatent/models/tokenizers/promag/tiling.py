"""Spatial tiles for maps that are too large to convolve at once (ProMAG 3.3).

The paper splits the input of each convolution into overlapping tiles and blends the results; norms
keep the statistics of the whole map. Two ways to cut:

``halo``
    a tile is read together with its true neighbours, so every tile gives the values of the full
    map, whatever the overlap. Overlap 0 is the cheapest.
``literal``
    a tile is padded with zeros at its own edges, as the paper's wording suggests. Its outermost
    rows are wrong, so the blend equals the full map only if they get no weight: ``dead_zone`` of
    half the kernel and an overlap of at least twice that.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vidlatent.errors import VidlatentError
from vidlatent.models.tokenizers.cutting import CutSize, FrameCoder, SpaceWay

if TYPE_CHECKING:
    from vidlatent.models.tokenizers.promag.model import ProMAG

__all__ = ["LayerTiles", "make_blend_weights", "map_tiles", "cut_line", "list_space_ways"]

# Sides of tiles that 'auto' tries, in positions of each layer's map; and the default side.
_POSITIONS = (256, 128, 64, 32)
_DEFAULT_POSITIONS = 64


def list_space_ways(model: ProMAG) -> tuple[SpaceWay, ...]:
    """Tiled convolutions, for ``Tokenizer.list_space_ways``."""
    if model.line:  # one pixel high: nothing to cut
        return ()
    sizes = tuple(
        CutSize(
            f"convolutions in tiles of {side} positions (the same result)",
            {"space": "layers", "layer_positions": side},
            cuts=side,
        )
        for side in _POSITIONS
    )
    keys = ("layer_positions", "layer_overlap_positions", "layer_dead_positions")
    return (
        SpaceWay(
            "layers",
            True,
            keys,
            functools.partial(_make_halo_tiles, model),
            sizes,
            remark=", which keeps the norms of whole frames",
        ),
        # Exact only behind a dead zone, see above.
        SpaceWay("layers_literal", False, keys, functools.partial(_make_literal_tiles, model)),
    )


def _make_halo_tiles(model: ProMAG, codec: Any) -> FrameCoder:
    if codec.layer_dead_positions >= 0:
        raise VidlatentError(
            f"config.codec.layer_dead_positions={codec.layer_dead_positions} does nothing while "
            "space is 'layers', exact without it: leave it out, or change that."
        )
    return _tile_layers(model, codec, "halo", overlap=0, dead=0)


def _make_literal_tiles(model: ProMAG, codec: Any) -> FrameCoder:
    dead = 1 if codec.layer_dead_positions < 0 else codec.layer_dead_positions
    return _tile_layers(model, codec, "literal", overlap=4, dead=dead)


def _tile_layers(model: ProMAG, codec: Any, mode: str, overlap: int, dead: int) -> FrameCoder:
    """The model with its convolutions tiled; ``overlap`` is used where the config names none."""
    if codec.layer_overlap_positions >= 0:
        overlap = codec.layer_overlap_positions
    # Tiling changes how layers compute, not their parameters, so a copy can use the same.
    model = model.clone(
        parent=None,
        tile_size=codec.layer_positions or _DEFAULT_POSITIONS,
        tile_overlap=overlap,
        tile_mode=mode,
        tile_dead_zone=dead,
    )
    _ = model.layer_config  # raises where a tile is smaller than the overlap
    return FrameCoder(model)


@dataclasses.dataclass(frozen=True)
class LayerTiles:
    """How a map is cut.

    Attributes:
      size: height and width of a tile in positions of the map at hand.
      overlap: positions that neighbouring tiles share; the last tile may share more.
      mode: ``'halo'`` or ``'literal'``.
      dead_zone: positions at a tile's inner edges that the blend leaves out.
    """

    size: int
    overlap: int = 0
    mode: str = "halo"
    dead_zone: int = 0

    def __post_init__(self):
        if self.mode not in ("halo", "literal"):
            raise VidlatentError(f"tile mode {self.mode!r}: use 'halo' or 'literal'.")
        if self.dead_zone < 0:
            raise VidlatentError(f"tile dead zone {self.dead_zone}: use 0 or more.")
        # Raises for an overlap as large as the tile.
        cut_line(1, self.size, self.overlap)


def cut_line(length: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """Start and end of the tiles of a line; the last one is moved back to end with the line."""
    if not 0 <= overlap < tile:
        raise VidlatentError(f"tiles of {tile} cannot overlap by {overlap}: use 0 to {tile - 1}.")
    if length <= tile:
        return [(0, length)]
    step = tile - overlap
    count = 1 + -(-(length - tile) // step)
    starts = (min(i * step, length - tile) for i in range(count))
    return [(start, start + tile) for start in starts]


def _ramp(overlap: int, dead_zone: int) -> np.ndarray:
    """Weights over an overlap, from a tile's edge inwards; their mirror adds up to 1."""
    place = np.arange(overlap) + 0.5
    width = overlap - 2 * dead_zone
    if width <= 0:  # no room for a ramp: a hard seam in the middle
        return (place > overlap / 2).astype(float) + 0.5 * (place == overlap / 2)
    return np.clip((place - dead_zone) / width, 0.0, 1.0)


def make_blend_weights(length: int, tile: int, overlap: int, dead_zone: int = 0) -> np.ndarray:
    """Weights of every tile of ``cut_line``, ``[tiles, tile]``, that sum to 1 at every position.

    They rise linearly over the overlap of two neighbours. They are normalised, because the last
    tile is moved back and may overlap more than one other.
    """
    lines = cut_line(length, tile, overlap)
    weights = np.ones((len(lines), lines[0][1]))
    for i in range(1, len(lines)):
        ramp = _ramp(lines[i - 1][1] - lines[i][0], dead_zone)
        weights[i, : len(ramp)] *= ramp
        # Without a ramp the slice [-0:] would be the whole tile.
        weights[i - 1, -len(ramp) :] *= ramp[::-1] if len(ramp) else 1.0
    total = np.zeros(length)
    for (start, end), weight in zip(lines, weights, strict=True):
        total[start:end] += weight
    return np.stack([w / total[a:b] for (a, b), w in zip(lines, weights, strict=True)])


def map_tiles(
    function: Callable[[Sequence[jax.Array], jax.Array, int], jax.Array],
    arrays: Sequence[jax.Array],
    tiles: LayerTiles,
    reach: int = 0,
    factor: int = 1,
) -> jax.Array:
    """Apply ``function`` tile by tile and blend; one loop, so one tile's workspace.

    Args:
      function: ``(cut arrays, inside, pad) -> [B, T', h * factor, w * factor, C']``. ``inside``
        ``[h', w', 1]`` is False at positions beyond the map, which must count as zero; ``pad`` is
        how many zeros the function itself adds on each side (``reach`` for literal tiles, 0 where
        the neighbours are in the cut already).
      arrays: maps ``[B, T_i, H, W, C_i]`` cut alike.
      tiles: how to cut.
      reach: positions that the function looks to each side.
      factor: growth of height and width in the function.

    Returns:
      ``[B, T', H * factor, W * factor, C']``.
    """
    extent = arrays[0].shape[2:4]
    lines = [cut_line(n, tiles.size, tiles.overlap) for n in extent]
    sizes = [line[0][1] for line in lines]
    # Literal tiles are read without neighbours; the function pads them with zeros.
    halo = reach if tiles.mode == "halo" else 0
    border = ((0, 0), (0, 0), (halo, halo), (halo, halo), (0, 0))
    padded = [jnp.pad(array, border) for array in arrays]
    starts = [jnp.asarray([start for start, _ in line]) for line in lines]

    def corner(index):
        steps = index // len(lines[1]), index % len(lines[1])
        return steps, [start[step] for start, step in zip(starts, steps, strict=True)]

    def piece(index):
        _, at = corner(index)
        read = [size + 2 * halo for size in sizes]
        cuts = [_cut(array, at, read) for array in padded]
        rows, columns = (
            (place >= halo) & (place < halo + n)
            for place, n in zip(map(_run, at, read), extent, strict=True)
        )
        return function(cuts, (rows[:, None] & columns[None, :])[..., None], reach - halo)

    like = jax.eval_shape(piece, jnp.zeros((), jnp.int32))
    # bfloat16 weights would not add up to 1.
    exact = jnp.promote_types(like.dtype, jnp.float32)
    down, across = (_line_weights(n, tiles, factor, exact) for n in extent)

    def add(index, out):
        (row, column), at = corner(index)
        weight = down[row][:, None, None] * across[column][None, :, None]
        value = (piece(index).astype(exact) * weight).astype(out.dtype)
        at = (0, 0, *(a * factor for a in at), 0)
        old = lax.dynamic_slice(out, at, value.shape)
        return lax.dynamic_update_slice(out, old + value, at)

    shape = (*like.shape[:2], *(n * factor for n in extent), like.shape[-1])
    return lax.fori_loop(0, len(lines[0]) * len(lines[1]), add, jnp.zeros(shape, like.dtype))


def _line_weights(length: int, tiles: LayerTiles, factor: int, dtype: Any) -> jax.Array:
    weights = make_blend_weights(length, tiles.size, tiles.overlap, tiles.dead_zone)
    # An up layer makes `factor` pixels of a position, which share its weight.
    return jnp.asarray(np.repeat(weights, factor, axis=1), dtype)


def _run(start: jax.Array, length: int) -> jax.Array:
    return start + jnp.arange(length)


def _cut(array: jax.Array, at: Sequence[jax.Array], size: Sequence[int]) -> jax.Array:
    shape = (*array.shape[:2], *size, array.shape[-1])
    return lax.dynamic_slice(array, (0, 0, *at, 0), shape)
