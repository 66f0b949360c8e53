"""ProMAG's text-to-video transformer, "similar to CogVideoX": that of CogVideoX-5B.

The paper states full attention over space and time and about 5 billion parameters. The other
choices are CogVideoX's, and fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vidlatent.errors import VidlatentError
from vidlatent.layers.dense import Linear, Mlp
from vidlatent.layers.embeddings import LabelTokens
from vidlatent.layers.norms import LayerNorm
from vidlatent.layers.patches import PatchEmbedding, from_patches, patch_grid
from vidlatent.layers.positions import (
    axis_sizes_cogvideox,
    chunk_places,
    fit_places,
    rope_tables,
    time_features,
)
from vidlatent.layers.scan import run_stacked, stack_params
from vidlatent.models.build import make_module
from vidlatent.models.generators.base import GeneratorDefaults
from vidlatent.models.generators.conditions import (
    Conditions,
    Drop,
    pad_text,
    read_labels,
    read_text,
)
from vidlatent.models.generators.promag_dit.block import JointBlock
from vidlatent.models.generators.trunk import show_trunk
from vidlatent.spec import check_parts, check_shape

__all__ = ["ProMAGDiT", "build_promag_dit"]

_PADDING = ("hidden", "attended")


def build_promag_dit(fields: Mapping[str, Any], dtype: Any) -> nn.Module:
    return make_module(ProMAGDiT, fields, dtype, section="config.generator")


class ProMAGDiT(GeneratorDefaults, nn.Module):
    """Velocity of a noisy latent, given time and text.

    The defaults are CogVideoX-5B's: 5,570,283,072 parameters. A new model's output is 0.

    Attributes:
      latent_channels: channels of the noisy latent and of the result.
      patch: latents per token in time, rows and columns.
      width, depth, heads, hidden: channels, blocks, attention heads, feed-forward width.
      time_dim: width of the time embedding.
      text_dim, text_length: width and number of the text encoder's tokens.
      padding: tokens beyond a text's end are ``'hidden'`` from attention, or ``'attended'`` to with
        the encoder's values, as CogVideoX was trained.
      label_classes: read a class label in place of text, through ``label_tokens`` learned tokens;
        0 for text.
      position_plane: rows and columns into which positions are fitted, ``(30, 45)`` for
        CogVideoX-5B's weights; ``()``: positions are token indices.
      time_places: ``(latents of a chunk, frames from one chunk to the next, frames of a latent)``:
        a latent's position in time is the index of its last frame; ``()``: its own index.
      remat: recompute a block in the backward pass.
      eps: of the norms of states.
      head_eps: of the norms of queries and keys.
      residual_dtype: dtype of the states between sub-layers; float32 for training.
    """

    latent_channels: int = 16
    patch: tuple[int, int, int] = (1, 2, 2)
    width: int = 3072
    depth: int = 42
    heads: int = 48
    hidden: int = 12288
    time_dim: int = 512
    text_dim: int = 4096
    text_length: int = 226
    padding: str = "hidden"
    label_classes: int = 0
    label_tokens: int = 4
    position_plane: tuple[int, ...] = ()
    time_places: tuple[int, ...] = ()
    remat: bool = True
    eps: float = 1e-5
    head_eps: float = 1e-6
    residual_dtype: str = "float32"
    dtype: Any = jnp.float32

    @property
    def reads(self) -> tuple[str, ...]:
        return ("label",) if self.label_classes else ("text",)

    def setup(self) -> None:
        check_parts("config.generator.heads", self.heads, "width", self.width, step=16)
        if self.time_places and (len(self.time_places) != 3 or self.patch[0] != 1):
            raise VidlatentError(
                f"config.generator.time_places {tuple(self.time_places)}: give three numbers, and "
                "patches of one latent in time."
            )
        if self.padding not in _PADDING:
            raise VidlatentError(
                f"config.generator.padding {self.padding!r}: use one of {_PADDING}."
            )
        self.patch_embedding = PatchEmbedding(self.patch, self.width, self.dtype)
        # float32 in any compute dtype: bfloat16 cannot tell neighbouring times of 1000 apart.
        self.time_embedding = Mlp(self.time_dim, self.time_dim, "silu")
        if self.label_classes:
            self.label_embedding = LabelTokens(
                self.label_classes, self.label_tokens, self.width, self.dtype
            )
        else:
            self.text_embedding = Linear(self.width, self.dtype)
        self.blocks = stack_params(self, "blocks", self._first_block, self.depth)
        zeros = nn.initializers.zeros
        # Two norms in a row: CogVideoX's norm_final, then the norm inside its norm_out.
        self.last_norm = LayerNorm(self.eps, jnp.float32)
        self.head_modulation = Linear(2 * self.width, jnp.float32, zeros)
        self.head_norm = LayerNorm(self.eps, jnp.float32)
        size = int(np.prod(self.patch)) * self.latent_channels
        self.head = Linear(size, self.dtype, zeros)

    def _block(self) -> JointBlock:
        return JointBlock(
            self.width,
            self.heads,
            self.hidden,
            self.eps,
            self.head_eps,
            self.residual_dtype,
            self.dtype,
            # Not a submodule, but a pure function applied to slices of the stack.
            parent=None,
        )

    def _first_block(self, key: jax.Array) -> Any:
        token, time = jnp.zeros((1, 1, self.width)), jnp.zeros((1, self.time_dim))
        return self._block().init(key, token, token, time, self._tables((1, 1, 1)))["params"]

    def _tables(self, grid: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
        dim = self.width // self.heads
        places = None
        if self.position_plane:
            high, wide = self.position_plane
            places = fit_places(grid, (high, wide))
        if self.time_places:
            # Only time changes: rows and columns stay as they are, or as fitted above.
            latents, step, group = self.time_places
            rows, columns = (np.arange(n) for n in grid[1:]) if places is None else places[1:]
            places = (chunk_places(grid[0], latents, step, group), rows, columns)
        return rope_tables(grid, dim, sizes=axis_sizes_cogvideox(dim), places=places)

    def denoise(
        self,
        noisy: jax.Array,
        time: jax.Array,
        conditions: Conditions,
        drop: Drop = None,
        condition_cache: Any = None,
    ) -> jax.Array:
        """Velocity ``[B, t, h, w, c]`` float32 of a noisy latent under ``conditions``.

        Args:
          noisy: ``[B, t, h, w, c]``.
          time: ``[B]``, the step of the diffusion, or 1000 times the noise level.
          conditions: ``text`` or ``label`` (None: no condition); ``'null_text'`` is what stands
            for a dropped text, else one token of zeros.
          drop: by name, samples ``[B]`` without that condition.
          condition_cache: not used: text tokens pass through the blocks with those of the video.
        """
        del condition_cache
        sizes = check_shape(noisy, "B T H W C", C=self.latent_channels)
        check_shape(time, "B", B=sizes["B"])
        grid = patch_grid(noisy.shape[1:4], self.patch)
        embedded = self.time_embedding(time_features(time, self.width))
        text, lengths = self._text(conditions, drop, sizes["B"])
        video = self.patch_embedding(noisy)
        tables, block = self._tables(grid), self._block()

        def step(states, own):
            return block.apply({"params": own}, *states, embedded, tables, lengths)

        states = tuple(x.astype(self.residual_dtype) for x in (video, text))
        # The head reads the video tokens alone.
        video, _ = run_stacked(step, states, self.blocks, remat=self.remat)
        y = self.head_norm(self.last_norm(video))
        shift, scale = jnp.split(self.head_modulation(nn.silu(embedded))[:, None], 2, axis=-1)
        y = (y * (1 + scale) + shift).astype(self.dtype)
        show_trunk(self, y)
        y = self.head(y)
        # CogVideoX's head has the channels of a patch before its places.
        return from_patches(y.astype(jnp.float32), grid, self.patch, channels_first=True)

    def _text(
        self, conditions: Conditions, drop: Drop, batch: int
    ) -> tuple[jax.Array, jax.Array | None]:
        """Text tokens ``[B, S, D]`` and how many are attended to ``[B]``, at least 1; None: all."""
        if self.label_classes:
            labels = read_labels(conditions, drop, self.reads, batch)
            return self.label_embedding(labels), None
        states, lengths = read_text(conditions, drop, self.reads, batch, self.text_dim)
        sizes = check_shape(states, "B S D", B=batch, D=self.text_dim)
        if self.padding == "hidden":
            states = pad_text(states, lengths, self.text_length)
            # An empty text keeps one token, as a dropped text has.
            return self.text_embedding(states), jnp.maximum(lengths, 1)
        # All rows count as text: CogVideoX was trained with the encoder's values at padding.
        states = pad_text(states, jnp.full((batch,), sizes["S"]), self.text_length)
        return self.text_embedding(states), None
