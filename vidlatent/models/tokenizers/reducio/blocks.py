"""Convolutions, residual blocks, resampling and self-attention (Reducio, released code).

Arrays are ``[B, T, H, W, C]``; the content frame is a video of one frame whose kernels have one
temporal tap.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vidlatent.errors import VidlatentError
from vidlatent.kernels.attention import attention
from vidlatent.kernels.conv3d import conv3d
from vidlatent.kernels.upconv import subpixel_conv
from vidlatent.layers.resample import nearest
from vidlatent.models.tokenizers.reducio.variants import ReducioConfig
from vidlatent.spec import check_parts

__all__ = ["Convolution", "Dense", "Down", "ResBlock", "SelfAttention", "Up", "make_group_norm"]

GROUP_EPS = 1e-6
_SPACE = ((1, 1), (1, 1))


def make_group_norm(c: ReducioConfig, name: str) -> nn.GroupNorm:
    """Group norm over channels of a group, all frames and all positions together."""
    # use_fast_variance is off: E[x^2] - E[x]^2 loses digits where the mean is large.
    return nn.GroupNorm(
        c.groups, epsilon=GROUP_EPS, dtype=c.dtype, use_fast_variance=False, name=name
    )


def _uniform(bound: float):
    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Weights(nn.Module):
    """A kernel ``[..., I, O]`` and a bias, uniform within ``scale / sqrt(fan in)`` at first."""

    shape: tuple[int, ...]
    use_bias: bool = True
    scale: float = 1.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array | None]:
        # With scale 1 this is PyTorch's default, also for biases.
        init = _uniform(self.scale / math.sqrt(math.prod(self.shape[:-1])))
        kernel = self.param("kernel", init, self.shape, jnp.float32).astype(self.dtype)
        if not self.use_bias:
            return kernel, None
        bias = self.param("bias", init, self.shape[-1:], jnp.float32)
        return kernel, bias.astype(self.dtype)


class Dense(nn.Module):
    """The same matrix at every position."""

    features: int
    use_bias: bool = True
    scale: float = 1.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[..., I] -> [..., features]``."""
        weights = Weights((x.shape[-1], self.features), self.use_bias, self.scale, self.dtype)
        # Parameters lie directly under this module's name, as in the released files.
        nn.share_scope(self, weights)
        kernel, bias = weights()
        y = jnp.einsum("...i,io->...o", x.astype(self.dtype), kernel)
        return y if bias is None else y + bias


class Convolution(nn.Module):
    """Zero-padded convolution with bias.

    Attributes:
      features: output channels.
      kernel, strides: along T, H, W; kernels have 1 or 3 taps. Stride 1 pads both sides, stride 2
        the end only, so that output i is centred on input 2i + 1. A causal one pads the start of
        time instead.
    """

    config: ReducioConfig
    features: int
    kernel: tuple[int, int, int]
    strides: tuple[int, int, int] = (1, 1, 1)
    scale: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[B, T, H, W, I] -> [B, T', H', W', features]``."""
        c = self.config
        weights = Weights((*self.kernel, x.shape[-1], self.features), True, self.scale, c.dtype)
        nn.share_scope(self, weights)
        kernel, bias = weights()
        padding = [_padding(k, s) for k, s in zip(self.kernel, self.strides, strict=True)]
        if c.causal:
            padding[0] = (sum(padding[0]), 0)
        x = x.astype(c.dtype)
        return conv3d(x, kernel, self.strides, padding, implementation=c.implementation) + bias


def _padding(taps: int, stride: int) -> tuple[int, int]:
    if taps == 1:
        return (0, 0)
    return (1, 1) if stride == 1 else (0, 1)


def make_taps(c: ReducioConfig) -> tuple[int, int, int]:
    """Kernel of the network's ordinary convolutions."""
    return (3 if c.volume else 1, 3, 3)


class ResBlock(nn.Module):
    """Norm, swish, convolution, twice; plus the input (through a 1x1 where the width changes)."""

    config: ReducioConfig
    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[B, T, H, W, C] -> [B, T, H, W, features]``."""
        c = self.config
        h = Convolution(c, self.features, make_taps(c), name="conv1")(
            nn.silu(make_group_norm(c, "norm1")(x))
        )
        h = nn.silu(make_group_norm(c, "norm2")(h))
        h = Convolution(c, self.features, make_taps(c), scale=c.residual_scale, name="conv2")(h)
        if x.shape[-1] != self.features:
            x = Dense(self.features, dtype=c.dtype, name="nin_shortcut")(x)
        return x + h


class Down(nn.Module):
    """Halve time, space or both by one strided convolution without change of width."""

    config: ReducioConfig
    time: bool
    space: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        # An axis that is not halved has one tap: the released kernels are (1, 3, 3) or (3, 3, 3).
        kernel = tuple(3 if halved else 1 for halved in (self.time, self.space, self.space))
        strides = tuple(2 if halved else 1 for halved in (self.time, self.space, self.space))
        conv = Convolution(self.config, x.shape[-1], kernel, strides)
        nn.share_scope(self, conv)
        return conv(x)


class Up(nn.Module):
    """Repeat along time, space or both, then a convolution without change of width."""

    config: ReducioConfig
    time: bool
    space: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        # 3x3x3 in the released model even where space alone is doubled.
        taps = make_taps(c)
        weights = Weights((*taps, x.shape[-1], x.shape[-1]), dtype=c.dtype)
        nn.share_scope(self, weights)
        kernel, bias = weights()
        x = x.astype(c.dtype)
        if self.time:
            x = jnp.repeat(x, 2, axis=1)
        ends = (2, 0) if c.causal else _padding(taps[0], 1)

        def conv(part, pad):
            return conv3d(x, part, (1, 1, 1), (ends, *pad), implementation=c.implementation)

        if c.up_form not in ("nearest", "subpixel"):
            raise VidlatentError(
                f"config.model.up_form {c.up_form!r}: use 'nearest' or 'subpixel'."
            )
        if self.space and c.up_form == "subpixel":
            return subpixel_conv(conv, kernel) + bias
        if self.space:
            x = nearest(x)
        return conv(kernel, _SPACE) + bias


class SelfAttention(nn.Module):
    """Attention among all positions of all frames, with its residual.

    A map larger than ``window`` is cut into windows (in the released content encoder above
    2048x2048 pixels). The last windows are padded with zeros after the norm; as in the released
    code, the padding takes part with the biases as keys and values.
    """

    config: ReducioConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[B, T, H, W, C]``, same shape out."""
        c = self.config
        channels = x.shape[-1]
        check_parts("config.model.heads", c.heads, "the width", channels)
        h = make_group_norm(c, "norm")(x)
        # Video maps are never cut: the released code can cut the content frame's only.
        cut = not c.volume and h.shape[2] * h.shape[3] > math.prod(c.window) > 0
        if cut:
            size = h.shape[2:4]
            h, grid = into_windows(h, c.window)
        shape = h.shape
        h = h.reshape(shape[0], -1, channels)
        q, k, v = (
            Dense(channels, dtype=c.dtype, name=name)(h).reshape(*h.shape[:2], c.heads, -1)
            for name in "qkv"
        )
        # The plain form: a mesh may split the rows of a map, which fused kernels cannot follow.
        h = attention(q, k, v, implementation="xla").astype(c.dtype).reshape(shape)
        if cut:
            h = out_of_windows(h, grid)[:, :, : size[0], : size[1]]
        return x + Dense(channels, True, c.residual_scale, c.dtype, name="proj_out")(h)


def into_windows(x: jax.Array, window: tuple[int, int]) -> tuple[jax.Array, tuple[int, int]]:
    """``[B, T, H, W, C] -> [B * rows * columns, T, wh, ww, C]`` and ``(rows, columns)``.

    Zeros fill the last windows at the bottom and on the right.
    """
    batch, time, height, width, channels = x.shape
    grid = (-(-height // window[0]), -(-width // window[1]))
    fill = [
        (0, n * side - size) for n, side, size in zip(grid, window, (height, width), strict=True)
    ]
    x = jnp.pad(x, ((0, 0), (0, 0), *fill, (0, 0)))
    x = x.reshape(batch, time, grid[0], window[0], grid[1], window[1], channels)
    # [B, T, rows, wh, columns, ww, C] -> [B, rows, columns, T, wh, ww, C]
    x = x.transpose(0, 2, 4, 1, 3, 5, 6)
    return x.reshape(-1, time, *window, channels), grid


def out_of_windows(x: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Inverse of ``into_windows``, with the filling."""
    _, time, height, width, channels = x.shape
    # [B, rows, columns, T, wh, ww, C] -> [B, T, rows, wh, columns, ww, C]
    x = x.reshape(-1, *grid, time, height, width, channels).transpose(0, 3, 1, 4, 2, 5, 6)
    return x.reshape(-1, time, grid[0] * height, grid[1] * width, channels)
