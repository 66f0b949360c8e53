"""Resampling of the IV-VAE family: each branch has its own convolution (IV-VAE 3).

The first frame of a video is never resampled in time. With two branches nothing crosses a group:
half A keeps (repeats) key frames, half B merges (splits) pairs of frames. With one branch the
temporal convolutions are causal with three taps, as in the inflated baseline.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vidlatent.errors import VidlatentError
from vidlatent.kernels.conv3d import conv3d
from vidlatent.kernels.upconv import interleave, subpixel_conv
from vidlatent.layers.resample import double_frames, nearest
from vidlatent.models.tokenizers.ivvae.blocks import Weights
from vidlatent.models.tokenizers.ivvae.variants import IVVAEConfig, Op

__all__ = ["Down", "Up"]

_PAD = ((1, 1), (1, 1))
_NAMES = {1: ("resample",), 2: ("resample_2d", "resample_3d")}


class Down(nn.Module):
    """Halve H and W, then T where ``op.time``: 1 + 2m frames -> 1 + m at the start, 2m -> m."""

    config: IVVAEConfig
    op: Op

    @nn.compact
    def __call__(self, x: jax.Array, cache: Any = None) -> tuple[jax.Array, Any]:
        """``[B, T, H, W, C] -> [B, T', H/2, W/2, C]`` and the cache."""
        c, width = self.config, self.op.features
        parts = []
        for name, half in zip(_NAMES[c.variant.branches], _halves(x, c), strict=True):
            kernel, bias = Weights((1, 3, 3, width, width), c.dtype, name=name)()
            # Zeros to the right and below only: output i is centred on input 2i + 1.
            pad = ((0, 0), (0, 1), (0, 1))
            y = conv3d(half, kernel, (1, 2, 2), pad, implementation=c.implementation)
            parts.append(y + bias)
        if not self.op.time:
            return jnp.concatenate(parts, axis=-1), {}
        if c.variant.branches == 1:
            return self._causal(parts[0], cache)
        kernel, bias = Weights((2, 1, 1, width, width), c.dtype, name="time_conv")()
        lead = 1 if cache is None else 0
        a, b = (half[:, lead:] for half in parts)
        # Of each pair half A keeps the first frame, half B a mixture.
        early = jnp.einsum("...i,io->...o", b[:, ::2], kernel[0, 0, 0])
        late = jnp.einsum("...i,io->...o", b[:, 1::2], kernel[1, 0, 0])
        y = jnp.concatenate([a[:, ::2], early + late + bias], axis=-1)
        # Frame 0 of a video is never resampled in time: it goes first, as it is.
        return jnp.concatenate([jnp.concatenate(parts, axis=-1)[:, :lead], y], axis=1), {}

    def _causal(self, x: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
        """Windows of the last frame before a pair and the pair itself."""
        width = self.op.features
        kernel, bias = Weights((3, 1, 1, width, width), x.dtype, name="time_conv")()
        # At the start frame 0 itself is the frame before the first pair.
        window = x if cache is None else jnp.concatenate([cache["last"].astype(x.dtype), x], axis=1)
        taps = [window[:, k : window.shape[1] - 2 + k : 2] for k in range(3)]
        y = sum(jnp.einsum("...i,io->...o", t, kernel[k, 0, 0]) for k, t in enumerate(taps)) + bias
        if cache is None:
            y = jnp.concatenate([x[:, :1], y], axis=1)
        return y, {"last": x[:, -1:]}


class Up(nn.Module):
    """Double T where ``op.time``, then H and W, to half the channels."""

    config: IVVAEConfig
    op: Op

    @nn.compact
    def __call__(self, x: jax.Array, cache: Any = None) -> tuple[jax.Array, Any]:
        """``[B, T, H, W, C] -> [B, T', 2H, 2W, C/2]`` and the cache."""
        c, x, new = self.config, x.astype(self.config.dtype), {}
        parts = _halves(x, c)
        if self.op.time and c.variant.branches == 1:
            parts, new = self._causal(x, cache)
        elif self.op.time:
            width = parts[1].shape[-1]
            kernel, bias = Weights((width, 2 * width), c.dtype, name="time_conv")()
            lead = 1 if cache is None else 0
            # [B, T, H, W, C] -> [B, T, H, W, 2C]: two frames from each but the first of a video.
            pairs = jnp.einsum("...i,io->...o", parts[1][:, lead:], kernel) + bias
            b = jnp.concatenate([parts[1][:, :lead], _split_frames(pairs)], axis=1)
            parts = [double_frames(parts[0], cache is None), b]
        outputs = []
        for name, half in zip(_NAMES[c.variant.branches], parts, strict=True):
            shape = (1, 3, 3, half.shape[-1], self.op.features)
            kernel, bias = Weights(shape, c.dtype, name=name)()
            outputs.append(self._double_space(half, kernel) + bias)
        return jnp.concatenate(outputs, axis=-1), new

    def _causal(self, x: jax.Array, cache: Any) -> tuple[list[jax.Array], Any]:
        """Three taps over the frames after the first, which counts as zeros for the others."""
        width = x.shape[-1]
        kernel, bias = Weights((3, 1, 1, width, 2 * width), x.dtype, name="time_conv")()
        lead = 1 if cache is None else 0
        before = jnp.zeros_like(x[:, [0, 0]]) if cache is None else cache["last"].astype(x.dtype)
        window = jnp.concatenate([before, x[:, lead:]], axis=1)
        taps = [window[:, k : window.shape[1] - 2 + k] for k in range(3)]
        y = sum(jnp.einsum("...i,io->...o", t, kernel[k, 0, 0]) for k, t in enumerate(taps)) + bias
        y = jnp.concatenate([x[:, :lead], _split_frames(y)], axis=1)
        return [y], {"last": window[:, -2:]}

    def _double_space(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        c = self.config

        def conv(part, pad):
            return conv3d(x, part, (1, 1, 1), ((0, 0), *pad), implementation=c.implementation)

        if c.up_form == "subpixel":
            return subpixel_conv(conv, kernel)
        if c.up_form != "nearest":
            raise VidlatentError(f"up form {c.up_form!r}: use 'nearest' or 'subpixel'.")
        x = nearest(x)
        return conv(kernel, _PAD)


def _halves(x: jax.Array, c: IVVAEConfig) -> list[jax.Array]:
    return jnp.split(x, c.variant.branches, axis=-1)


def _split_frames(x: jax.Array) -> jax.Array:
    """``[B, T, H, W, 2C] -> [B, 2T, H, W, C]``: the first C channels are the earlier frame."""
    return interleave(*jnp.split(x, 2, axis=-1), axis=1)
