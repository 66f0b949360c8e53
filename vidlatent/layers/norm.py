"""Normalisation at one position, over its channels or by fixed statistics."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["ChannelNorm", "FixedBatchNorm"]


class ChannelNorm(nn.Module):
    """RMS over channels at each position ("pixel norm"), with scale and bias.

    No mean is subtracted and nothing is pooled over space or time, so a crop or a chunk sees the
    statistics of the whole. Statistics are float32.

    Attributes:
      eps: added to the mean square.
      affine: learn a scale and a bias per channel.
      use_bias: False for a scale alone.
      scale_init: starting value of the scale; at the end of a residual branch 0 makes the block
        start as the identity.
    """

    eps: float = 1e-5
    affine: bool = True
    scale_init: float = 1.0
    dtype: Any = jnp.float32
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[..., C] -> [..., C]``."""
        h = x.astype(jnp.float32)
        h = h * lax.rsqrt(jnp.mean(jnp.square(h), axis=-1, keepdims=True) + self.eps)
        if self.affine:
            shape = (x.shape[-1],)
            init = nn.initializers.constant(self.scale_init)
            h = h * self.param("scale", init, shape, jnp.float32)
            if self.use_bias:
                h = h + self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        return h.astype(self.dtype)


class FixedBatchNorm(nn.Module):
    """Batch normalisation with the statistics of a finished training: an affine map per channel.

    For released image decoders that carry it. The statistics receive no gradient, so fine-tuning
    moves the scale and the bias alone.

    Attributes:
      eps: added to the variance.
      scale_init: starting value of the scale.
    """

    eps: float = 1e-5
    scale_init: float = 1.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[..., C] -> [..., C]``."""

        def per_channel(name, value):
            init = nn.initializers.constant(value)
            return self.param(name, init, (x.shape[-1],), jnp.float32)

        mean = lax.stop_gradient(per_channel("mean", 0.0))
        variance = lax.stop_gradient(per_channel("var", 1.0))
        scale = per_channel("scale", self.scale_init) * lax.rsqrt(variance + self.eps)
        h = (x.astype(jnp.float32) - mean) * scale + per_channel("bias", 0.0)
        return h.astype(self.dtype)
