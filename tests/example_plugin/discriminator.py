"""A discriminator of one convolution."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp


class ExampleDiscriminator(nn.Module):
    """A logit for each 4x4 square of each frame; it remembers nothing."""

    width: int = 1
    dtype: Any = jnp.float32

    scales = 1
    smallest_clip = (1, 4, 4)

    def init_stats(self):
        return {}

    @nn.compact
    def __call__(self, video, stats, train):
        x = nn.Conv(self.width, (1, 4, 4), strides=(1, 4, 4), padding="VALID", name="conv_0")(video)
        return [x.mean(-1).astype(jnp.float32)], stats


ENTRY = (ExampleDiscriminator, {})
