"""Encoder and decoder of the DC-AE family (DC-AE; FSVideo sections 2.2.1 and 2.2.3).

Stage ``i`` works at ``H / 2^i``. Parameter paths follow the published checkpoints:
``down_blocks_{i}_{j}`` with the down operation last, ``up_blocks_{i}_{j}`` with the up operation
first (``j = 0``, so the innermost stage counts from 0 and the others from 1).

Either side can be run in two parts, split after a stage: the inner stages attend over the whole
frame, the outer ones are convolutions alone and may be given a crop (see ``reach``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vidlatent.errors import VidlatentError
from vidlatent.layers.conv import Conv
from vidlatent.layers.norms import ChannelNorm
from vidlatent.layers.resample import group_mean, repeat_channels
from vidlatent.layers.temporal import TimeRule
from vidlatent.models.tokenizers.fsvideo.blocks import EfficientViTBlock, ResBlock
from vidlatent.models.tokenizers.fsvideo.first_frame_attention import FirstFrameAttention
from vidlatent.models.tokenizers.fsvideo.noise import NoiseField
from vidlatent.models.tokenizers.fsvideo.resample import Down, Up
from vidlatent.parallel.sharding import constrain

__all__ = ["FSAEConfig", "FSAEDecoder", "FSAEEncoder"]

_AXES = ("batch", "time", "height", "width", "channel")


@dataclasses.dataclass(frozen=True)
class FSAEConfig:
    """One side's hyper-parameters; the fields are documented in ``model.Autoencoder``."""

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
    norm_kinds: tuple[str, ...] = ()
    activations: tuple[str, ...] = ()
    noise_weight: float = 0.0
    noise_stages: tuple[int, ...] = ()
    cross_stages: tuple[int, ...] = ()
    cross: str = "softmax"
    cross_head_dim: int = 64
    cross_window: int = 0
    cross_rotary: bool = True

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
            return self._kept(ResBlock)(
                norm_kind=self.norm_kinds[stage] if self.norm_kinds else "rms",
                activation=self.activations[stage] if self.activations else "silu",
                noise_weight=self.noise_weight if stage in self.noise_stages else 0.0,
                **common,
            )
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

    def attention(self, stage: int, name: str) -> nn.Module:
        """Cross-attention to the features of frame 0."""
        return self._kept(FirstFrameAttention)(
            self.cross_head_dim,
            self.cross,
            # Windows only on the largest map: attention over the whole of the inner maps is cheap.
            self.cross_window if stage == min(self.cross_stages) else 0,
            self.cross_rotary,
            self.norm_eps,
            self.dtype,
            name=name,
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

    def __call__(self, module: nn.Module, x: jax.Array, *more: Any) -> jax.Array:
        name = module.name
        old = None if self._old is None else self._old[name]
        x, self.cache[name] = module(x, old, *more)
        return constrain(x, _AXES)


class FSAEEncoder(nn.Module):
    """Video to latent mean."""

    config: FSAEConfig
    latent_channels: int

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        cache: Any = None,
        begin: int | None = None,
        end: int | None = None,
    ) -> tuple[jax.Array, Any, dict[str, jax.Array]]:
        """``[B, T, H, W, 3] ->`` latent ``[B, t, h, w, c]`` float32, cache, intermediate values.

        The intermediate values, for features and tests: ``conv_in``, ``stage_{i}`` (after the
        residual blocks), ``block_{i}`` (after the down operation too).

        Args:
          x: video; with ``begin`` the output of that block.
          cache: the previous chunk's.
          begin: start after this block instead of from pixels.
          end: stop after this block and return its output instead of the latent.
        """
        c = self.config
        step, seen = _Tape(cache), {}
        last = len(c.widths) - 1
        if begin is None:
            # With no block at stage 0 the first down operation replaces conv_in (f64 and f128).
            if c.depths[0] > 0:
                x = step(c.conv(c.widths[0], 0, "conv_in"), x)
            else:
                x = step(c.down(0, "conv_in", shortcut=False), x)
            seen["conv_in"] = x
        for stage in range(0 if begin is None else begin + 1, last + 1):
            depth = c.depths[stage]
            for j in range(depth):
                x = step(c.block(stage, f"down_blocks_{stage}_{j}"), x)
            # Before the down operation: this is what the decoder's attention to frame 0 reads.
            seen[f"stage_{stage}"] = x
            if stage < last and depth > 0:
                x = step(c.down(stage, f"down_blocks_{stage}_{depth}"), x)
            seen[f"block_{stage}"] = x
            if stage == end:
                return x, step.cache, seen
        # The ends are float32: the latent is stored, and the output is quantised to 8 bits.
        x = x.astype(jnp.float32)
        latent = step(c.conv(self.latent_channels, last, "conv_out", jnp.float32), x)
        # The shortcut into the latent: means over runs of channels (DC-AE).
        return latent + group_mean(x, self.latent_channels), step.cache, seen


class FSAEDecoder(nn.Module):
    """Latent to video."""

    config: FSAEConfig
    out_channels: int = 3

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        cache: Any = None,
        *,
        features: Mapping[int, jax.Array] | None = None,
        noise: NoiseField | None = None,
        begin: int | None = None,
        end: int | None = None,
        origin: tuple[Any, Any] = (0, 0),
    ) -> tuple[jax.Array, Any, dict[str, jax.Array]]:
        """``[B, t, h, w, c] ->`` video ``[B, T, H, W, 3]`` float32, cache, ``block_{i}`` values.

        Args:
          x: latent; with ``begin`` the output of that block.
          cache: the previous chunk's.
          features: features of frame 0 by stage, never cropped; needed at the start of a stream if
            there is attention to frame 0.
          noise: keys of the injected noise; None for none.
          begin: start after this block instead of from the latent.
          end: stop after this block and return its output instead of the video.
          origin: row and column of ``x`` in the whole map, when it is a crop.
        """
        c = self.config
        step, seen = _Tape(cache), {}
        last = len(c.widths) - 1
        if begin is None:
            latent = x
            x = step(c.conv(c.widths[last], last, "conv_in"), latent)
            # The shortcut out of the latent: each channel is repeated (DC-AE).
            x = x + repeat_channels(latent, c.widths[last]).astype(x.dtype)
        for stage in range(last if begin is None else begin - 1, -1, -1):
            depth, offset = c.depths[stage], 0
            if stage < last and depth > 0:
                x = step(c.up(stage, f"up_blocks_{stage}_0"), x)
                offset = 1
                # Noise and windows count positions in the whole map, which has just doubled.
                origin = tuple(2 * place for place in origin)
            # After the up operation, so that frames and features of frame 0 are on one grid.
            if stage in c.cross_stages:
                kept = features[stage] if cache is None else None
                x = step(c.attention(stage, f"first_frame_attn_{stage}"), x, kept, origin)
            for j in range(depth):
                block = c.block(stage, f"up_blocks_{stage}_{j + offset}")
                x = step(block, x, *self._noise_at(stage, noise, origin))
            seen[f"block_{stage}"] = x
            if stage == end:
                return x, step.cache, seen
        # Scale 1 whatever norm_scale: 0 is for residual branches, here it would blank the video.
        norm = ChannelNorm(c.norm_eps, c.norm_affine, 1.0, c.dtype, name="norm_out")
        x = nn.relu(norm(x)).astype(jnp.float32)
        if c.depths[0] > 0:
            x = step(c.conv(self.out_channels, 0, "conv_out", jnp.float32), x)
        else:
            x = step(c.up(0, "conv_out", self.out_channels, shortcut=False), x)
        return x.astype(jnp.float32), step.cache, seen

    def _noise_at(self, stage, noise, origin):
        if noise is None or stage not in self.config.noise_stages:
            return ()
        if self.config.block_types[stage] != "res":
            return ()
        return (NoiseField(noise.keys, *origin),)
