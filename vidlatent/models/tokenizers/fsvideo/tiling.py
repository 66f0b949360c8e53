"""FSAE piece by piece and tile by tile: caches for every tile, and one loop over them.

The inner stages attend over the whole frame and run whole; the outer ones are convolutions with
norms of a position's own channels, so a tile that is read with a margin gives exactly what the
whole frame gives (``patches``). The loop over tiles is part of the compiled program: it needs the
workspace of one tile, and its caches are values like those of the whole model.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vidlatent.models.tokenizers.base import Posterior
from vidlatent.models.tokenizers.fsvideo.model import Autoencoder
from vidlatent.models.tokenizers.fsvideo.patches import (
    Condition,
    decoder_reach,
    encoder_end,
    encoder_reach,
    outer_stage,
    tiles,
)

__all__ = ["Grid", "decode_piece", "encode_piece", "grid_of", "margins"]

# What is made of frame 0 alone, the same for every tile.
_SHARED = "first_frame_attn_"


@dataclasses.dataclass(frozen=True)
class Grid:
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


def grid_of(whole: tuple[int, int], core: int, margin: int) -> Grid:
    """Tiles of ``core`` cells a side, read with ``margin`` cells of true neighbours.

    The last tile of a row or column lies against the border and shares more with the one before.
    """
    lines = [tiles(side, core, margin) for side in whole]
    cores = tuple(min(core, side) for side in whole)
    firsts = [[part[0] for part in parts] for _, parts in lines]
    begins = [
        [min(part[1], side - wanted) for part in parts]
        for (_, parts), side, wanted in zip(lines, whole, cores, strict=True)
    ]
    read, wanted = (
        np.stack(np.meshgrid(*pair, indexing="ij"), axis=-1).reshape(-1, 2)
        for pair in (firsts, begins)
    )
    return Grid((lines[0][0], lines[1][0]), cores, read, wanted)


def margins(model: Autoencoder) -> tuple[tuple[int, int], tuple[int, int]]:
    """``(cell side, margin)`` in pixels of the decoder's tiles and of the encoder's.

    The margin is what cut sides spoil, up to whole cells.

    Raises:
      VidlatentError: the model attends at full resolution.
    """
    stage, end = outer_stage(model), encoder_end(model)
    pairs = (
        (2**stage, decoder_reach(model, stage).space),
        (2 ** (end + 1), encoder_reach(model, end)),
    )
    return tuple((cell, -(-reach // cell) * cell) for cell, reach in pairs)


def decode_piece(
    model: Autoencoder,
    core: int,
    params: Any,
    latent: jax.Array,
    cache: Any = None,
    condition: Condition = None,
) -> tuple[jax.Array, Any]:
    """``model.decode``, its outer stages tile by tile.

    Args:
      core: side of a tile in pixels, a multiple of the cell.

    Returns:
      The video and the cache, which only this function can read.
    """
    stage = outer_stage(model)
    cell, margin = margins(model)[0]
    run = functools.partial(model.apply, {"params": params})
    old = cache or {"inner": None, "tiles": None, "shared": {}}
    x, inner = run(latent, old["inner"], condition, stage, method=_decode_inner)
    grid = grid_of(x.shape[2:4], core // cell, margin // cell)

    def one(part, held, origin):
        return run(part, held, condition, stage, origin, method=_decode_outer)

    video, kept, shared = _over_tiles(one, x, grid, (1, cell), old["tiles"], old["shared"])
    return video, {"inner": inner, "tiles": kept, "shared": shared}


def encode_piece(
    model: Autoencoder, core: int, params: Any, video: jax.Array, cache: Any = None
) -> tuple[Posterior, Any]:
    """``model.encode``, its outer stages tile by tile; arguments as of ``decode_piece``."""
    end = encoder_end(model)
    cell, margin = margins(model)[1]
    run = functools.partial(model.apply, {"params": params})
    old = cache or {"inner": None, "tiles": None}
    whole = tuple(side // cell for side in video.shape[2:4])
    grid = grid_of(whole, core // cell, margin // cell)

    def one(part, held, origin):
        del origin
        return run(part, held, end, method=_encode_outer)

    x, kept, _ = _over_tiles(one, video, grid, (cell, 1), old["tiles"], {})
    mean, inner = run(x, old["inner"], end, method=_encode_inner)
    return Posterior(mean), {"inner": inner, "tiles": kept}


def _over_tiles(one, x, grid, scales, kept, shared):
    """``one(part, cache, origin) -> (part, cache)`` for every tile, one after the other.

    Args:
      scales: positions of ``x``, and of the result, to a cell.
      kept: caches of all tiles ``[tiles, ...]``, None at the start of a stream.
      shared: the part of the cache that all tiles share.
    """
    before, after = scales
    first = kept is None
    read, wanted = jnp.asarray(grid.read), jnp.asarray(grid.wanted)

    def tile(index, kept, shared):
        origin = read[index]
        start = (0, 0, before * origin[0], before * origin[1], 0)
        shape = (*x.shape[:2], *(before * side for side in grid.size), x.shape[-1])
        held = None
        if not first:
            held = {**jax.tree.map(lambda leaf: leaf[index], kept), **shared}
        y, new = one(lax.dynamic_slice(x, start, shape), held, (origin[0], origin[1]))
        own = {name: value for name, value in new.items() if not name.startswith(_SHARED)}
        return y, own, {name: new[name] for name in new if name.startswith(_SHARED)}

    y, own, common = jax.eval_shape(tile, 0, kept, shared)
    ends = zip(grid.wanted[-1], grid.core, strict=True)
    sides = [after * (int(begin) + side) for begin, side in ends]

    def zeros(leaf, *lead):
        return jnp.zeros((*lead, *leaf.shape), leaf.dtype)

    if first:
        kept = jax.tree.map(lambda leaf: zeros(leaf, grid.count), own)
        shared = jax.tree.map(zeros, common)
    result = jnp.zeros((*y.shape[:2], *sides, y.shape[-1]), y.dtype)

    def step(index, carry):
        result, kept, shared = carry
        y, own, shared = tile(index, kept, shared)
        begin = wanted[index]
        skip = (begin - read[index]) * after
        shape = (*y.shape[:2], *(after * side for side in grid.core), y.shape[-1])
        y = lax.dynamic_slice(y, (0, 0, skip[0], skip[1], 0), shape)
        place = (0, 0, after * begin[0], after * begin[1], 0)
        result = lax.dynamic_update_slice(result, y, place)
        kept = jax.tree.map(lambda whole, leaf: whole.at[index].set(leaf), kept, own)
        return result, kept, shared

    return lax.fori_loop(0, grid.count, step, (result, kept, shared))


# Methods of the autoencoder that only tiles need: its halves with caches.


def _decode_inner(module, latent, cache, condition, stage):
    features, noise = module._features(condition, cache), module._noise(latent.shape[0])
    return module.decoder(latent, cache, features=features, noise=noise, end=stage)[:2]


def _decode_outer(module, x, cache, condition, stage, origin):
    features, noise = module._features(condition, cache), module._noise(x.shape[0])
    return module.decoder(x, cache, features=features, noise=noise, begin=stage, origin=origin)[:2]


def _encode_outer(module, video, cache, end):
    return module.encoder(video, cache, end=end)[:2]


def _encode_inner(module, x, cache, end):
    return module.encoder(x, cache, begin=end)[:2]
