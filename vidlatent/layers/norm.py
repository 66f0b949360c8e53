"""Normalisation over the channels of one position."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["ChannelNorm"]


class ChannelNorm(nn.Module):
    """RMS over channels at each position ("pixel norm"), with scale and bias.

    No mean is subtracted and nothing is pooled over space or time, so a crop or a chunk sees the
    statistics of the whole. Statistics are float32.

    Attributes:
      eps: added to the mean square.
      affine: learn a scale and a bias per channel.
      scale_init: starting value of the scale; at the end of a residual branch 0 makes the block
        start as the identity.
    """

    eps: float = 1e-5
    affine: bool = True
    scale_init: float = 1.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[..., C] -> [..., C]``."""
        h = x.astype(jnp.float32)
        h = h * lax.rsqrt(jnp.mean(jnp.square(h), axis=-1, keepdims=True) + self.eps)
        if self.affine:
            shape = (x.shape[-1],)
            init = nn.initializers.constant(self.scale_init)
            h = h * self.param("scale", init, shape, jnp.float32)
            h = h + self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        return h.astype(self.dtype)
