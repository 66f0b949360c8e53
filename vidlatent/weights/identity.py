"""A digest by which weights are known again, wherever they lie and in which dtype they are held."""

from __future__ import annotations

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from vidlatent.parallel.paths import path_name

__all__ = ["identify"]


def identify(params: Any) -> str:
    """32 hex digits for parameters: the same for every sharding, and for float32 and bfloat16.

    Values enter rounded to bfloat16, the coarsest type in which kernels are held, together with
    their places. They are summed on their devices, so that weights of many hosts need not be
    gathered; hence it tells weights apart, but is no protection against forgery.
    """
    total = hashlib.sha256()
    leaves = ((path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params))
    for name, leaf in sorted(leaves, key=lambda item: item[0]):
        sums = ",".join(f"{int(part):08x}" for part in _sum_values(leaf))
        total.update(f"{name} {tuple(leaf.shape)} {sums} ".encode())
    return total.hexdigest()[:32]


@jax.jit
def _sum_values(leaf: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two sums, modulo 2**32, of a hash of each value and its place in the array."""
    bits = lax.bitcast_convert_type(leaf.astype(jnp.bfloat16), jnp.uint16).astype(jnp.uint32)
    place = jnp.zeros(leaf.shape, jnp.uint32)
    for axis, size in enumerate(leaf.shape):
        place = place * jnp.uint32(size) + lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)

    def add(first: int, second: int, third: int) -> jax.Array:
        # Odd factors and shifts are one to one: another value at a place changes the sum.
        mixed = (bits * jnp.uint32(first)) ^ (place * jnp.uint32(second))
        mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(third)
        return jnp.sum(mixed ^ (mixed >> 13), dtype=jnp.uint32)

    return add(0x9E3779B1, 0x85EBCA77, 0x2C1B3C6D), add(0xC2B2AE3D, 0x27D4EB2F, 0x297A2D39)
