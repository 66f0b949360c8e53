"""Layers of MAGVIT-v2 and ProMAG: causal convolutions, residual blocks, resampling, adaptive norm.

A cache is None at the start of a stream, afterwards a dict with the last input frames of each
convolution.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from vidlatent.errors import VidlatentError
from vidlatent.layers.dense import Pointwise, fan_in
from vidlatent.layers.norms import Affine, GroupNorm, apply_affine
from vidlatent.layers.resample import double_frames, nearest
from vidlatent.layers.temporal import TimeRule, convolve, view_frames
from vidlatent.models.tokenizers.promag.tiling import LayerTiles, map_tiles

__all__ = [
    "AdaNorm",
    "CausalConv",
    "ProMAGConfig",
    "ResBlock",
    "Stride",
    "Up",
    "check_choice",
    "make_norm",
    "resample_latent",
]

Stride = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class ProMAGConfig:
    """Hyper-parameters shared by the layers; fields documented in ``model.ProMAG``.

    Attributes:
      widths: channels per level, outermost first.
      strides: ``(st, sh, sw)`` of the operation that leaves each level but the last.
      taps: temporal kernel size, 3, or 1 for images.
      rows: height of the kernels, 3, or 1 for lines.
      tiles: how the stride-1 convolutions are tiled; None: not at all.
    """

    widths: tuple[int, ...]
    strides: tuple[Stride, ...]
    blocks: int
    groups: int
    norm_eps: float
    norm_kind: str
    norm_axes: str
    taps: int
    time_padding: str
    drop_mode: str
    stem: str
    decoder_ada: str
    remat: bool
    implementation: str
    dtype: Any
    rows: int = 3
    tiles: LayerTiles | None = None

    @property
    def rule(self) -> TimeRule:
        return TimeRule("causal", padding=self.time_padding)

    @property
    def factor(self) -> int:
        """Temporal compression."""
        return math.prod(stride[0] for stride in self.strides)


def make_norm(config: ProMAGConfig, name: str, affine: bool = True) -> GroupNorm:
    """The family's norm."""
    return GroupNorm(
        config.groups, config.norm_eps, config.norm_kind, config.norm_axes, affine, name=name
    )


def repeated(copies: int) -> Callable[..., jax.Array]:
    """Initialiser that repeats its output channels ``copies`` times, so that upsampling repeats."""

    def init(key, shape, dtype=jnp.float32):
        kernel = fan_in(key, (*shape[:-1], shape[-1] // copies), dtype)
        return jnp.tile(kernel, copies)

    return init


class CausalConv(nn.Module):
    """3x3x3 convolution that sees no later frame, on the normalised and activated input.

    Attributes:
      features: output channels.
      strides: ``(st, sh, sw)``.
      up: ``(rt, rh, rw)``: how many blocks of output channels become frames, rows and columns.
      drop: with ``up`` in time, leave out the first frame of a stream.
      tiled: follow ``config.tiles``.
    """

    config: ProMAGConfig
    features: int
    strides: Stride = (1, 1, 1)
    up: Stride = (1, 1, 1)
    drop: bool = False
    use_bias: bool = True
    tiled: bool = False
    dtype: Any = None
    kernel_init: Callable[..., jax.Array] = fan_in

    @nn.compact
    def __call__(
        self, x: jax.Array, cache: jax.Array | None = None, affine: Affine | None = None, first=True
    ) -> tuple[jax.Array, jax.Array | None]:
        """``[B, T, H, W, C] -> [B, T', H', W', features]`` and the cache.

        Args:
          x: input.
          cache: last input frames, None at the start.
          affine: coefficients of the norm before; SiLU follows it.
          first: the stream starts here.
        """
        p = self.config
        dtype = self.dtype or p.dtype
        copies = math.prod(self.up)
        shape = (p.taps, p.rows, 3, x.shape[-1], self.features * copies)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32).astype(dtype)
        bias = 0
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, shape[-1:], jnp.float32)
            bias = bias.astype(dtype)

        def activated(part):
            if affine is None:
                return part.astype(dtype)
            return nn.silu(apply_affine(part, affine, dtype))

        def finish(view, pad):
            # A line has no row above or below to pad for.
            pads = ((pad, pad) if p.rows > 1 else (0, 0), (pad, pad))
            y = convolve(view, kernel, self.strides, pads, 1, p.implementation) + bias
            y = rearrange(
                y,
                # Offsets slowest, channels fastest, as `repeated` lays out the kernel.
                "b t h w (rt rh rw c) -> b (t rt) (h rh) (w rw) c",
                **dict(zip(("rt", "rh", "rw"), self.up, strict=True)),
            )
            return y[:, 1:] if self.drop and first and self.up[0] > 1 else y

        tiles = p.tiles if self.tiled else None
        if tiles is None or max(x.shape[2:4]) <= tiles.size:
            # Norm and SiLU come before the padding: what pads must be zero after them.
            view, kept = view_frames(activated(x), cache, p.rule, p.taps, self.strides[0])
            return finish(view, 1), kept

        def one(cuts, inside, pad):
            # Norm and SiLU turn the zeros beyond the map into something else.
            part = jnp.where(inside, activated(cuts[0]), 0)
            past = cuts[1] if len(cuts) > 1 else None
            return finish(view_frames(part, past, p.rule, p.taps)[0], pad)

        # The cache is cut like the map, since a tile needs its own past.
        y = map_tiles(one, (x,) if cache is None else (x, cache), tiles, 1, self.up[1])
        # The next cache needs only the last frames.
        last = activated(x)[:, -max(1, p.taps - 1) :]
        return y, view_frames(last, cache, p.rule, p.taps)[1]


class ResBlock(nn.Module):
    """Norm, SiLU, convolution, twice; plus the input (through a 1x1x1 if the width changes)."""

    config: ProMAGConfig
    features: int
    tiled: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, cache: Any = None) -> tuple[jax.Array, Any]:
        """``[B, T, H, W, C] -> [B, T, H, W, features]`` and the cache."""
        p, new, h = self.config, {}, x
        for i in (1, 2):
            conv = CausalConv(p, self.features, use_bias=False, tiled=self.tiled, name=f"conv{i}")
            affine = make_norm(p, f"norm{i}")(h)
            old = None if cache is None else cache[conv.name]
            h, new[conv.name] = conv(h, old, affine, cache is None)
        if x.shape[-1] != self.features:
            x = Pointwise(self.features, False, p.dtype, name="shortcut")(x)
        return x + h, new


class Up(nn.Module):
    """Convolution to more channels, which become frames, rows and columns (depth to space).

    Doubling time, each layer of ProMAG leaves out the first frame of the stream, so that 1 + m
    frames become 1 + 2m; with ``drop_mode='final'`` the copies stay and go through the rest of the
    decoder.
    """

    config: ProMAGConfig
    factors: Stride
    tiled: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, cache: Any = None) -> tuple[jax.Array, Any]:
        """``[B, T, H, W, C] -> [B, T', H', W', C]`` and the cache."""
        conv = CausalConv(
            self.config,
            x.shape[-1],
            up=self.factors,
            drop=self.config.drop_mode == "each",
            tiled=self.tiled,
            kernel_init=repeated(math.prod(self.factors)),
            name="conv",
        )
        y, kept = conv(x, None if cache is None else cache["conv"], None, cache is None)
        return y, {"conv": kept}


class AdaNorm(nn.Module):
    """Norm whose scale and shift come from another map (MAGVIT-v2; ProMAG 3.2).

    ``norm(x) * (1 + gamma) + beta``; in the pooled form of the decoder ``norm(x) * gamma + beta``.

    Attributes:
      mode: ``'position'`` (from the map at each place) or ``'pooled'``.
      pool: what is pooled: ``'frame'`` (the mean of each frame) or ``'clip'`` (gamma from the
        standard deviation, beta from the mean, over all frames).
      scale: size of the initial kernel, relative to the usual.
    """

    config: ProMAGConfig
    mode: str = "position"
    pool: str = "frame"
    scale: float = 1.0

    @nn.compact
    def __call__(
        self, x: jax.Array, condition: jax.Array, expand: Callable[[jax.Array], jax.Array]
    ) -> jax.Array:
        """``[B, T, H, W, C]``, same shape out.

        Args:
          x: input.
          condition: ``[B, t, h, w, D]``.
          expand: repeats a map of the condition's grid (or ``[B, t, 1, 1, C]``) to that of ``x``.
        """
        p, channels = self.config, x.shape[-1]
        # An initialiser takes a variance; `scale` is a standard deviation.
        init = nn.initializers.variance_scaling(self.scale**2, "fan_in", "truncated_normal")
        scale, shift = make_norm(p, "norm", affine=False)(x)
        h = apply_affine(x, (scale, shift), p.dtype)
        if self.mode == "pooled" and self.pool == "clip":
            seen = condition.astype(jnp.float32)
            over = {"axis": (1, 2, 3), "keepdims": True}
            dense = [Pointwise(channels, True, p.dtype, init, name=n) for n in ("gamma", "beta")]
            # Statistics of the whole clip: [B, 1, 1, 1, D].
            gamma, beta = dense[0](jnp.std(seen, **over)), dense[1](jnp.mean(seen, **over))
            return gamma * h + beta
        if self.mode == "pooled":
            condition = jnp.mean(condition, axis=(2, 3), keepdims=True)
        # Repeat the map after the product: the same result for less work.
        both = Pointwise(2 * channels, True, p.dtype, init, name="affine")(condition)
        gamma, beta = jnp.split(expand(both), 2, axis=-1)
        return h * (1 + gamma) + beta


def resample_latent(x: jax.Array, factors: Stride, first: bool, drop: bool) -> jax.Array:
    """Repeat a map as ``Up`` of the same factors changes its grid.

    ``[B, t, h, w, C]`` -> doubled where ``factors`` says so; ``drop`` leaves out the first frame
    of a stream when time doubles.
    """
    if factors[0] == 2:
        x = double_frames(x, first and drop)
    # A pooled map has one position, which broadcasts.
    if factors[2] == 2 and x.shape[2:4] != (1, 1):
        x = nearest(x) if factors[1] == 2 else jnp.repeat(x, 2, axis=3)
    return x


def check_choice(name: str, value: str, *choices: str) -> None:
    """Raise ``VidlatentError`` unless ``config.model.<name>`` has one of the values."""
    if value not in choices:
        raise VidlatentError(f"config.model.{name} {value!r}: use {', '.join(map(repr, choices))}.")
