"""A batch in pieces, one after another, for steps that do not fit the memory whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vidlatent.errors import VidlatentError

__all__ = ["averaged"]


def averaged(of: Callable[[Any, Any], Any], batch: Any, pieces: int) -> Any:
    """Mean of ``of(rows, number)``, a pytree of arrays, over equal slices of the batch.

    Raises:
      VidlatentError: ``pieces`` does not divide the batch.
    """
    size = jax.tree.leaves(batch)[0].shape[0]
    if size % pieces:
        raise VidlatentError(
            f"config.optim.accumulate {pieces} does not divide the batch of {size}: "
            "change one of them."
        )

    # A piece takes every pieces-th sample, so that it stays spread over the mesh as the batch.
    def split(x):
        return jnp.moveaxis(x.reshape(size // pieces, pieces, *x.shape[1:]), 1, 0)

    def add(total, piece):
        number, rows = piece
        return jax.tree.map(jnp.add, total, of(rows, number)), None

    rows = jax.tree.map(split, batch)
    first = jax.tree.map(lambda x: x[0], rows)
    shapes = jax.eval_shape(lambda: of(first, 0))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    total, _ = jax.lax.scan(add, zeros, (jnp.arange(pieces), rows))
    return jax.tree.map(lambda x: x / pieces, total)
