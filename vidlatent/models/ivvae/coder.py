"""Encoder and decoder of the IV-VAE family. Parameter paths follow the published checkpoints."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vidlatent.dist.rules import constrain
from vidlatent.models.ivvae.blocks import (
    BranchAttention,
    ParallelDilated,
    ResBlock,
    SplitNorm,
    conv3,
    pointwise,
)
from vidlatent.models.ivvae.form import Coder, Op, decoder_ops, encoder_ops
from vidlatent.models.ivvae.resample import Down, Up

__all__ = ["Decoder", "Encoder"]

_AXES = ("batch", "time", "height", "width", "channel")
_KINDS = {"res": ResBlock, "down": Down, "up": Up}


def _module(c: Coder, op: Op, name: str) -> nn.Module:
    kind = BranchAttention if op.kind == "attn" else _KINDS[op.kind]
    if c.remat:
        kind = nn.remat(kind, prevent_cse=True)
    return kind(c, name=name) if op.kind == "attn" else kind(c, op, name=name)


class _Tape:
    """Applies named modules in turn, threading caches and noting what each returned."""

    def __init__(self, cache: Any):
        self._old = cache
        self.cache: dict[str, Any] = {}
        self.seen: dict[str, jax.Array] = {}

    def __call__(self, module: nn.Module, x: jax.Array) -> jax.Array:
        name = module.name
        x, self.cache[name] = module(x, None if self._old is None else self._old[name])
        self.seen[name] = x = constrain(x, _AXES)
        return x

    def run(self, c: Coder, ops: list[Op], part: str, x: jax.Array) -> jax.Array:
        for i, op in enumerate(ops):
            x = self(_module(c, op, f"{part}_{i}"), x)
        return x

    def middle(self, c: Coder, x: jax.Array) -> jax.Array:
        ops = [c.op(kind, c.last, c.widths[-1]) for kind in ("res", "attn", "res")]
        return self.run(c, ops, "middle", x)


class Encoder(nn.Module):
    """Video to moments, ``[mean, logvar]`` of each branch in turn."""

    coder: Coder

    @nn.compact
    def __call__(
        self, video: jax.Array, cache: Any = None
    ) -> tuple[jax.Array, Any, dict[str, jax.Array]]:
        """``[B, T, H, W, 3] -> [B, t, h, w, 2z]`` float32, cache, values by module name."""
        c = self.coder
        tape = _Tape(cache)
        x = tape(conv3(c, c.widths[0], 0, "conv1"), video)
        x = tape.run(c, encoder_ops(c), "downsamples", x)
        x = tape.middle(c, x)
        x = nn.silu(SplitNorm(c.form.branches, c.dtype, name="head_0")(x))
        moments = 2 * c.latent_channels
        if c.form.rich:
            pac = ParallelDilated(moments, c.form.branches, c.pac_dilations, c.dtype, name="head_2")
            x = pac(x)
        else:
            share = moments // c.form.branches
            plane = c.form.branches == 2
            x = tape(conv3(c, share, c.last, "head_2", plane=plane), x)
        tape.seen["head"] = x
        # The latent is stored: its last product is float32.
        x = pointwise(c, moments // c.form.branches, "quant", dtype=jnp.float32)(x)
        return x, tape.cache, tape.seen


class Decoder(nn.Module):
    """Latent to one image per branch and frame."""

    coder: Coder

    @nn.compact
    def __call__(
        self, latent: jax.Array, cache: Any = None
    ) -> tuple[jax.Array, Any, dict[str, jax.Array]]:
        """``[B, t, h, w, z] -> [B, T, H, W, 3 * branches]`` float32, cache, values by name."""
        c = self.coder
        tape = _Tape(cache)
        share = c.latent_channels // c.form.branches
        x = pointwise(c, share, "post_quant", dtype=jnp.float32)(latent)
        plane = c.form.branches == 2
        x = tape(conv3(c, c.widths[-1], c.last, "conv1", plane=plane), x)
        x = tape.middle(c, x)
        x = tape.run(c, decoder_ops(c), "upsamples", x)
        x = nn.silu(SplitNorm(c.form.branches, c.dtype, name="head_0")(x))
        x = tape(conv3(c, 3, 0, "head_2", dtype=jnp.float32), x)
        return x.astype(jnp.float32), tape.cache, tape.seen
