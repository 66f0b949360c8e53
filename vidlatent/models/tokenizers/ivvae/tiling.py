"""IV-VAE's way of cutting frames: runs of layers in strips of rows, exactly.

At 720p one array of a group of frames takes 1.9 GB at full resolution, and a residual block holds
half a dozen at a time. A strip is a window of rows with a margin: as many rows beyond the
wanted ones as the layers look up and down. The layers pad the window with zeros, which is right at
the picture's border; elsewhere it spoils the margin only, which is thrown away. Nothing is
approximated; the margins are computed twice.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import lax

from vidlatent.kernels.dispatch import current_platform
from vidlatent.models.tokenizers.cutting import CutSize, FrameCoder, SpaceWay

if TYPE_CHECKING:
    from vidlatent.models.tokenizers.ivvae.model import IVVAE

__all__ = ["LIMIT", "Strips", "plan_strips", "run_strips", "list_space_ways"]

LIMIT = 3 * 2**27  # bytes of the largest array of a level above which CPUs compute it in strips

Layers = Callable[[jax.Array, Any], tuple[jax.Array, Any]]


def list_space_ways(model: IVVAE) -> tuple[SpaceWay, ...]:
    """Strips, for ``Tokenizer.list_space_ways``; 'auto' halves their size five times."""
    sizes = tuple(
        CutSize(
            f"strips of rows of {limit / 2**20:g} MiB (the same result)",
            {"space": "strips", "strip_mb": limit / 2**20},
        )
        for limit in (LIMIT >> shift for shift in range(6))
    )
    make = functools.partial(_make_strips, model)
    return (SpaceWay("strips", True, ("strip_mb",), make, sizes),)


def _make_strips(model: IVVAE, codec: Any) -> FrameCoder:
    limit = int(codec.strip_mb * 2**20) or LIMIT
    return FrameCoder(model.clone(parent=None, row_limit=limit, strips_anywhere=True))


@dataclasses.dataclass(frozen=True)
class Strips:
    """``count`` windows of ``length`` rows, each ``length - 2 * reach`` below the last."""

    count: int
    length: int
    reach: int


def plan_strips(
    rows: int, reach: int, size: int, limit: int = LIMIT, anywhere: bool = False
) -> Strips | None:
    """How to cut ``rows`` rows into strips; None if they should be computed at once.

    Args:
      rows: of the coarsest map among the layers.
      reach: rows at either side of a window that come out wrong.
      size: bytes of the largest array between the layers.
      limit: bytes that this array should take in one window; 0: no limit. Windows are never so
        small that more than half of the work would be done twice.
      anywhere: on accelerators too, which are faster with whole levels as long as these fit.
    """
    mesh = jax.sharding.get_abstract_mesh()
    alone = mesh.empty or mesh.size == 1  # on a mesh XLA's partitioner cuts the rows
    here = anywhere or current_platform() == "cpu"
    if not limit or size <= limit or not alone or not here:
        return None
    best = None
    for count in range(2, rows):
        # Try slightly larger margins until windows of one length fit the picture exactly.
        for more in range(reach, reach + count):
            step, rest = divmod(rows - 2 * more, count)
            if rest:
                continue
            if step < 2 * more:
                break
            # Kept even above the limit: if none stays below it, the smallest will do.
            best = Strips(count, step + 2 * more, more)
            if best.length * size <= limit * rows:
                return best
            break
    return best


def run_strips(layers: Layers, x: jax.Array, cache: Any, rows: int, strips: Strips) -> Any:
    """``layers(x, cache)``, in strips.

    Args:
      layers: ``(x [B, T, H, W, C], cache) -> (y [B, T', H', W', C'], cache)``; arrays of a cache
        are ``[B, t, h, w, c]``, and every height is a multiple of ``rows``.
      x: whole input.
      cache: whole cache; its memory is reused if nothing else holds it.
      rows: rows of the map that ``strips`` refers to.
      strips: windows.
    """
    done = jax.eval_shape(layers, x, cache)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), done)
    results = zeros if cache is None else (zeros[0], cache)
    twice = 2 * strips.reach
    step = strips.length - twice

    def cut(array, start, count):
        # Rows of this array to one row of the coarsest map.
        unit = array.shape[2] // rows
        return lax.dynamic_slice_in_dim(array, start * unit, count * unit, axis=2)

    def one(index, carry):
        (video, kept), window = carry
        start = index * step
        new = layers(cut(x, start, strips.length), window)
        # The margin below is written too; the next window overwrites it with right values.
        skip = jnp.where(index == 0, 0, strips.reach)

        def put(target, part):
            unit = target.shape[2] // rows
            count = (strips.length - strips.reach) * unit
            part = lax.dynamic_slice_in_dim(part, skip * unit, count, axis=2)
            return lax.dynamic_update_slice_in_dim(target, part, (start + skip) * unit, axis=2)

        video, kept = jax.tree.map(put, (video, kept), new)

        def following(array, old):
            # The rows shared with this window are written over by now, those below it are not.
            shared = old[:, :, -twice * (old.shape[2] // strips.length) :]
            return jnp.concatenate([shared, cut(array, start + strips.length, step)], axis=2)

        return (video, kept), None if window is None else jax.tree.map(following, kept, window)

    window = None if cache is None else jax.tree.map(lambda a: cut(a, 0, strips.length), cache)
    return lax.fori_loop(0, strips.count, one, (results, window))[0]
