"""A tokenizer of two convolutions, compiled in a second, with a posterior to draw from."""

import flax.linen as nn
import jax.numpy as jnp

from vidlatent.models.tokenizers.base import Posterior, TokenizerModule, choose_latent
from vidlatent.spec import FrameRule, LatentSpec


class _Side(nn.Module):
    features: int
    name_out: str

    @nn.compact
    def __call__(self, x):
        return nn.Conv(self.features, (1, 3, 3), name=self.name_out)(x)


class Micro(TokenizerModule):
    dtype: object = jnp.float32

    @property
    def latent_spec(self):
        return LatentSpec("micro", 4, 1, 1, 1, FrameRule(1, 1))

    def setup(self):
        self.encoder, self.decoder = _Side(8, "conv_in"), _Side(3, "conv_out")

    def __call__(self, video):
        mean, logvar = jnp.split(self.encoder(video), 2, axis=-1)
        posterior = Posterior(mean, logvar)
        return self.decoder(nn.silu(choose_latent(self, posterior))), posterior
