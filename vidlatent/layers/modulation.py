"""Norms that a time embedding scales and shifts, and the embedding's features; all in float32."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vidlatent.kernels.norms import layer_norm

__all__ = ["LayerNorm", "modulated", "time_features"]


def modulated(x: jax.Array, scale: jax.Array, shift: jax.Array, eps: float = 1e-6) -> jax.Array:
    """``layer_norm(x) * (1 + scale) + shift`` float32; scale and shift are ``[B, 1, D]``."""
    return layer_norm(x, eps) * (1 + scale) + shift


class LayerNorm(nn.Module):
    """Layer norm with scale and bias, its statistics in float32."""

    eps: float = 1e-6
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[..., C] -> [..., C]``."""
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        return (layer_norm(x, self.eps) * scale + bias).astype(self.dtype)


def time_features(time: jax.Array, size: int, base: float = 10_000.0) -> jax.Array:
    """``[cos(t f), sin(t f)]``, ``f_j = base ** (-2 j / size)``: ``[B] -> [B, size]`` float32."""
    half = size // 2
    turns = base ** (-np.arange(half, dtype=np.float64) / half)
    angles = time.astype(jnp.float32)[:, None] * turns.astype(np.float32)
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
