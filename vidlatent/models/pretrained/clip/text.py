"""CLIP's text encoder (Radford et al. 2021; OpenCLIP): causal, read where the text ends."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vidlatent.errors import VidlatentError
from vidlatent.layers.dense import exact
from vidlatent.models.pretrained.vit import ViTBlock, layer_norm
from vidlatent.spec import check_shape

__all__ = ["ClipText", "TextStates"]


class TextStates(NamedTuple):
    """What the text encoder makes of texts of ``L`` tokens.

    Attributes:
      tokens: ``[B, L, D]`` after the last norm.
      pooled: ``[B, D]``: of these the one at the end mark.
      projected: ``[B, L, P]``: ``tokens``, projected.
      embedding: ``[B, P]``: ``pooled``, projected.
    """

    tokens: jax.Array
    pooled: jax.Array
    projected: jax.Array
    embedding: jax.Array


class ClipText(nn.Module):
    """Token and position tables, pre-normalised causal blocks, a last norm, a projection.

    Attributes:
      vocab: rows of the token table.
      length: rows of the position table, the longest text.
      width, depth, heads, hidden: of the transformer.
      projection: width of the embedding.
      quick: ``x * sigmoid(1.702 x)`` (OpenAI's weights); else the exact GELU (OpenCLIP's).
      end: the end mark's number: a text ends at its first. -1: it ends at the first of its largest
        numbers, which is the end mark's in CLIP's own vocabulary. Configs of transformers up to
        4.30 mean this by ``eos_token_id`` 2.
    """

    vocab: int = 49408
    length: int = 77
    width: int = 1024
    depth: int = 24
    heads: int = 16
    hidden: int = 4096
    projection: int = 1024
    quick: bool = False
    end: int = -1
    eps: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array, mask: jax.Array | None = None) -> TextStates:
        """States of token numbers ``[B, L]``.

        Args:
          tokens: integers below ``vocab``; ``L`` is at most ``length``.
          mask: ``[B, L]``, 0 for padding that no token attends to; None: tokens attend to all
            tokens before them, as in CLIP's own training. What stands at padding is of no use.

        Raises:
          VidlatentError: texts longer than the position table.
        """
        count = check_shape(tokens, "B L")["L"]
        if count > self.length:
            raise VidlatentError(f"texts of {count} tokens: CLIP reads {self.length} at most.")
        normal = nn.initializers.normal(0.02)
        words = self.param("token_embed", normal, (self.vocab, self.width))
        places = self.param("pos_embed", normal, (self.length, self.width))
        x = (jnp.take(words, tokens, axis=0) + places[:count]).astype(self.dtype)
        # [B or 1, 1, queries, keys]; the first token is never padding, so no row is empty.
        seen = jnp.tril(jnp.ones((1, 1, count, count), bool))
        if mask is not None:
            seen = seen & (mask[:, None, None, :] > 0)
        for i in range(self.depth):
            x = ViTBlock(
                self.heads,
                self.hidden,
                eps=self.eps,
                dtype=self.dtype,
                quick=self.quick,
                name=f"blocks_{i}",
            )(x, seen)
        x = layer_norm(self.eps, self.dtype, "norm")(x)
        init = nn.initializers.normal(self.width**-0.5)
        kernel = self.param("projection", init, (self.width, self.projection))
        projected = jnp.matmul(x, kernel.astype(self.dtype), precision=exact(self.dtype))
        # argmax takes the first of several that are equal.
        ends = jnp.argmax(tokens if self.end < 0 else tokens == self.end, axis=-1)
        at_end = ends[:, None, None]
        pooled, embedding = (
            jnp.take_along_axis(states, at_end, axis=1)[:, 0] for states in (x, projected)
        )
        return TextStates(x, pooled, projected, embedding)
