"""Encoder and decoder of MAGVIT-v2 and ProMAG, without the 1x1x1 layers at the latent."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vidlatent.layers.dense import Pointwise
from vidlatent.layers.norms import apply_affine
from vidlatent.models.tokenizers.promag.blocks import (
    AdaNorm,
    CausalConv,
    ProMAGConfig,
    ResBlock,
    Stride,
    Up,
    make_norm,
    resample_latent,
)
from vidlatent.parallel.sharding import constrain

__all__ = ["Bottleneck", "FirstFrame", "ProMAGDecoder", "ProMAGEncoder", "Tape"]

_AXES = ("batch", "time", "height", "width", "channel")


class Tape:
    """Applies named modules in turn and threads their caches."""

    def __init__(self, config: ProMAGConfig, cache: Any, tiled: bool = False):
        self.config, self.tiled = config, tiled
        self.first = cache is None
        self._old = cache
        self.cache: dict[str, Any] = {}

    def __call__(self, module: nn.Module, x: jax.Array, *args: Any) -> jax.Array:
        name = module.name
        old = None if self.first else self._old[name]
        x, self.cache[name] = module(x, old, *args)
        return constrain(x, _AXES)

    def blocks(self, x: jax.Array, features: int, name: str) -> jax.Array:
        """A run of residual blocks."""
        kind = nn.remat(ResBlock, prevent_cse=True) if self.config.remat else ResBlock
        for i in range(self.config.blocks):
            x = self(kind(self.config, features, self.tiled, name=f"{name}_{i}"), x)
        return x

    def down(self, x: jax.Array, strides: Stride, name: str, init: Any = None) -> jax.Array:
        """A strided convolution of unchanged width."""
        given = {} if init is None else {"kernel_init": init}
        conv = CausalConv(self.config, x.shape[-1], strides, name=name, **given)
        return self(conv, x, None, self.first)

    def up(self, x: jax.Array, factors: Stride, name: str) -> jax.Array:
        kind = nn.remat(Up, prevent_cse=True) if self.config.remat else Up
        return self(kind(self.config, factors, self.tiled, name=name), x)


class ProMAGEncoder(nn.Module):
    """Video to features: levels of residual blocks, each but the last left by a strided conv."""

    config: ProMAGConfig

    @nn.compact
    def __call__(self, video: jax.Array, cache: Any = None) -> tuple[jax.Array, Any]:
        """``[B, T, H, W, 3] -> [B, t, h, w, C]`` (normalised and activated) and the cache."""
        p = self.config
        tape = Tape(p, cache)
        x = tape(CausalConv(p, p.widths[0], name="conv_in"), video, None, tape.first)
        for level, width in enumerate(p.widths):
            x = tape.blocks(x, width, f"level_{level}")
            if level < len(p.strides):
                x = tape.down(x, p.strides[level], f"down_{level}")
        x = tape.blocks(x, p.widths[-1], "middle")
        # The norm belongs to the encoder, so that only a 1x1x1 layer follows the sum of a grown
        # model.
        return nn.silu(apply_affine(x, make_norm(p, "norm_out")(x), p.dtype)), tape.cache


class ProMAGDecoder(nn.Module):
    """Features (or, with the 3x3x3 stem, the latent) to video."""

    config: ProMAGConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, latent: jax.Array | None = None, cache: Any = None
    ) -> tuple[jax.Array, Any]:
        """``[B, t, h, w, C] -> [B, T, H, W, 3]`` float32 and the cache.

        Args:
          x: what ``Bottleneck.post`` or the added blocks give; the latent with ``stem='conv3'``.
          latent: ``[B, t, h, w, z]`` for the adaptive norms, on the grid of ``x``.
          cache: of the previous chunk.
        """
        p = self.config
        # Only decoding is tiled (ProMAG 3.3).
        tape = Tape(p, cache, tiled=True)
        if p.stem == "conv3":
            x = tape(CausalConv(p, p.widths[-1], tiled=True, name="stem"), x, None, tape.first)
        x = tape.blocks(x, p.widths[-1], "middle")
        passed: list[Stride] = []
        for level in range(len(p.widths) - 1, -1, -1):
            if p.decoder_ada != "none":
                ada = AdaNorm(p, p.decoder_ada, "clip", name=f"ada_{level}")
                # The latent is repeated to this level's grid by the up steps made so far.
                x = ada(x, latent, functools.partial(self._expand, tuple(passed), tape.first))
            x = tape.blocks(x, p.widths[level], f"level_{level}")
            if level > 0:
                x = tape.up(x, p.strides[level - 1], f"up_{level}")
                passed.append(p.strides[level - 1])
        affine = make_norm(p, "norm_out")(x)
        # The output is quantised to 8 bits, and bfloat16 would round it nearly as coarsely.
        exact = jnp.promote_types(p.dtype, jnp.float32)
        out = CausalConv(p, 3, tiled=True, dtype=exact, name="conv_out")
        x = tape(out, x, affine, tape.first)
        # MAGVIT-v2 carries the copies of frame 0 through the decoder and drops them here, at once.
        if p.drop_mode == "final" and tape.first:
            x = x[:, p.factor - 1 :]
        return x.astype(exact), tape.cache

    def _expand(self, factors: tuple[Stride, ...], first: bool, x: jax.Array) -> jax.Array:
        for one in factors:
            x = resample_latent(x, one, first, self.config.drop_mode == "each")
        return x


class Bottleneck(nn.Module):
    """The two 1x1x1 layers around the latent, in float32 since the latent is stored.

    Attributes:
      latent_channels: z.
      width: channels of the decoder's input; 0: the decoder begins with a convolution of its own.
      logvar_init: bias of the log-variance at the start of training.
    """

    latent_channels: int
    width: int
    logvar_init: float

    def setup(self):
        z = self.latent_channels

        def start(key, shape, dtype):
            del key
            # Log-variances start low, because noise of unit size would slow the start of training.
            return jnp.where(jnp.arange(shape[0]) < z, 0.0, self.logvar_init).astype(dtype)

        self.encoder = Pointwise(2 * z, dtype=jnp.float32, bias_init=start)
        if self.width:
            self.decoder = Pointwise(self.width, dtype=jnp.float32)

    def quant(self, x: jax.Array) -> jax.Array:
        """Features ``[..., C]`` -> mean and log-variance ``[..., 2z]``."""
        return self.encoder(x)

    def post(self, latent: jax.Array) -> jax.Array:
        """Latent ``[..., z]`` -> features ``[..., width]``, or itself."""
        return self.decoder(latent) if self.width else latent


class FirstFrame(nn.Module):
    """The frozen encoder of an image autoencoder, for frame 0 (ProMAG 3.1).

    Attributes:
      posterior: it has its own 1x1 layer.
    """

    config: ProMAGConfig
    latent_channels: int
    posterior: bool

    def setup(self):
        self.encoder = ProMAGEncoder(self.config)
        if self.posterior:
            self.bottleneck = Bottleneck(self.latent_channels, 0, 0.0)

    def __call__(self, image: jax.Array) -> jax.Array:
        """``[B, 1, H, W, 3]`` -> features ``[B, 1, h, w, C]`` or moments ``[B, 1, h, w, 2z]``."""
        features = self.encoder(image)[0]
        return self.bottleneck.quant(features) if self.posterior else features
