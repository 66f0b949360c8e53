"""Latte: DiT's blocks, alternating within a frame and along time (Ma et al. 2024, variant 1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vidlatent.errors import VidlatentError
from vidlatent.layers.embeddings import GuidanceEmbedding, LabelEmbedding
from vidlatent.layers.patches import PatchEmbedding, from_patches, patch_grid
from vidlatent.layers.positions import sincos, sincos_plane, time_features
from vidlatent.layers.scan import run_stacked, stack_params
from vidlatent.models.build import make_module
from vidlatent.models.generators.base import GeneratorDefaults
from vidlatent.models.generators.conditions import Conditions, Drop, read_guidance, read_labels
from vidlatent.models.generators.modulated_block import (
    ModulatedBlock,
    ModulatedHead,
    small_mlp,
)
from vidlatent.spec import check_parts, check_shape

__all__ = ["Latte", "build_latte"]


def build_latte(fields: Mapping[str, Any], dtype: Any) -> nn.Module:
    return make_module(Latte, fields, dtype, section="config.generator")


class Latte(GeneratorDefaults, nn.Module):
    """Noise and variance of a noisy latent, given time and perhaps a class.

    The defaults are Latte-XL/2 for latents of four channels. A new model's output is 0.

    Attributes:
      latent_channels: channels of the noisy latent.
      patch: latents per token in time, rows and columns.
      width, depth, heads, hidden: channels, blocks (even), attention heads, feed-forward width.
      freq_dim: sinusoids of the time embedding.
      label_classes: classes; 0 for a model without condition.
      learned_variance: also predict the variance, as a weight between its two bounds.
      images_skip_time: temporal blocks are skipped for a latent of one frame (joint training with
        images).
      guidance_embed: the guidance scale is an input, added to the embedding of time.
      remat: recompute a pair of blocks in the backward pass.
      eps: of every norm.
      residual_dtype: dtype of the states between sub-layers; float32 for training.
    """

    latent_channels: int = 4
    patch: tuple[int, int, int] = (1, 2, 2)
    width: int = 1152
    depth: int = 28
    heads: int = 16
    hidden: int = 4608
    freq_dim: int = 256
    label_classes: int = 0
    learned_variance: bool = True
    images_skip_time: bool = True
    guidance_embed: bool = False
    remat: bool = True
    eps: float = 1e-6
    residual_dtype: str = "float32"
    dtype: Any = jnp.float32

    @property
    def reads(self) -> tuple[str, ...]:
        return ("label",) if self.label_classes else ()

    def setup(self) -> None:
        check_parts("config.generator.heads", self.heads, "width", self.width)
        if self.depth % 2:
            raise VidlatentError(
                f"config.generator.depth {self.depth} is odd, and blocks come in pairs: use "
                f"{self.depth - 1} or {self.depth + 1}."
            )
        self.patch_embedding = PatchEmbedding(self.patch, self.width, self.dtype)
        self.time_embedding = small_mlp(self.width)
        if self.guidance_embed:
            self.guidance_embedding = GuidanceEmbedding(self.width, self.freq_dim)
        if self.label_classes:
            self.label_embedding = LabelEmbedding(self.label_classes, self.width)
        # Both kinds of blocks have the same parameters. One stack holds them in the published
        # order: even ones attend within a frame, odd ones along time.
        self.blocks = stack_params(self, "blocks", self._first_block, self.depth)
        # Values of a patch, and as many for the variance.
        size = int(np.prod(self.patch)) * self.latent_channels * (1 + self.learned_variance)
        self.head = ModulatedHead(size, eps=self.eps, dtype=self.dtype)

    def _block(self, along: str) -> ModulatedBlock:
        return ModulatedBlock(
            self.width,
            self.heads,
            self.hidden,
            along=along,
            eps=self.eps,
            residual_dtype=self.residual_dtype,
            dtype=self.dtype,
            # Not a submodule, but a pure function applied to slices of the stack.
            parent=None,
        )

    def _first_block(self, key: jax.Array) -> Any:
        token = jnp.zeros((1, 1, 1, self.width))
        return self._block("space").init(key, token, token[:, 0, 0])["params"]

    def denoise(
        self,
        noisy: jax.Array,
        time: jax.Array,
        conditions: Conditions,
        drop: Drop = None,
        condition_cache: Any = None,
    ) -> jax.Array:
        """``[B, t, h, w, 2 c]`` float32, noise and then variance, under ``conditions``.

        Args:
          noisy: ``[B, t, h, w, c]``.
          time: ``[B]``, the step of the diffusion.
          conditions: ``label`` ``[B]`` of a model with classes, -1 or None for no class.
          drop: ``label``: samples ``[B]`` that get the vector of no class.
          condition_cache: not used, there is nothing to cache.
        """
        del condition_cache
        sizes = check_shape(noisy, "B T H W C", C=self.latent_channels)
        check_shape(time, "B", B=sizes["B"])
        grid = patch_grid(noisy.shape[1:4], self.patch)
        embedded = self.time_embedding(time_features(time, self.freq_dim))
        if self.guidance_embed:
            scale = read_guidance(conditions, sizes["B"], self.is_initializing())
            embedded = embedded + self.guidance_embedding(scale)
        if self.label_classes:
            labels = read_labels(conditions, drop, self.reads, sizes["B"])
            embedded = embedded + self.label_embedding(labels)
        # [B, t h w, D] -> [B, t, h w, D]
        x = self.patch_embedding(noisy).reshape(sizes["B"], grid[0], -1, self.width)
        x = x + sincos_plane(grid[1], grid[2], self.width)
        x = self._run(x.astype(self.residual_dtype), embedded)
        y = self.head(x.reshape(sizes["B"], -1, self.width), embedded)
        return from_patches(y, grid, self.patch)

    def _run(self, x: jax.Array, embedded: jax.Array) -> jax.Array:
        """Pairs of blocks; time positions are added before the first temporal one, as in Latte."""
        space, over_time = self._block("space"), self._block("time")
        # Attention over a single frame would still transform it, so images skip it.
        still = x.shape[1] == 1 and self.images_skip_time
        places = sincos(np.arange(x.shape[1]), self.width)[:, None]

        # A pair is one step of the scan, so that all its steps are alike.
        def step(x, layer):
            own, first = layer
            first_half, second = (jax.tree.map(lambda leaf, i=i: leaf[i], own) for i in (0, 1))
            x = space.apply({"params": first_half}, x, embedded)
            if still:
                return x
            # ``first`` is 1 in the first pair and 0 in the others, so that one scan serves all.
            x = (x + first * places).astype(x.dtype)
            return over_time.apply({"params": second}, x, embedded)

        # [depth, ...] -> [depth / 2, 2, ...]
        pairs = jax.tree.map(lambda leaf: leaf.reshape(-1, 2, *leaf.shape[1:]), self.blocks)
        first = jnp.zeros(self.depth // 2).at[0].set(1.0)
        return run_stacked(step, x, (pairs, first), remat=self.remat)
