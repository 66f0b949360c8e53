"""What tokenizers have in common: the posterior that encoding returns, checks of a clip's size."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vidlatent.errors import VidlatentError
from vidlatent.spec import LatentSpec, check_shape

__all__ = ["LOGVAR_RANGE", "Posterior", "check_clip", "latent_of"]

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


def check_clip(spec: LatentSpec, video: jax.Array, first: bool) -> None:
    """Raise unless ``video`` ``[B, T, H, W, 3]`` starts (``first``) or continues a stream."""
    size = check_shape(video, "B T H W C", C=3)
    frames = size["T"]
    if not first:
        if frames == 0 or frames % spec.t:
            raise VidlatentError(
                f"a later chunk of {frames} frames does not fit: it needs a multiple of {spec.t}; "
                f"only the first chunk has {spec.rule} frames."
            )
        frames = spec.rule.first
    spec.check_video(frames, size["H"], size["W"])


def latent_of(module: nn.Module, posterior: Posterior) -> jax.Array:
    """What a tokenizer decodes: a draw if there is a rng stream ``latent``, else the mean."""
    if module.has_rng("latent"):
        return posterior.sample(module.make_rng("latent"))
    return posterior.mode()
