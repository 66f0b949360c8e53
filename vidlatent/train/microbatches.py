"""Gradient accumulation: process a batch in slices when it does not fit into memory at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vidlatent.errors import VidlatentError

__all__ = ["accumulate_gradients"]


def accumulate_gradients(compute: Callable[[Any, Any], Any], batch: Any, microbatches: int) -> Any:
    """Mean of ``compute(rows, number)`` over equal slices of the batch, in a loop on the device.

    One slice is computed without a loop, which would hold a second set of gradients: their sum.

    Args:
      compute: maps a slice of the batch and its number (int32 scalar) to gradients, any pytree of
        arrays.
      batch: pytree of arrays ``[B, ...]``.
      microbatches: number of slices.

    Raises:
      VidlatentError: ``microbatches`` does not divide the batch.
    """
    if microbatches == 1:
        return compute(batch, 0)
    size = jax.tree.leaves(batch)[0].shape[0]
    if size % microbatches:
        raise VidlatentError(
            f"config.optim.accumulate {microbatches} does not divide the batch of {size}: "
            "change one of them."
        )

    # A slice takes every ``microbatches``-th sample, so each device holds part of every slice.
    # Contiguous slices would each lie on a few devices while the others wait.
    def split(x):
        # [B, ...] -> [n, B / n, ...] for n slices
        return jnp.moveaxis(x.reshape(size // microbatches, microbatches, *x.shape[1:]), 1, 0)

    def add(total, piece):
        number, rows = piece
        return jax.tree.map(jnp.add, total, compute(rows, number)), None

    rows = jax.tree.map(split, batch)
    first = jax.tree.map(lambda x: x[0], rows)
    # The scan needs a sum to start from: zeros in the shapes of the result, found by tracing.
    shapes = jax.eval_shape(lambda: compute(first, 0))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    total, _ = jax.lax.scan(add, zeros, (jnp.arange(microbatches), rows))
    return jax.tree.map(lambda x: x / microbatches, total)
