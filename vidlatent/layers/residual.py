"""The residual stream of transformers: how a sub-layer's output is added to it."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vidlatent.parallel.sharding import constrain

__all__ = ["add_residual"]


def add_residual(x: jax.Array, h: jax.Array, dtype: str, axes: tuple[str, ...]) -> jax.Array:
    """``x + h`` in float32, stored as ``dtype``, an array of the shape of both.

    In bfloat16 the states of dozens of blocks would lose the small contributions of later ones, so
    training keeps them in float32. Samplers may store bfloat16, which halves the traffic.

    Args:
      x: the stream ``[B, ..., D]``.
      h: what a sub-layer adds.
      dtype: ``config.generator.residual_dtype``.
      axes: logical names of the axes, for sharding.
    """
    x = x.astype(jnp.float32) + h.astype(jnp.float32)
    return constrain(x.astype(dtype), axes)
