"""Multi-head softmax attention over tokens, with the norms of queries and keys that models have.

Queries, and keys with values, are computed by separate methods: keys and values may come from other
tokens than the queries (layer memory, text, image), and a sampler computes those of its conditions
only once.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vidlatent.errors import VidlatentError
from vidlatent.kernels.attention import attention
from vidlatent.kernels.qk_norm_rope import qk_norm_rope
from vidlatent.layers.dense import Linear
from vidlatent.layers.norms import ChannelNorm, LayerNorm
from vidlatent.layers.positions import rotate_pairs
from vidlatent.parallel.sharding import constrain

__all__ = ["Pair", "TokenAttention"]

Tables = tuple[jax.Array, jax.Array]
Pair = tuple[jax.Array, jax.Array]
_NORMS = ("width", "head", "none")


class TokenAttention(nn.Module):
    """Projections and attention; queries meet each source of keys in a softmax of its own.

    Attributes:
      width: channels ``D``.
      heads: attention heads.
      image: have a second set of key and value projections, for image tokens.
      eps: of the norms of queries and keys.
      norm: RMS over the full ``'width'`` before the split into heads (Wan2.1), layer norm of each
        ``'head'`` (CogVideoX), or ``'none'`` (DiT, PixArt).
      rotary: queries and keys get rotary positions in the fused form of ``kernels.qk_norm_rope``,
        with norm ``'width'`` only; their kernels and biases are stored as ``[..., K, d]``.
      zero: initialise the output projection with zeros.
      axes: logical names of the first two axes, for their sharding.
    """

    width: int
    heads: int
    image: bool = False
    eps: float = 1e-6
    norm: str = "width"
    rotary: bool = False
    zero: bool = False
    axes: tuple[str, str] = ("batch", "tokens")
    dtype: Any = jnp.float32

    def setup(self) -> None:
        if self.norm not in _NORMS:
            raise VidlatentError(f"norm of queries and keys {self.norm!r}: use one of {_NORMS}.")
        # Kernels by head, so that tensor parallelism splits whole heads.
        cut = (self.heads, self.width // self.heads) if self.rotary else self.width
        self.q, self.k = Linear(cut, self.dtype), Linear(cut, self.dtype)
        self.v = Linear(self.width, self.dtype)
        last = {"init": nn.initializers.zeros} if self.zero else {}
        self.o = Linear(self.width, self.dtype, **last)
        if self.norm != "none":
            self.norm_q, self.norm_k = self._norm(), self._norm()
        if self.image:
            self.k_img, self.v_img = (Linear(self.width, self.dtype) for _ in range(2))
            self.norm_k_img = self._norm()

    def _norm(self) -> nn.Module:
        if self.rotary:
            return _HeadScale((self.heads, self.width // self.heads))
        if self.norm == "head":
            return LayerNorm(self.eps, self.dtype)
        return ChannelNorm(self.eps, use_bias=False, dtype=self.dtype)

    def _heads(self, x: jax.Array, norm: str = "", tables: Tables | None = None) -> jax.Array:
        """``[B, N, D] -> [B, N, K, d]``, normalised by the module ``norm`` and rotated."""
        axes = (*self.axes, "heads", "width")
        if norm and self.rotary:
            scale = getattr(self, norm)().reshape(-1)
            return constrain(qk_norm_rope(x, scale, tables, self.heads, self.eps), axes)
        # [B, N, D] -> [B, N, K, d]: a norm by width comes before the cut, one by head after it.
        if norm and self.norm == "width":
            x = getattr(self, norm)(x)
        x = x.reshape(*x.shape[:-1], self.heads, -1)
        if norm and self.norm == "head":
            x = getattr(self, norm)(x)
        x = x if tables is None else rotate_pairs(x, tables)
        return constrain(x, axes)

    def queries(self, x: jax.Array, tables: Tables | None = None) -> jax.Array:
        """``[B, N, D] -> [B, N, K, d]``, rotated by rotary tables if given."""
        return self._heads(self.q(x), "norm_q", tables)

    def pair(self, x: jax.Array, tables: Tables | None = None) -> Pair:
        """Keys and values of tokens ``[B, M, D]``: two ``[B, M, K, d]``."""
        return self._heads(self.k(x), "norm_k", tables), self._heads(self.v(x))

    def image_pair(self, x: jax.Array) -> Pair:
        """Keys and values of image tokens ``[B, M, D]`` by their own projections."""
        return self._heads(self.k_img(x), "norm_k_img"), self._heads(self.v_img(x))

    def __call__(
        self, queries: jax.Array, *pairs: Pair, lengths: jax.Array | None = None
    ) -> jax.Array:
        """``Wo sum_s softmax(q k_s^T / sqrt(d)) v_s``: ``[B, N, K, d] -> [B, N, D]``.

        Args:
          queries: from ``queries``.
          pairs: keys and values, each in a softmax of its own.
          lengths: ``[B]``, how many keys exist, from the first on; None for all.
        """
        # A softmax per source, and the results are added (Wan2.1's text and image).
        out = sum(attention(queries, k, v, lengths=lengths) for k, v in pairs)
        return self.o(out.astype(self.dtype).reshape(*queries.shape[:2], -1))


class _HeadScale(nn.Module):
    """The scale ``[K, d]`` of a norm over the full width; sharded like the heads."""

    shape: tuple[int, int]

    @nn.compact
    def __call__(self) -> jax.Array:
        return self.param("scale", nn.initializers.ones, self.shape, jnp.float32)
