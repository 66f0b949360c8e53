"""Encoder and decoder of the IV-VAE family. Parameter paths follow the published checkpoints."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vidlatent.models.tokenizers.ivvae.blocks import (
    BranchAttention,
    ParallelDilated,
    ResBlock,
    SplitNorm,
    conv3,
    pointwise,
)
from vidlatent.models.tokenizers.ivvae.resample import Down, Up
from vidlatent.models.tokenizers.ivvae.tiling import plan_strips, run_strips
from vidlatent.models.tokenizers.ivvae.variants import (
    IVVAEConfig,
    Op,
    list_decoder_ops,
    list_encoder_ops,
)
from vidlatent.parallel.sharding import constrain

__all__ = ["IVVAEDecoder", "IVVAEEncoder", "Tape", "make_steps"]

_AXES = ("batch", "time", "height", "width", "channel")
_KINDS = {"res": ResBlock, "down": Down, "up": Up}


class Layer(NamedTuple):
    """A module, what it does, and the norm (with SiLU) in front of it."""

    module: nn.Module
    op: Op
    norm: nn.Module | None = None

    @property
    def level(self) -> int:
        """The finer of the resolution levels it touches."""
        return self.op.level - (self.op.kind == "up")

    @property
    def reach(self) -> int:
        """Rows of that level on either side that a row depends on."""
        # A residual block convolves twice. An up operation reads one row of the coarse map, which
        # is two of the fine one.
        return {"res": 2, "up": 2}.get(self.op.kind, 1)


def make_steps(c: IVVAEConfig, ops: list[Op], part: str) -> list[Layer]:
    """The modules of ``ops``, named ``part_0``, ``part_1`` ..."""
    steps = []
    for i, op in enumerate(ops):
        kind = BranchAttention if op.kind == "attn" else _KINDS[op.kind]
        if c.remat:
            kind = nn.remat(kind, prevent_cse=True)
        name = f"{part}_{i}"
        module = kind(c, name=name) if op.kind == "attn" else kind(c, op, name=name)
        steps.append(Layer(module, op))
    return steps


class Tape:
    """Applies named modules in turn, threading caches and noting what each returned."""

    def __init__(self, owner: nn.Module, cache: Any):
        self._owner, self._old = owner, cache
        self.cache: dict[str, Any] = {}
        self.seen: dict[str, jax.Array] = {}

    def __call__(self, x: jax.Array, module: nn.Module, norm: nn.Module | None = None) -> jax.Array:
        name = module.name
        x = x if norm is None else nn.silu(norm(x))
        x, self.cache[name] = module(x, None if self._old is None else self._old[name])
        self.seen[name] = x = constrain(x, _AXES)
        return x

    def run(self, c: IVVAEConfig, steps: list[Layer], x: jax.Array) -> jax.Array:
        """All steps, a level at a time."""
        for level, group in itertools.groupby(steps, key=lambda step: step.level):
            x = self._level(c, level, list(group), x)
        return x

    def middle(self, c: IVVAEConfig, x: jax.Array) -> jax.Array:
        ops = [c.op(kind, c.last, c.widths[-1]) for kind in ("res", "attn", "res")]
        return self.run(c, make_steps(c, ops, "middle"), x)

    def _level(self, c: IVVAEConfig, level: int, steps: list[Layer], x: jax.Array) -> jax.Array:
        """One level and its resampling, in strips of rows where whole arrays would be too large.

        With strips, ``seen`` gets only what the last step returns.
        """
        strips = None
        # The lowest resolution has attention, which needs whole frames; init has no parameters yet.
        if level < c.last and not self._owner.is_initializing():
            up = steps[0].op.kind == "up"
            batch, frames, height, width, _ = x.shape
            # Rows of the coarser of the two maps, so that windows fall on whole rows of both.
            rows = height if up else height // 2
            if up and steps[0].op.time:
                frames = 2 * frames - (self._old is None)
            # Pixels of the finer map, where the largest arrays are.
            pixels = batch * frames * height * width * (4 if up else 1)
            size = pixels * c.widths[level] * c.variant.branches * jnp.dtype(c.dtype).itemsize
            # From rows of the finer map to those of the coarser.
            reach = -(-sum(step.reach for step in steps) // 2)
            strips = plan_strips(rows, reach, size, c.row_limit, c.strips_anywhere)
        if strips is None:
            for step in steps:
                x = self(x, step.module, step.norm)
            return x
        # Flax modules cannot be called inside a loop of lax, so they are applied as functions.
        params = self._owner.variables["params"]

        def layers(x, cache):
            kept = {}
            for module, _, norm in steps:
                name = module.name
                if norm is not None:
                    x = nn.silu(_apply(norm, params, x))
                x, kept[name] = _apply(module, params, x, None if cache is None else cache[name])
            return x, kept

        names = [step.module.name for step in steps]
        old = None if self._old is None else {name: self._old[name] for name in names}
        x, kept = run_strips(layers, x, old, rows, strips)
        self.cache |= kept
        self.seen[names[-1]] = x
        return x


def _apply(module, params, *args):
    return module.clone(parent=None).apply({"params": params[module.name]}, *args)


class IVVAEEncoder(nn.Module):
    """Video to moments, ``[mean, logvar]`` of each branch in turn."""

    config: IVVAEConfig

    @nn.compact
    def __call__(
        self, video: jax.Array, cache: Any = None
    ) -> tuple[jax.Array, Any, dict[str, jax.Array]]:
        """``[B, T, H, W, 3] -> [B, t, h, w, 2z]`` float32, cache, values by module name."""
        c = self.config
        tape = Tape(self, cache)
        first = Layer(conv3(c, c.widths[0], 0, "conv1"), c.op("conv", 0, c.widths[0]))
        x = tape.run(c, [first, *make_steps(c, list_encoder_ops(c), "downsamples")], video)
        x = tape.middle(c, x)
        x = nn.silu(SplitNorm(c.variant.branches, c.dtype, name="head_0")(x))
        moments = 2 * c.latent_channels
        if c.variant.rich:
            pac = ParallelDilated(
                moments, c.variant.branches, c.pac_dilations, c.dtype, name="head_2"
            )
            x = pac(x)
        else:
            share = moments // c.variant.branches
            plane = c.variant.branches == 2
            x = tape(x, conv3(c, share, c.last, "head_2", plane=plane))
        tape.seen["head"] = x
        # The latent is stored, so its last product is computed in float32.
        x = pointwise(c, moments // c.variant.branches, "quant", dtype=jnp.float32)(x)
        return x, tape.cache, tape.seen


class IVVAEDecoder(nn.Module):
    """Latent to one image per branch and frame."""

    config: IVVAEConfig

    @nn.compact
    def __call__(
        self, latent: jax.Array, cache: Any = None
    ) -> tuple[jax.Array, Any, dict[str, jax.Array]]:
        """``[B, t, h, w, z] -> [B, T, H, W, 3 * branches]`` float32, cache, values by name."""
        c = self.config
        tape = Tape(self, cache)
        share = c.latent_channels // c.variant.branches
        x = pointwise(c, share, "post_quant", dtype=jnp.float32)(latent)
        plane = c.variant.branches == 2
        x = tape(x, conv3(c, c.widths[-1], c.last, "conv1", plane=plane))
        x = tape.middle(c, x)
        last = Layer(
            conv3(c, 3, 0, "head_2", dtype=jnp.float32),
            c.op("conv", 0, 3),
            SplitNorm(c.variant.branches, c.dtype, name="head_0"),
        )
        x = tape.run(c, [*make_steps(c, list_decoder_ops(c), "upsamples"), last], x)
        return x.astype(jnp.float32), tape.cache, tape.seen
