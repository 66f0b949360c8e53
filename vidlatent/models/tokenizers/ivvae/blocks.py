"""Convolutions, norms, attention and residual blocks on two-branch channels.

Arrays hold ``branches * C`` channels: half A (key frames) first, then half B (motion). A cache is
None at the start of a stream, afterwards a dict with an entry for each 3x3x3 convolution: its last
input frame(s), or what these add to the next output. It is empty where nothing is remembered.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from vidlatent.layers.conv import Conv
from vidlatent.layers.dense import Pointwise, fan_in
from vidlatent.layers.temporal import TimeRule, convolve, view_frames
from vidlatent.models.tokenizers.ivvae.frame_attention import frame_attention
from vidlatent.models.tokenizers.ivvae.variants import IVVAEConfig, Op

__all__ = ["BranchAttention", "ResBlock", "SplitNorm", "ParallelDilated", "conv3", "pointwise"]

_PAD = ((1, 1), (1, 1))


class SplitNorm(nn.Module):
    """RMS norm of each branch by itself at each position, scaled by ``gamma`` (IV-VAE 3).

    ``x / max(|x_branch|, 1e-12) * sqrt(C) * gamma``: no mean, no bias. Statistics are float32.
    """

    branches: int = 2
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[..., branches * C]``, same shape out."""
        gamma = self.param("gamma", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        h = x.astype(jnp.float32).reshape(*x.shape[:-1], self.branches, -1)
        squares = jnp.sum(jnp.square(h), axis=-1, keepdims=True)
        # The released norm divides by max(|x|, 1e-12), here squared; C is that of one branch.
        h = h * lax.rsqrt(jnp.maximum(squares, 1e-24)) * math.sqrt(h.shape[-1])
        return (h.reshape(x.shape) * gamma).astype(self.dtype)


class Weights(nn.Module):
    """A kernel and a bias under their own name, in the compute dtype."""

    shape: tuple[int, ...]
    dtype: Any = jnp.float32
    kernel_init: Any = fan_in

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array]:
        kernel = self.param("kernel", self.kernel_init, self.shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, self.shape[-1:], jnp.float32)
        return kernel.astype(self.dtype), bias.astype(self.dtype)


class PairedConv(nn.Module):
    """KTC unit: half A by a 3x3 convolution per frame, half B by a 3x3x3 one; both read all.

    Attributes:
      features: output channels of one half.
      rule: causal, or the family's group rule (itself before frame 0, zeros after a group).
      volume_key: half A by a 3x3x3 convolution too.
      implementation: form of ``kernels.conv3d``; ``'auto'`` uses ``_shifted_outputs`` where it can.
    """

    features: int
    rule: TimeRule
    volume_key: bool = False
    dtype: Any = jnp.float32
    implementation: str = "auto"
    kernel_init: Any = fan_in

    @nn.compact
    def __call__(
        self, x: jax.Array, cache: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array | None]:
        """``[B, T, H, W, I] -> [B, T, H, W, 2 * features]`` and the cache."""
        x = x.astype(self.dtype)
        shape = (3, 3, 3, x.shape[-1], self.features)
        init = self.kernel_init
        key_name = "conv_3d_key" if self.volume_key else "conv_2d"
        key_taps = 3 if self.volume_key else 1
        key = Weights((key_taps, *shape[1:]), self.dtype, init, name=key_name)()
        motion = Weights(shape, self.dtype, init, name="conv_3d")()
        if self.implementation == "auto" and self.rule.kind == "group" and not self.volume_key:
            return self._shifted_outputs(x, cache, key, motion)
        view, kept = view_frames(x, cache, self.rule, 3)
        outputs = []
        for (kernel, bias), seen in ((key, view if self.volume_key else x), (motion, view)):
            y = convolve(seen, kernel, (1, 1, 1), _PAD, 1, self.implementation)
            outputs.append(y + bias)
        return jnp.concatenate(outputs, axis=-1), kept

    def _shifted_outputs(self, x, cache, key, motion):
        """The same by one 2-D convolution whose outputs, not inputs, are shifted between frames.

        It reads the input once; the usual form makes two shifted copies and convolves four times,
        and at 720p one array of a group takes 1.9 GB. The cache is what the last frame adds to the
        next one, if that is smaller than the last frame itself.
        """
        first, kernel = cache is None, motion[0]

        def conv(frames, kernel):
            return convolve(frames, kernel, (1, 1, 1), _PAD)

        # Per frame: half A; what it adds to half B of itself, the next frame and the one before.
        taps = jnp.concatenate([key[0], kernel[1:2], kernel[:1], kernel[2:]], axis=-1)
        a, now, past, ahead = jnp.split(conv(x, taps), 4, axis=-1)
        light = self.features < x.shape[-1]
        kept = past[:, -1:] if light else x[:, -1:]
        # The frame before frame 0 is a copy of frame 0.
        before = past[:, :1] if first else cache.astype(x.dtype)
        # The last frame itself was kept: compute now what it adds to this one.
        if not light and not first:
            before = conv(before, kernel[:1])
        past = jnp.concatenate([before, past[:, :-1]], axis=1)
        # A chunk ends with its group, so nothing beyond its last frame counts.
        ahead = jnp.concatenate([ahead[:, 1:], jnp.zeros_like(before)], axis=1)
        place = jnp.arange(x.shape[1]) - (1 if first else 0)
        # Frame 0, and the last frame of each group, see zeros in place of the next frame.
        inside = (place >= 0) & (place % self.rule.group != self.rule.group - 1)
        b = now + past + jnp.where(inside[None, :, None, None, None], ahead, 0)
        return jnp.concatenate([a + key[1], b + motion[1]], axis=-1), kept


class PairedPointwise(nn.Module):
    """KTC unit of kernel size 1."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        halves = (Pointwise(self.features, True, self.dtype, name=n) for n in _HALVES)
        return jnp.concatenate([half(x) for half in halves], axis=-1)


_HALVES = ("conv_2d", "conv_3d")


def conv3(
    c: IVVAEConfig,
    features: int,
    level: int,
    name: str,
    *,
    plane: bool = False,
    dtype: Any = None,
    kernel_init: Any = fan_in,
) -> nn.Module:
    """The family's 3x3 convolution: ``(x, cache) -> (y, cache)``, ``features`` per branch.

    Args:
      plane: per frame, joining both branches.
    """
    common = {
        "dtype": dtype or c.dtype,
        "implementation": c.implementation,
        "kernel_init": kernel_init,
        "name": name,
    }
    if c.variant.branches == 2 and not plane:
        volume = c.variant.key == "volume"
        return PairedConv(features, c.rule(level), volume, **common)
    taps = 1 if plane or c.variant.time == "none" else 3
    return Conv(features * c.variant.branches, (taps, 3, 3), time=c.rule(level), **common)


def pointwise(c: IVVAEConfig, features: int, name: str, plane: bool = False, dtype: Any = None):
    """The family's 1x1 convolution, ``features`` per branch."""
    dtype = dtype or c.dtype
    if c.variant.branches == 2 and not plane:
        return PairedPointwise(features, dtype, name=name)
    return Pointwise(features * c.variant.branches, True, dtype, name=name)


class ResBlock(nn.Module):
    """Norm, SiLU, convolution, twice; plus the input (through a 1x1 if the width changes)."""

    config: IVVAEConfig
    op: Op

    @nn.compact
    def __call__(self, x: jax.Array, cache: Any = None) -> tuple[jax.Array, Any]:
        """``[B, T, H, W, C] -> [B, T, H, W, C']``; the cache holds one entry a convolution."""
        c, op, new = self.config, self.op, {}
        h = x
        # Published names: 0 and 3 are the norms, 2 and 6 the convolutions of a torch Sequential.
        for at, init in ((0, fan_in), (3, _ending(c.residual_scale))):
            h = nn.silu(SplitNorm(c.variant.branches, c.dtype, name=f"residual_{at}")(h))
            name = f"residual_{2 * at or 2}"
            conv = conv3(c, op.features, op.level, name, plane=op.plane, kernel_init=init)
            h, new[name] = conv(h, None if cache is None else cache[name])
        if x.shape[-1] != op.features * c.variant.branches:
            x = pointwise(c, op.features, "shortcut", op.plane)(x)
        return x + h, new


def _ending(scale: float) -> Any:
    """Initialisation of the last kernel of a residual branch."""
    if scale == 0:
        return nn.initializers.zeros
    return nn.initializers.variance_scaling(scale**2, "fan_in", "truncated_normal")


class FrameAttention(nn.Module):
    """One head over all positions of one frame and one branch, with its residual."""

    dtype: Any = jnp.float32
    residual_scale: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[B, T, H, W, C]``, same shape out."""
        batch, time, height, width, channels = x.shape
        h = SplitNorm(1, self.dtype, name="norm")(x)
        kernel, bias = Weights((channels, 3 * channels), self.dtype, name="to_qkv")()
        # [B, T, H, W, C] -> [B T, H W, C]: every frame by itself.
        h = h.reshape(batch * time, height * width, channels)
        q, k, v = jnp.split(jnp.einsum("fni,io->fno", h, kernel) + bias, 3, axis=-1)
        h = frame_attention(q, k, v).reshape(x.shape)
        init = _ending(self.residual_scale)
        kernel, bias = Weights((channels, channels), self.dtype, init, name="proj")()
        return x + jnp.einsum("...i,io->...o", h, kernel) + bias


class BranchAttention(nn.Module):
    """Attention inside each frame, for each branch by itself (dual attention)."""

    config: IVVAEConfig

    @nn.compact
    def __call__(self, x: jax.Array, cache: Any = None) -> tuple[jax.Array, Any]:
        """``[B, T, H, W, C]``, same shape out; remembers nothing."""
        del cache
        c = self.config
        if c.variant.branches == 1:
            return FrameAttention(c.dtype, c.residual_scale, name="attention")(x), {}
        halves = zip(("Attention_2d", "Attention_3d"), jnp.split(x, 2, axis=-1), strict=True)
        parts = [
            FrameAttention(c.dtype, c.residual_scale, name=name)(half) for name, half in halves
        ]
        return jnp.concatenate(parts, axis=-1), {}


class ParallelDilated(nn.Module):
    """Parallel atrous convolutions (PAC): six views of growing reach, joined by a 1x1 (IV-VAE 3).

    Each view has all ``features``, half A's then half B's; they are joined half by half before the
    1x1. Dilation 0 stands for a 1x1 convolution.
    """

    features: int
    branches: int
    dilations: tuple[int, ...] = (0, 1, 3, 6, 9, 12)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[B, T, H, W, C] -> [B, T, H, W, features]``."""
        shape = x.shape[:-1]
        x = x.astype(self.dtype).reshape(-1, *x.shape[2:])
        views = []
        for reach in self.dilations:
            size = 3 if reach else 1
            weights = Weights(
                (1, size, size, x.shape[-1], self.features), self.dtype, name=f"PAC_{reach}"
            )
            kernel, bias = weights()
            y = lax.conv_general_dilated(
                x,
                kernel[0],
                (1, 1),
                # As much padding as dilation keeps the size.
                ((reach, reach),) * 2,
                rhs_dilation=(max(reach, 1),) * 2,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            # Cut by branch, so that views can be joined half by half, as the released 1x1 expects.
            views.append((y + bias).reshape(*y.shape[:-1], self.branches, -1))
        joined = jnp.concatenate(views, axis=-1).reshape(*shape, -1)
        return Pointwise(self.features, True, self.dtype, name="PAC_conv")(joined)
