"""What an encoder returns."""

from __future__ import annotations

from typing import NamedTuple

import jax

__all__ = ["Posterior"]


class Posterior(NamedTuple):
    """Latent distribution.

    Attributes:
      mean: ``[B, t, h, w, c]`` float32.
      logvar: same shape, or None for a deterministic tokenizer.
    """

    mean: jax.Array
    logvar: jax.Array | None = None
