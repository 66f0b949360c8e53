"""What an encoder returns."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

__all__ = ["LOGVAR_RANGE", "Posterior"]

LOGVAR_RANGE = (-30.0, 20.0)  # beyond it exp() loses its meaning in float32


class Posterior(NamedTuple):
    """Latent distribution.

    Attributes:
      mean: ``[B, t, h, w, c]`` float32.
      logvar: same shape, or None for a deterministic tokenizer.
    """

    mean: jax.Array
    logvar: jax.Array | None = None

    def draw(self, noise: jax.Array) -> jax.Array:
        """``mean + exp(logvar / 2) * noise``; the mean itself for a deterministic tokenizer.

        Args:
          noise: standard normal, the shape of ``mean``. Fix it to compare with another code.
        """
        if self.logvar is None:
            return self.mean
        return self.mean + jnp.exp(0.5 * jnp.clip(self.logvar, *LOGVAR_RANGE)) * noise

    def sample(self, key: jax.Array) -> jax.Array:
        """``draw`` with fresh noise."""
        return self.draw(jax.random.normal(key, self.mean.shape, self.mean.dtype))

    def mode(self) -> jax.Array:
        """The latent that is the same in every call: the mean."""
        return self.mean
