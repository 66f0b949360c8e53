"""Gaussian noise maps that are a function of position, so that crops, tiles and chunks agree."""

from __future__ import annotations

import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.random import threefry_2x32

__all__ = ["NoiseField", "normal_map"]


class NoiseField(NamedTuple):
    """A key and the place of an array inside the whole frame.

    Attributes:
      keys: typed keys ``[B]``, or ``[1]`` for the same noise in every sample.
      top, left: int32 position of the array's first row and column in the whole frame.
    """

    keys: jax.Array
    top: Any = 0
    left: Any = 0


def normal_map(field: NoiseField, site: str, height: int, width: int) -> jax.Array:
    """Standard normal values ``[B or 1, 1, H, W, 1]`` float32 for the place of ``field``.

    The value at a position depends on the key, ``site`` (which tells apart the places of a network
    that draw noise) and the absolute position alone: the counters of the generator are the
    coordinates, and its two words make one normal number (Box and Muller).
    """
    rows, columns = jnp.meshgrid(
        jnp.asarray(field.top, jnp.uint32) + jnp.arange(height, dtype=jnp.uint32),
        jnp.asarray(field.left, jnp.uint32) + jnp.arange(width, dtype=jnp.uint32),
        indexing="ij",
    )
    counters = jnp.stack([rows, columns])

    def draw(key):
        words = threefry_2x32(jax.random.key_data(key), counters)
        # 24 bits each: in (0, 1] for the logarithm, in [0, 1) for the angle.
        radius, angle = (words >> 8).astype(jnp.float32) * 2.0**-24
        radius = jnp.sqrt(-2.0 * jnp.log(radius + 2.0**-24))
        return radius * jnp.cos(2.0 * jnp.pi * angle)

    # crc32, because Python's own hash of a string differs from process to process.
    keys = jax.vmap(lambda key: jax.random.fold_in(key, zlib.crc32(site.encode())))(field.keys)
    return jax.vmap(draw)(keys)[:, None, :, :, None]
