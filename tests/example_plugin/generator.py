"""A generator of two pointwise layers that knows the time and nothing else."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from vidlatent.models.build import make_module
from vidlatent.models.generators.base import GeneratorDefaults


def build(fields, dtype):
    return make_module(ExampleGenerator, fields, dtype, section="config.generator")


class ExampleGenerator(GeneratorDefaults, nn.Module):
    """``[B, t, h, w, c]`` to ``[B, t, h, w, c]``."""

    latent_channels: int = 4
    width: int = 8
    patch: tuple = (1, 1, 1)
    dtype: Any = jnp.float32

    @nn.compact
    def denoise(self, noisy, time, conditions, drop=None, condition_cache=None):
        level = jnp.broadcast_to(time[:, None, None, None, None] / 1000.0, noisy.shape)
        x = jnp.concatenate([noisy, level.astype(noisy.dtype)], axis=-1)
        x = nn.silu(nn.Dense(self.width, dtype=self.dtype, name="dense_in")(x))
        zeros = nn.initializers.zeros
        out = nn.Dense(self.latent_channels, dtype=self.dtype, kernel_init=zeros, name="dense_out")
        return out(x).astype(jnp.float32)
