"""Encoder and decoder of the DC-AE family (DC-AE; FSVideo sections 2.1 and 2.2).

Stage ``i`` works at ``H / 2^i``. Parameter paths follow the published checkpoints:
``down_blocks_{i}_{j}`` with the down operation last, ``up_blocks_{i}_{j}`` with the up operation
first (``j = 0``, so the innermost stage counts from 0 and the others from 1).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vidlatent.dist.rules import constrain
from vidlatent.layers.blocks import EfficientViTBlock, ResBlock
from vidlatent.layers.conv import Conv
from vidlatent.layers.norm import ChannelNorm
from vidlatent.layers.resample import group_mean, repeat_channels
from vidlatent.layers.temporal import TimeRule
from vidlatent.layers.updown import Down, Up
from vidlatent.typing import VidlatentError

__all__ = ["Coder", "Decoder", "Encoder"]

_AXES = ("batch", "time", "height", "width", "channel")


@dataclasses.dataclass(frozen=True)
class Coder:
    """One side's hyper-parameters; the fields are documented in ``autoencoder.Autoencoder``."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    block_types: tuple[str, ...]
    multiscales: tuple[tuple[int, ...], ...]
    head_dim: int
    temporal_kernel: int
    temporal_down: tuple[int, ...]
    resample: str
    up_form: str
    order: str
    time: str
    time_padding: str
    norm_eps: float
    norm_affine: bool
    norm_scale: float
    remat: bool
    implementation: str
    dtype: Any

    def rule(self, stage: int) -> TimeRule:
        """Temporal neighbourhood at a stage; a group is one latent frame's worth of frames."""
        group = 2 ** sum(index >= stage for index in self.temporal_down)
        return TimeRule(self.time, group, self.time_padding)

    def conv(self, features: int, stage: int, name: str, dtype: Any = None) -> Conv:
        return Conv(
            features,
            (self.temporal_kernel, 3, 3),
            time=self.rule(stage),
            dtype=dtype or self.dtype,
            implementation=self.implementation,
            name=name,
        )

    def block(self, stage: int, name: str) -> nn.Module:
        kind = self.block_types[stage]
        common = {
            "temporal_kernel": self.temporal_kernel,
            "rule": self.rule(stage),
            "norm_eps": self.norm_eps,
            "norm_affine": self.norm_affine,
            "norm_scale": self.norm_scale,
            "dtype": self.dtype,
            "implementation": self.implementation,
            "name": name,
        }
        if kind == "res":
            return self._kept(ResBlock)(**common)
        if kind == "evit":
            kernels = self.multiscales[stage]
            return self._kept(EfficientViTBlock)(self.head_dim, kernels, **common)
        raise VidlatentError(f"block type {kind!r} of stage {stage}: use 'res' or 'evit'.")

    def down(self, stage: int, name: str, shortcut: bool = True) -> nn.Module:
        """The operation from ``stage`` to ``stage + 1``."""
        return self._kept(Down)(
            self.widths[stage + 1], kind=self.resample, **self._resampling(stage, name, shortcut)
        )

    def up(self, stage: int, name: str, features: int = 0, shortcut: bool = True) -> nn.Module:
        """The operation from ``stage + 1`` to ``stage``."""
        return self._kept(Up)(
            features or self.widths[stage],
            kind=self.resample,
            form=self.up_form,
            **self._resampling(stage, name, shortcut),
        )

    def _resampling(self, stage: int, name: str, shortcut: bool) -> dict[str, Any]:
        return {
            "time": stage in self.temporal_down,
            "temporal_kernel": self.temporal_kernel,
            "shortcut": shortcut,
            "order": self.order,
            "rule": self.rule(stage),
            "dtype": self.dtype,
            "implementation": self.implementation,
            "name": name,
        }

    def _kept(self, module: Any) -> Any:
        """With ``remat`` only a block's input is kept for the backward pass."""
        return nn.remat(module, prevent_cse=True) if self.remat else module


class _Tape:
    """Applies named modules in turn, threading the cache and pinning layouts between them."""

    def __init__(self, cache: Any):
        self._old = cache
        self.cache: dict[str, Any] = {}

    def __call__(self, module: nn.Module, x: jax.Array) -> jax.Array:
        name = module.name
        x, self.cache[name] = module(x, None if self._old is None else self._old[name])
        return constrain(x, _AXES)


class Encoder(nn.Module):
    """Video to latent mean."""

    coder: Coder
    latent_channels: int

    @nn.compact
    def __call__(
        self, video: jax.Array, cache: Any = None
    ) -> tuple[jax.Array, Any, dict[str, jax.Array]]:
        """``[B, T, H, W, 3] ->`` latent ``[B, t, h, w, c]`` float32, cache, intermediate values.

        The intermediate values, for features and tests: ``conv_in``, ``stage_{i}`` (after the
        residual blocks), ``block_{i}`` (after the down operation too).
        """
        c = self.coder
        step, seen = _Tape(cache), {}
        last = len(c.widths) - 1
        if c.depths[0] > 0:
            x = step(c.conv(c.widths[0], 0, "conv_in"), video)
        else:
            x = step(c.down(0, "conv_in", shortcut=False), video)
        seen["conv_in"] = x
        for stage, depth in enumerate(c.depths):
            for j in range(depth):
                x = step(c.block(stage, f"down_blocks_{stage}_{j}"), x)
            seen[f"stage_{stage}"] = x
            if stage < last and depth > 0:
                x = step(c.down(stage, f"down_blocks_{stage}_{depth}"), x)
            seen[f"block_{stage}"] = x
        # The ends are float32: the latent is stored, and the output is quantised to 8 bits.
        x = x.astype(jnp.float32)
        latent = step(c.conv(self.latent_channels, last, "conv_out", jnp.float32), x)
        return latent + group_mean(x, self.latent_channels), step.cache, seen


class Decoder(nn.Module):
    """Latent to video."""

    coder: Coder
    out_channels: int = 3

    @nn.compact
    def __call__(
        self, latent: jax.Array, cache: Any = None
    ) -> tuple[jax.Array, Any, dict[str, jax.Array]]:
        """``[B, t, h, w, c] ->`` video ``[B, T, H, W, 3]`` float32, cache, ``block_{i}`` values."""
        c = self.coder
        step, seen = _Tape(cache), {}
        last = len(c.widths) - 1
        x = step(c.conv(c.widths[last], last, "conv_in"), latent)
        x = x + repeat_channels(latent, c.widths[last]).astype(x.dtype)
        for stage in range(last, -1, -1):
            depth, offset = c.depths[stage], 0
            if stage < last and depth > 0:
                x = step(c.up(stage, f"up_blocks_{stage}_0"), x)
                offset = 1
            for j in range(depth):
                x = step(c.block(stage, f"up_blocks_{stage}_{j + offset}"), x)
            seen[f"block_{stage}"] = x
        norm = ChannelNorm(c.norm_eps, c.norm_affine, 1.0, c.dtype, name="norm_out")
        x = nn.relu(norm(x)).astype(jnp.float32)
        if c.depths[0] > 0:
            x = step(c.conv(self.out_channels, 0, "conv_out", jnp.float32), x)
        else:
            x = step(c.up(0, "conv_out", self.out_channels, shortcut=False), x)
        return x.astype(jnp.float32), step.cache, seen
