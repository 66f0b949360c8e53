"""The motion latent: a sample of the posterior, normalised over each window of frames."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from vidlatent.models.tokenizers.base import LOGVAR_RANGE

__all__ = ["MotionPosterior", "normalise"]

# As released; Flax's norms would default to 1e-6.
LATENT_EPS = 1e-5


def normalise(latent: jax.Array, window: int) -> jax.Array:
    """Zero mean and unit variance over frames, positions and channels; no parameters.

    Args:
      latent: ``[B, t, h, w, c]``.
      window: latent frames of one clip; t holds whole clips, each normalised by itself.
    """
    # [B, t, h, w, c] -> [B clips, window, h, w, c]
    clips = latent.astype(jnp.float32).reshape(-1, window, *latent.shape[2:])
    centred = clips - jnp.mean(clips, axis=(1, 2, 3, 4), keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=(1, 2, 3, 4), keepdims=True)
    return (centred * lax.rsqrt(variance + LATENT_EPS)).reshape(latent.shape)


@dataclasses.dataclass(frozen=True)
class MotionPosterior:
    """Gaussian before normalisation; ``draw``, ``sample`` and ``mode`` give the latent.

    The KL term of the loss uses ``mean`` and ``logvar``, before normalisation.

    Attributes:
      mean, logvar: ``[B, t, h, w, c]`` float32, logvar within [-30, 20].
      window: latent frames of one clip.
    """

    mean: jax.Array
    logvar: jax.Array
    window: int

    @classmethod
    def of_moments(cls, moments: jax.Array, window: int) -> MotionPosterior:
        """From ``[B, t, h, w, 2c]``: means first, then log-variances."""
        mean, logvar = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        return cls(mean, jnp.clip(logvar, *LOGVAR_RANGE), window)

    def draw(self, noise: jax.Array) -> jax.Array:
        """The latent for given standard normal noise, the shape of ``mean``."""
        return normalise(self.mean + jnp.exp(0.5 * self.logvar) * noise, self.window)

    def sample(self, key: jax.Array) -> jax.Array:
        """``draw`` with fresh noise."""
        return self.draw(jax.random.normal(key, self.mean.shape, self.mean.dtype))

    def mode(self) -> jax.Array:
        """The latent of the mean, the same in every call."""
        return normalise(self.mean, self.window)


jax.tree_util.register_dataclass(
    MotionPosterior, data_fields=["mean", "logvar"], meta_fields=["window"]
)
