"""The condition tokens of Reducio-DiT: text, semantic and content tokens."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from vidlatent.errors import VidlatentError
from vidlatent.layers.embeddings import LabelTokens
from vidlatent.layers.norms import LayerNorm
from vidlatent.layers.patches import PatchEmbedding
from vidlatent.layers.positions import sincos_plane
from vidlatent.models.generators.conditions import (
    Conditions,
    Drop,
    apply_drop,
    get_condition,
    pad_text,
    read_labels,
)
from vidlatent.models.generators.modulated_block import small_mlp
from vidlatent.spec import check_shape

__all__ = ["ConditionTokens", "Tokens"]

_NULL_TEXT, _NULL_IMAGE = ("fixed", "learned"), ("zeros", "learned")


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Embedded condition tokens of a batch.

    Attributes:
      every: ``[B, S, D]``, read by all blocks; text comes last, so that its padding is at the end.
      grids: ``[B, G, n, D]``; block ``b`` reads grid ``b mod G``; None without content.
      lengths: ``[B]``, how many tokens of ``of_block`` are not padding.
    """

    every: jax.Array
    grids: jax.Array | None
    lengths: jax.Array

    def of_block(self, number: jax.Array) -> jax.Array:
        """``[B, n + S, D]`` for a block by its number."""
        if self.grids is None:
            return self.every
        # The number is traced: blocks run in a scan.
        grid = lax.dynamic_index_in_dim(self.grids, number % self.grids.shape[1], 1, False)
        return jnp.concatenate([grid, self.every], axis=1)


class ConditionTokens(nn.Module):
    """Conditions by name to tokens; see ``ReducioDiT`` for the attributes."""

    reads: tuple[str, ...]
    width: int
    text_dim: int
    text_length: int
    label_classes: int
    label_tokens: int
    image_dim: int
    image_tokens: int
    content_channels: int
    content_factor: int
    content_patch: int
    content_scale: float
    content_side: int
    null_text: str
    null_as_long: bool
    null_image: str
    images_together: bool
    position_span: float
    dtype: Any

    @classmethod
    def field_names(cls) -> list[str]:
        """Names of the attributes, all of which ``ReducioDiT`` has, too."""
        return [f.name for f in dataclasses.fields(cls) if f.name not in ("parent", "name")]

    def setup(self) -> None:
        for name, value, known in (
            ("null_text", self.null_text, _NULL_TEXT),
            ("null_image", self.null_image, _NULL_IMAGE),
            ("content_side", self.content_side, (1, 2)),
        ):
            if value not in known:
                raise VidlatentError(f"config.generator.{name} {value!r}: use one of {known}.")
        if self.label_classes:
            self.label_embedding = LabelTokens(
                self.label_classes, self.label_tokens, self.width, self.dtype
            )
        else:
            self.text_embedding = small_mlp(self.width, "gelu_tanh", self.dtype)
            init = nn.initializers.normal(self.text_dim**-0.5)
            # A parameter even if it is 'fixed': PixArt's weights hold theirs as a buffer.
            self.missing_text = self.param("null_text", init, (self.text_length, self.text_dim))
        learned = nn.initializers.normal(0.02)
        if self.image_dim:
            self.image_norm = LayerNorm(1e-5, self.dtype)
            self.image_embedding = small_mlp(self.width, "gelu_tanh", self.dtype)
            if self.null_image == "learned":
                self.missing_image = self.param("null_image", learned, (self.width,))
        if self.content_channels:
            patch = (1, self.content_patch, self.content_patch)
            self.content_embedding = PatchEmbedding(patch, self.width, self.dtype)
            if self.null_image == "learned":
                self.missing_content = self.param("null_content", learned, (self.width,))

    def __call__(
        self, conditions: Conditions, drop: Drop, batch: int, plane: tuple[int, int] | None
    ) -> Tokens:
        """Tokens of a batch.

        Args:
          conditions, drop: as of ``ReducioDiT.denoise``.
          batch: samples.
          plane: rows and columns of the video's latent, which determine the number of content
            tokens; None: the content frame's own size does.

        Raises:
          VidlatentError: a condition is absent or of another size.
        """
        if self.images_together and drop is not None:
            masks = [drop[name] for name in ("image", "content") if name in drop]
            if masks:
                # Both come from the content frame: one alone would give away the other.
                # One mask or two; a single one is both the first and the last.
                either = masks[0] | masks[-1]
                drop = {**drop, "image": either, "content": either}
        text, lengths = self._text(conditions, drop, batch)
        # Text stays last: only it has padding, which one length can then hide.
        every, grids = [text], None
        if self.image_dim:
            every.insert(0, self._image(conditions, drop, batch))
        if self.content_channels:
            grids = self._content(conditions, drop, batch, plane)
        tokens = Tokens(jnp.concatenate(every, axis=1), grids, lengths)
        # Tokens before the text all exist.
        before = tokens.every.shape[1] - text.shape[1] + (0 if grids is None else grids.shape[2])
        return dataclasses.replace(tokens, lengths=lengths + before)

    def _text(self, conditions, drop, batch):
        """``[B, S, D]`` and how many of them exist, at least one."""
        if self.label_classes:
            labels = read_labels(conditions, drop, self.reads, batch)
            return self.label_embedding(labels), jnp.full((batch,), self.label_tokens, jnp.int32)
        text = get_condition(conditions, "text", self.reads)
        null = self.missing_text
        # PixArt's null text is a random constant that was never trained.
        null = lax.stop_gradient(null) if self.null_text == "fixed" else null
        if text is None:
            states = jnp.broadcast_to(null, (batch, *null.shape))
            lengths = jnp.full((batch,), self.text_length, jnp.int32)
        else:
            check_shape(text["states"], "B S D", B=batch, D=self.text_dim)
            states = pad_text(text["states"], text["length"], self.text_length)
            states = apply_drop(states, null, drop, "text")
            # Where text is the only condition, an empty one must leave a key to attend to.
            lengths = jnp.maximum(text["length"], 1).astype(jnp.int32)
            if not self.null_as_long:
                lengths = apply_drop(lengths, self.text_length, drop, "text")
        return self.text_embedding(states), lengths

    def _image(self, conditions, drop, batch):
        image = get_condition(conditions, "image", self.reads)
        null = self.missing_image if self.null_image == "learned" else 0.0
        tokens = image
        if image is None:
            tokens = jnp.zeros((batch, self.image_tokens, self.image_dim))
        check_shape(tokens, "B I D", B=batch, I=self.image_tokens, D=self.image_dim)
        tokens = self.image_embedding(self.image_norm(tokens))
        return self._replace_missing(tokens, image is None, null, drop, "image")

    def _content(self, conditions, drop, batch, plane):
        """``[B, G, n, D]``."""
        content = get_condition(conditions, "content", self.reads)
        null = self.missing_content if self.null_image == "learned" else 0.0
        channels = self.content_channels
        if content is None and plane is None:
            raise VidlatentError(
                "a content frame of None has no size to cache tokens for: give one, and drop it."
            )
        # Without a content frame, its size follows from the video's latent.
        latent = content
        if content is None:
            rows, columns = (self.content_factor * n for n in plane)
            latent = jnp.zeros((batch, rows, columns, channels))
        elif plane is not None:
            rows, columns = (self.content_factor * n for n in plane)
            check_shape(latent, "B H W C", B=batch, H=rows, W=columns, C=channels)
        check_shape(latent, "B H W C", B=batch, C=channels)
        # Latents are stored unscaled. As a clip of one frame: [B, 1, h', w', c] -> [B, n, D]
        tokens = self.content_embedding(latent[:, None] * self.content_scale)
        rows, columns = (n // self.content_patch for n in latent.shape[1:3])
        tokens = tokens + sincos_plane(rows, columns, self.width, self.position_span)
        # After the positions: a dropped frame is zeros, and says nothing about places either.
        tokens = self._replace_missing(tokens, content is None, null, drop, "content")
        side = self.content_side
        if rows % side or columns % side:
            raise VidlatentError(
                f"{rows} x {columns} content tokens do not part into grids: use "
                "config.generator.content_side 1 or frames of another size."
            )
        # Grid (i, j) holds the tokens of rows i mod side and columns j mod side: every grid covers
        # the whole frame, at a lower resolution (stage 3 of Reducio-DiT).
        # [B, h / s, s, w / s, s, D] -> [B, s, s, h / s, w / s, D] -> [B, s s, n, D]
        grids = tokens.reshape(batch, rows // side, side, columns // side, side, self.width)
        grids = grids.transpose(0, 2, 4, 1, 3, 5)
        return grids.reshape(batch, side * side, -1, self.width).astype(self.dtype)

    def _replace_missing(self, tokens, everywhere, null, drop, name):
        null = jnp.asarray(null, tokens.dtype)
        if everywhere:
            return jnp.broadcast_to(null, tokens.shape)
        return apply_drop(tokens, null, drop, name)
