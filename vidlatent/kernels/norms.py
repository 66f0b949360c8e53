"""Layer norm in sums that the compilers fuse well, with gradients by autodiff.

XLA joins the sums to what made the tensor and the rest to what reads it, which a kernel of its own
would prevent. What is left to choose is how the variance is summed.
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
      platform: in place of ``current_platform()``. ``'tpu'`` sums ``x`` and ``x^2`` in one sweep,
        which saves XLA a read of the tensor; the variance then has a relative error of some
        ``1e-7 (1 + mean^2 / variance)``. Others take a second sweep for it, over what GPUs hold
        in registers and CPUs in the cache.
    """
    h = x.astype(jnp.float32)
    mean = jnp.mean(h, axis=-1, keepdims=True)
    centred = h - mean
    if (platform or current_platform()) == "tpu":
        variance = jnp.mean(jnp.square(h), axis=-1, keepdims=True) - jnp.square(mean)
        variance = jnp.maximum(variance, 0.0)  # rounding
    else:
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    return centred * lax.rsqrt(variance + eps)
