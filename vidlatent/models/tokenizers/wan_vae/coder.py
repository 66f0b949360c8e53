"""Encoder and decoder of Wan2.2: levels whose resampling has a shortcut without parameters.

Wan2.1's are the one-branch causal network of the IV-VAE family, layer by layer
(``ivvae.coder``). Wan2.2 is made of the same layers, but each level, residual blocks and resampling
together, is a residual branch beside a shortcut.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vidlatent.layers.resample import (
    channel_to_space,
    down_shortcut,
    group_mean,
    repeat_channels,
    space_to_channel,
    up_shortcut,
)
from vidlatent.models.tokenizers.ivvae.blocks import SplitNorm, conv3, pointwise
from vidlatent.models.tokenizers.ivvae.coder import Tape, make_steps
from vidlatent.models.tokenizers.ivvae.variants import IVVAEConfig

__all__ = ["WanDecoder", "WanEncoder", "wan_down_shortcut", "wan_up_shortcut"]

_ORDER = "thw"  # of the sub-indices of a channel, time slowest


class WanEncoder(nn.Module):
    """Video, pixels gathered into channels, to moments ``[mean, logvar]``."""

    config: IVVAEConfig

    @nn.compact
    def __call__(self, video: jax.Array, cache: Any = None) -> tuple[jax.Array, Any]:
        """``[B, T, H, W, C] -> [B, t, h, w, 2z]`` float32, and the cache."""
        c, tape = self.config, Tape(self, cache)
        x = tape(video, conv3(c, c.widths[0], 0, "conv1"))
        for level, width in enumerate(c.widths):
            before, time = x, level in c.temporal_down
            ops = [c.op("res", level, width)] * c.blocks
            if level < c.last:
                ops.append(c.op("down", level, width, time=time))
            for step in make_steps(c, ops, f"downsamples_{level}"):
                x = tape(x, step.module)
            if level < c.last:
                x = x + wan_down_shortcut(before, width, time=time, first=cache is None)
            else:
                x = x + group_mean(before, width)
        x = tape.middle(c, x)
        x = nn.silu(SplitNorm(1, c.dtype, name="head_0")(x))
        x = tape(x, conv3(c, 2 * c.latent_channels, c.last, "head_2"))
        # The latent is stored, so its last product is computed in float32.
        return pointwise(c, 2 * c.latent_channels, "quant", dtype=jnp.float32)(x), tape.cache


class WanDecoder(nn.Module):
    """Latent to video, pixels gathered into ``features`` channels."""

    config: IVVAEConfig
    features: int

    @nn.compact
    def __call__(self, latent: jax.Array, cache: Any = None) -> tuple[jax.Array, Any]:
        """``[B, t, h, w, z] -> [B, T, H, W, features]`` float32, and the cache."""
        c, tape = self.config, Tape(self, cache)
        x = pointwise(c, c.latent_channels, "post_quant", dtype=jnp.float32)(latent)
        x = tape(x, conv3(c, c.widths[-1], c.last, "conv1"))
        x = tape.middle(c, x)
        for number, level in enumerate(range(c.last, -1, -1)):
            before, width, time = x, c.widths[level], level - 1 in c.temporal_down
            ops = [c.op("res", level, width)] * (c.blocks + 1)
            if level > 0:
                ops.append(c.op("up", level, width, time=time))
            for step in make_steps(c, ops, f"upsamples_{number}"):
                x = tape(x, step.module)
            if level > 0:
                x = x + wan_up_shortcut(before, width, time=time, first=cache is None)
        x = nn.silu(SplitNorm(1, c.dtype, name="head_0")(x))
        x = tape(x, conv3(c, self.features, 0, "head_2", dtype=jnp.float32))
        return x.astype(jnp.float32), tape.cache


def wan_down_shortcut(x: jax.Array, features: int, *, time: bool, first: bool) -> jax.Array:
    """Means over runs of pixels (and frames) gathered into channels.

    Frame 0 of a video is paired with zeros before it, not with itself as ``layers.resample`` has
    it: half of its channels are those of the missing frame.

    Args:
      x: ``[B, T, H, W, C]``; T = 1 + 2m at the start of a stream (``first``), else 2m, with time.
      features: output channels; must divide 4C (8C with time).
      time: halve the frame count too.
      first: ``x`` starts the stream.

    Returns:
      ``[B, T', H/2, W/2, features]``.
    """
    if not time:
        return down_shortcut(x, features)
    if first:
        x = jnp.concatenate([jnp.zeros_like(x[:, :1]), x], axis=1)
    return group_mean(space_to_channel(x, True, _ORDER), features)


def wan_up_shortcut(x: jax.Array, features: int, *, time: bool, first: bool) -> jax.Array:
    """Repeated channels moved to pixels (and frames); of frame 0 the later copy stays.

    Args:
      x: ``[B, t, h, w, C]``; C must divide 4 (8 with time) times ``features``.
      features: output channels.
      time: double the frame count too (1 + m -> 1 + 2m at the start of a stream).
      first: ``x`` starts the stream.

    Returns:
      ``[B, T, 2h, 2w, features]``.
    """
    if not time:
        return up_shortcut(x, features)
    y = channel_to_space(repeat_channels(x, 8 * features), True, _ORDER)
    return y[:, 1:] if first else y
