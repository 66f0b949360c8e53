"""Multi-head softmax attention over tokens, its queries and keys normalised over the full width.

Queries, and keys with values, are made by methods of their own: keys and values may come from other
tokens than the queries (layer memory, text, image), and those of a constant context can be kept.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vidlatent.dist.rules import constrain
from vidlatent.layers.cross_attention import softmax_attention
from vidlatent.layers.mlp import dense
from vidlatent.layers.norm import ChannelNorm
from vidlatent.layers.rope import rotate_pairs

__all__ = ["TokenAttention"]

Tables = tuple[jax.Array, jax.Array]
Pair = tuple[jax.Array, jax.Array]
_HEADS = ("batch", "tokens", "heads", "width")


class TokenAttention(nn.Module):
    """Projections and attention; queries meet each source of keys in a softmax of its own.

    Attributes:
      width: channels ``D``.
      heads: attention heads.
      image: have a second set of key and value projections, for image tokens.
      eps: of the RMS norms on queries and keys, which precede the cut into heads.
    """

    width: int
    heads: int
    image: bool = False
    eps: float = 1e-6
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.q, self.k, self.v, self.o = (dense(self.width, self.dtype) for _ in range(4))
        self.norm_q, self.norm_k = self._norm(), self._norm()
        if self.image:
            self.k_img, self.v_img = (dense(self.width, self.dtype) for _ in range(2))
            self.norm_k_img = self._norm()

    def _norm(self) -> ChannelNorm:
        return ChannelNorm(self.eps, use_bias=False, dtype=self.dtype)

    def _cut(self, x: jax.Array, tables: Tables | None = None) -> jax.Array:
        x = x.reshape(*x.shape[:-1], self.heads, -1)
        return constrain(x if tables is None else rotate_pairs(x, tables), _HEADS)

    def queries(self, x: jax.Array, tables: Tables | None = None) -> jax.Array:
        """``[B, N, D] -> [B, N, K, d]``, turned by rotary tables where given."""
        return self._cut(self.norm_q(self.q(x)), tables)

    def pair(self, x: jax.Array, tables: Tables | None = None) -> Pair:
        """Keys and values of tokens ``[B, M, D]``: two ``[B, M, K, d]``."""
        return self._cut(self.norm_k(self.k(x)), tables), self._cut(self.v(x))

    def image_pair(self, x: jax.Array) -> Pair:
        """Keys and values of image tokens ``[B, M, D]`` by their own projections."""
        return self._cut(self.norm_k_img(self.k_img(x))), self._cut(self.v_img(x))

    def __call__(self, queries: jax.Array, *pairs: Pair) -> jax.Array:
        """``Wo sum_s softmax(q k_s^T / sqrt(d)) v_s``: ``[B, N, K, d] -> [B, N, D]``."""
        out = sum(softmax_attention(queries, k, v) for k, v in pairs)
        return self.o(out.astype(self.dtype).reshape(*queries.shape[:2], -1))
