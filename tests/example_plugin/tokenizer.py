"""A tokenizer of one convolution each way: 1x2x2 into a few channels."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from vidlatent.models.build import make_module
from vidlatent.models.tokenizers.base import (
    Posterior,
    TokenizerModule,
    check_clip,
    refuse_condition,
)
from vidlatent.spec import FrameRule, LatentSpec


def build(fields, dtype):
    return make_module(ExampleTokenizer, fields, dtype)


class ExampleTokenizer(TokenizerModule):
    """Frame by frame; ``latent_channels`` for each 2x2 square of pixels."""

    latent_channels: int = 4
    dtype: Any = jnp.float32

    @property
    def latent_spec(self):
        return LatentSpec("example", self.latent_channels, 1, 2, 2, FrameRule(1, 1))

    def setup(self):
        shape = {"kernel_size": (1, 2, 2), "strides": (1, 2, 2), "padding": "VALID"}
        self.encoder = nn.Conv(self.latent_channels, **shape, dtype=self.dtype)
        self.decoder = nn.ConvTranspose(3, **shape, dtype=self.dtype)

    def encode(self, video, *, cache=None):
        check_clip(self.latent_spec, video, first=True)
        return Posterior(self.encoder(video).astype(jnp.float32)), None

    def decode(self, latent, *, condition=None, cache=None):
        refuse_condition(condition)
        return self.decoder(latent).astype(jnp.float32), None
