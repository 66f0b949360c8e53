"""Reducio-DiT: PixArt's transformer over the few latents of a clip, conditioned on a content frame.

The authors' network is not public. It follows what they state: PixArt-alpha's blocks, attention
jointly over space and time or alternating 2D and 1D, T5 text, OpenCLIP and content tokens by
cross-attention, grids of content tokens at high resolution, 10 % dropped conditions. What they do
not state is a field, with the default nearest to PixArt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vidlatent.errors import VidlatentError
from vidlatent.layers.dense import Linear
from vidlatent.layers.patches import PatchEmbedding, from_patches, patch_grid
from vidlatent.layers.positions import sincos, sincos_plane, time_features
from vidlatent.layers.scan import run_stacked, stack_params
from vidlatent.models.build import make_module
from vidlatent.models.generators.base import GeneratorDefaults
from vidlatent.models.generators.conditions import Conditions, Drop, count_samples
from vidlatent.models.generators.modulated_block import (
    ModulatedBlock,
    ModulatedHead,
    small_mlp,
)
from vidlatent.models.generators.reducio_dit.tokens import ConditionTokens
from vidlatent.spec import check_parts, check_shape

__all__ = ["ReducioDiT", "build_reducio_dit"]

_ATTENTION = ("joint", "2d+1d")
_small = nn.initializers.normal(0.02)


def build_reducio_dit(fields: Mapping[str, Any], dtype: Any) -> nn.Module:
    return make_module(ReducioDiT, fields, dtype, section="config.generator")


class ReducioDiT(GeneratorDefaults, nn.Module):
    """Noise and variance of a noisy latent, given time, text and the content frame.

    With ``image_dim`` and ``content_channels`` 0 and a latent of one frame it is PixArt-alpha. A
    new model's output is 0.

    Attributes:
      latent_channels: channels of the noisy latent.
      patch: latents per token in time, rows and columns (1 not stated: latents are 32 times
        smaller than frames, and sides of 352 pixels leave 11 of them).
      width, depth, heads, hidden: channels, blocks, attention heads, feed-forward width.
      freq_dim: sinusoids of the time embedding.
      attention: ``'joint'`` over all tokens of the clip, or ``'2d+1d'``: within a frame, and along
        time at the end of each block, from a start at zero (the authors' comparison).
      text_dim, text_length: width and number of the text encoder's tokens.
      label_classes: read a class label in place of text, through ``label_tokens`` learned tokens;
        0 for text.
      image_dim, image_tokens: width and number of the semantic encoder's tokens; 0 for none.
      content_channels: of the image latent of the content frame; 0 for none.
      content_factor: its rows for each row of the video's latent: 4 for H/8 and H/32.
      content_patch: its rows and columns in a token (2 not stated: PixArt's own patch embedding
        then has the right shape to start from).
      content_scale: factor on it (not stated: Stable Diffusion's).
      content_side: 2 cuts the content tokens into 2 x 2 grids by the parity of row and column, and
        block ``b`` reads grid ``b mod 4``, a quarter of the tokens (stage 3); 1: every block reads
        all.
      null_text: a dropped text is replaced by ``'fixed'`` random tokens (PixArt) or ``'learned'``
        ones.
      null_as_long: a dropped text keeps the length of the text (PixArt) instead of having
        ``text_length`` tokens.
      null_image: image tokens of a dropped image are ``'zeros'`` or ``'learned'`` (not stated).
      images_together: semantic and content tokens are dropped together if either is.
      position_span: positions in a frame run from 0 to below it at any size, so that later stages
        reuse the positions of the first; PixArt-256 has 16.
      position_scale: positions in a frame are divided by it.
      time_positions: add sines and cosines of the frame's number (not stated).
      size_embedding: embed height, width and aspect ratio with the time, as PixArt does at 1024.
      pixels_per_latent: to compute these sizes from the latent's.
      learned_variance: also predict the variance, as a weight between its two bounds.
      remat: recompute a block in the backward pass.
      eps: of every norm.
      residual_dtype: dtype of the states between sub-layers; float32 for training.
    """

    latent_channels: int = 16
    patch: tuple[int, int, int] = (1, 1, 1)
    width: int = 1152
    depth: int = 28
    heads: int = 16
    hidden: int = 4608
    freq_dim: int = 256
    attention: str = "joint"
    text_dim: int = 4096
    text_length: int = 120
    label_classes: int = 0
    label_tokens: int = 4
    image_dim: int = 1280
    image_tokens: int = 256
    content_channels: int = 4
    content_factor: int = 4
    content_patch: int = 2
    content_scale: float = 0.18215
    content_side: int = 1
    null_text: str = "fixed"
    null_as_long: bool = False
    null_image: str = "zeros"
    images_together: bool = True
    position_span: float = 16.0
    position_scale: float = 1.0
    time_positions: bool = True
    size_embedding: bool = False
    pixels_per_latent: int = 32
    learned_variance: bool = True
    remat: bool = True
    eps: float = 1e-6
    residual_dtype: str = "float32"
    dtype: Any = jnp.float32
    caches_conditions = True  # not a field

    @property
    def reads(self) -> tuple[str, ...]:
        image = ("image",) if self.image_dim else ()
        content = ("content",) if self.content_channels else ()
        return ("label" if self.label_classes else "text", *image, *content)

    def setup(self) -> None:
        check_parts("config.generator.heads", self.heads, "width", self.width)
        if self.attention not in _ATTENTION:
            raise VidlatentError(
                f"config.generator.attention {self.attention!r}: use one of {_ATTENTION}."
            )
        self.patch_embedding = PatchEmbedding(self.patch, self.width, self.dtype)
        self.time_embedding = small_mlp(self.width)
        self.time_projection = Linear(6 * self.width, jnp.float32, _small)
        if self.size_embedding:
            # Three embeddings of a third of the width: height, width and ratio are concatenated.
            self.extent_embedding = small_mlp(self.width // 3)
            self.ratio_embedding = small_mlp(self.width // 3)
        self.conditions = ConditionTokens(
            **{name: getattr(self, name) for name in ConditionTokens.field_names()}
        )
        self.blocks = stack_params(self, "blocks", self._first_block, self.depth)
        size = int(np.prod(self.patch)) * self.latent_channels * (1 + self.learned_variance)
        self.head = ModulatedHead(size, single=True, eps=self.eps, dtype=self.dtype)

    def _block(self) -> ModulatedBlock:
        return ModulatedBlock(
            self.width,
            self.heads,
            self.hidden,
            single=True,
            cross=True,
            time_after=self.attention == "2d+1d",
            eps=self.eps,
            residual_dtype=self.residual_dtype,
            dtype=self.dtype,
            parent=None,
        )

    def _first_block(self, key: jax.Array) -> Any:
        token = jnp.zeros((1, 1, 1, self.width))
        block = self._block()

        # Keys and values of the cross-attention are made in ``context``, the rest in ``__call__``:
        # both must run for all parameters to exist.
        def both(block, x, time):
            return block(x, time, block.context(x[:, 0]))

        return block.init(key, token, jnp.zeros((1, 6, self.width)), method=both)["params"]

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
          conditions: those of ``reads`` (a name that maps to None: no condition), and ``'size'``
            ``[B, 3]``, height and width in pixels and their ratio, if they are not the latent's
            own.
          drop: by name, samples ``[B]`` whose condition is replaced by its null.
          condition_cache: from ``cache_conditions``, in place of label or text, image and content.
        """
        sizes = check_shape(noisy, "B T H W C", C=self.latent_channels)
        check_shape(time, "B", B=sizes["B"])
        grid = patch_grid(noisy.shape[1:4], self.patch)
        embedded = self.time_embedding(time_features(time, self.freq_dim))
        if self.size_embedding:
            embedded = embedded + self._embed_size(noisy, conditions)
        shared = self.time_projection(nn.silu(embedded)).reshape(-1, 6, self.width)
        # A block's number tells it which grid of content tokens to read.
        layers = {"params": self.blocks, "number": jnp.arange(self.depth)}
        # With a cache, keys and values are sliced with the layers; else each block makes its own.
        tokens = None
        if condition_cache is None:
            tokens = self.conditions(conditions, drop, sizes["B"], noisy.shape[2:4])
        else:
            # [B, L, ...] -> [L, B, ...]: the cache has the batch first, the scan slices layers.
            layers["pair"] = [jnp.moveaxis(x, 1, 0) for x in condition_cache["pair"]]
        lengths = condition_cache["lengths"] if tokens is None else tokens.lengths
        block = self._block()

        def step(x, own):
            variables = {"params": own["params"]}
            if tokens is None:
                pair = own["pair"]
            else:
                pair = block.apply(variables, tokens.of_block(own["number"]), method="context")
            return block.apply(variables, x, shared, pair, lengths)

        x = run_stacked(step, self._tokens(noisy, grid), layers, remat=self.remat)
        # The head reads the embedding itself, not its projection for the blocks (PixArt).
        y = self.head(x.reshape(sizes["B"], -1, self.width), embedded)
        return from_patches(y, grid, self.patch)

    def cache_conditions(self, conditions: Conditions, drop: Drop = None) -> dict[str, Any]:
        """Every block's keys and values of the conditions, for every step of a sampler.

        Returns:
          ``pair``: two ``[B, L, S, K, d]``, and ``lengths`` ``[B]``.
        """
        tokens = self.conditions(conditions, drop, count_samples(conditions, self.reads), None)
        block = self._block()

        def one(layer):
            own, number = layer
            return block.apply({"params": own}, tokens.of_block(number), method="context")

        # Two of [L, B, S, K, d]
        pair = lax.map(one, (self.blocks, jnp.arange(self.depth)))
        return {"pair": [jnp.moveaxis(x, 0, 1) for x in pair], "lengths": tokens.lengths}

    def _tokens(self, noisy: jax.Array, grid: tuple[int, int, int]) -> jax.Array:
        """``[B, 1, t h w, D]`` of joint attention, else ``[B, t, h w, D]``."""
        # [B, t h w, D] -> [B, t, h w, D]
        x = self.patch_embedding(noisy).reshape(noisy.shape[0], grid[0], -1, self.width)
        x = x + sincos_plane(grid[1], grid[2], self.width, self.position_span, self.position_scale)
        if self.time_positions:
            x = x + sincos(np.arange(grid[0]), self.width)[:, None]
        # Joint attention takes the whole clip as one long frame; PixArt's weights fit it as they
        # are (Reducio, supplement).
        if self.attention == "joint":
            x = x.reshape(noisy.shape[0], 1, -1, self.width)
        return x.astype(self.residual_dtype)

    def _embed_size(self, noisy: jax.Array, conditions: Conditions) -> jax.Array:
        """``[B, D]``: a third of the channels each for height, width and their ratio."""
        if "size" in conditions:
            size = conditions["size"]
        else:
            height, width = (self.pixels_per_latent * n for n in noisy.shape[2:4])
            size = jnp.broadcast_to(jnp.array([height, width, height / width]), (len(noisy), 3))
        check_shape(size, "B three", B=noisy.shape[0], three=3)
        # 256 sinusoids each, as for the time in PixArt; sizes are in pixels.
        features = [time_features(part, 256) for part in jnp.asarray(size, jnp.float32).T]
        parts = [self.extent_embedding(x) for x in features[:2]]
        return jnp.concatenate([*parts, self.ratio_embedding(features[2])], axis=-1)
