"""Pixel losses."""

from __future__ import annotations

import jax
import jax.numpy as jnp

__all__ = ["l1"]


def l1(prediction: jax.Array, target: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean absolute error over all values of the real samples (the L1 of FSVideo's L_ae)."""
    error = jnp.abs(prediction.astype(jnp.float32) - target.astype(jnp.float32))
    return _mean_over_samples(error, mask)


def _mean_over_samples(error: jax.Array, mask: jax.Array) -> jax.Array:
    per_sample = error.mean(axis=tuple(range(1, error.ndim)))
    return (per_sample * mask).sum() / jnp.maximum(mask.sum(), 1.0)
