"""Layer norm as sums that XLA fuses well; gradients by autodiff.

XLA fuses the sums into the operation before the norm and the scaling into the one after it. A
custom kernel would prevent both, so the only choice here is how the variance is computed.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from vidlatent.kernels.dispatch import current_platform

__all__ = ["layer_norm"]


def layer_norm(x: jax.Array, eps: float = 1e-6, *, platform: str | None = None) -> jax.Array:
    """``[..., D]`` with mean 0 and variance 1 over channels, float32.

    Args:
      x: any float dtype; the sums are float32.
      eps: added to the variance.
      platform: in place of ``current_platform()``. On ``'tpu'`` ``x`` and ``x^2`` are summed in one
        pass, which saves a read of the tensor; the variance then has a relative error of about
        ``1e-7 (1 + mean^2 / variance)``. Elsewhere a second pass computes it, over data that GPUs
        still hold in registers and CPUs in the cache.
    """
    h = x.astype(jnp.float32)
    mean = jnp.mean(h, axis=-1, keepdims=True)
    centred = h - mean
    if (platform or current_platform()) == "tpu":
        variance = jnp.mean(jnp.square(h), axis=-1, keepdims=True) - jnp.square(mean)
        variance = jnp.maximum(variance, 0.0)  # rounding can make it negative
    else:
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    return centred * lax.rsqrt(variance + eps)
