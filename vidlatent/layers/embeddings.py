"""Small trainable conditions: class labels, and texts of hashed words or bytes.

Neither needs a download. Both learn what stands for no condition, for classifier-free guidance.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vidlatent.errors import VidlatentError
from vidlatent.spec import check_shape

__all__ = ["LabelEmbedding", "LabelTokens", "TextEmbedding"]

_normal = nn.initializers.normal(0.02)


class LabelEmbedding(nn.Module):
    """A vector for each class, and row ``classes`` for none.

    Attributes:
      classes: labels are 0..``classes`` - 1; ``classes`` itself, or a negative, asks for no class.
      width: of the vectors.
      std: standard deviation of new vectors.
    """

    classes: int
    width: int
    std: float = 0.02
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, labels: jax.Array, drop: jax.Array | None = None) -> jax.Array:
        """``[B] -> [B, D]``; where ``drop`` ``[B]`` is true, the vector of no class."""
        check_shape(labels, "B")
        init = nn.initializers.normal(self.std)
        table = self.param("embedding", init, (self.classes + 1, self.width), jnp.float32)
        missing = labels < 0 if drop is None else drop | (labels < 0)
        labels = jnp.where(missing, self.classes, labels)
        return jnp.take(table, labels, axis=0).astype(self.dtype)


class LabelTokens(nn.Module):
    """A few tokens for each class, in the place of an embedded text.

    New tokens have the size of normalised ones: classes are apart from the first step on.

    Attributes:
      classes: as of ``LabelEmbedding``.
      count: tokens of a class.
      width: of a token.
    """

    classes: int
    count: int
    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, labels: jax.Array, drop: jax.Array | None = None) -> jax.Array:
        """``[B] -> [B, count, D]``; where ``drop`` ``[B]`` is true, the tokens of no class."""
        embedding = LabelEmbedding(
            self.classes, self.count * self.width, 1.0, self.dtype, name="tokens"
        )
        return embedding(labels, drop).reshape(-1, self.count, self.width)


class TextEmbedding(nn.Module):
    """A vector for each token plus one for its place.

    Token 0 is padding. At the first place it is learned and seen like any other token, so a
    dropped or empty text is one token long and attention always has something to read.

    Attributes:
      vocab: tokens are below it (``data.text.tokens``: the buckets of words, or 257 for bytes).
      width: of the vectors.
      length: longest text in tokens.
    """

    vocab: int
    width: int
    length: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: jax.Array, mask: jax.Array, drop: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """States ``[B, N, D]``, zero at padding, and their mask ``[B, N]`` int32.

        Args:
          tokens, mask: ``[B, N]``.
          drop: ``[B]``, true for texts to leave out.

        Raises:
          VidlatentError: texts longer than ``length``.
        """
        count = check_shape(tokens, "B N")["N"]
        if count > self.length:
            raise VidlatentError(
                f"texts of {count} tokens exceed the embedder's length {self.length}: cut them."
            )
        words = self.param("embedding", _normal, (self.vocab, self.width), jnp.float32)
        places = self.param("places", _normal, (self.length, self.width), jnp.float32)
        if drop is not None:
            mask = jnp.where(drop[:, None], 0, mask)
        tokens = jnp.where(mask > 0, tokens, 0)
        mask = jnp.int32(mask).at[:, 0].set(1)
        states = (jnp.take(words, tokens, axis=0) + places[:count]) * mask[..., None]
        return states.astype(self.dtype), mask
