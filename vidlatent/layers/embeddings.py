"""Class labels as a vector or as a few tokens, with a learned one for no class.

The latter serves classifier-free guidance (Ho & Salimans 2022).
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vidlatent.layers.dense import Linear
from vidlatent.layers.positions import time_features
from vidlatent.spec import check_shape

__all__ = ["GuidanceEmbedding", "LabelEmbedding", "LabelTokens"]


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
        # Unlabelled samples train the vector of no class, too.
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


class GuidanceEmbedding(nn.Module):
    """A guidance scale as a vector that is added to the embedding of time; a new one adds 0.

    It is float32 in any compute dtype: bfloat16 would turn 6000, for a scale of 6, into 6016.

    Attributes:
      width: of the vector, and of the layer before it.
      freq_dim: sinusoids of the scale.
    """

    width: int
    freq_dim: int = 256

    @nn.compact
    def __call__(self, scale: jax.Array) -> jax.Array:
        """``[B] -> [B, width]`` float32."""
        check_shape(scale, "B")
        # A thousandfold, as times are: the sinusoids tell whole numbers up to 10,000 apart.
        features = time_features(1000.0 * scale.astype(jnp.float32), self.freq_dim)
        hidden = nn.silu(
            Linear(self.width, init=nn.initializers.normal(0.02), name="fc1")(features)
        )
        return Linear(self.width, init=nn.initializers.zeros, name="fc2")(hidden)
