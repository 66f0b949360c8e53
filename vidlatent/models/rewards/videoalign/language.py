"""Qwen2 (Yang et al. 2024), the language model: causal, few key heads, gated feed-forward layers.

Text is padded on the right. No token attends to a later one, so no mask of the padding is needed:
what stands at the padding is of no use, and nothing else depends on it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vidlatent.kernels.qk_norm_rope import rotate_halves
from vidlatent.layers.dense import Linear, exact
from vidlatent.layers.norms import ChannelNorm
from vidlatent.layers.scan import run_stacked, stack_params
from vidlatent.models.pretrained.vit import linear
from vidlatent.models.rewards.videoalign.positions import Tables

__all__ = ["DecoderBlock", "LanguageModel", "LanguageSizes", "rms_norm"]


@dataclasses.dataclass(frozen=True)
class LanguageSizes:
    """Of the language model; the defaults are Qwen2-VL-2B's with three further tokens.

    Attributes:
      vocab: rows of the token table.
      width, depth, heads, hidden: of the transformer.
      key_heads: heads of keys and values; each serves ``heads / key_heads`` heads of queries.
      base: of the wave lengths of rotary positions.
      sections: pairs of a head's channels that turn by time, row and column.
      eps: of the norms.
    """

    vocab: int = 151_660
    width: int = 1536
    depth: int = 28
    heads: int = 12
    key_heads: int = 2
    hidden: int = 8960
    base: float = 1e6
    sections: tuple[int, int, int] = (16, 24, 24)
    eps: float = 1e-6

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


class LanguageModel(nn.Module):
    """Token table and blocks; the last norm is the head's.

    Attributes:
      sizes: of the transformer.
      remat: keep only the states between blocks for the backward pass.
    """

    sizes: LanguageSizes
    remat: bool = True
    dtype: Any = jnp.float32

    def setup(self) -> None:
        shape, normal = (self.sizes.vocab, self.sizes.width), nn.initializers.normal(0.02)
        # Called a kernel, so that it is split over devices.
        self.embedding = self.param("embedding", lambda key: {"kernel": normal(key, shape)})
        self.blocks = stack_params(self, "blocks", self._first_block, self.sizes.depth)

    def _block(self) -> DecoderBlock:
        # parent=None: not a submodule, but a pure function applied to slices of the stack.
        return DecoderBlock(self.sizes, self.dtype, parent=None)

    def _first_block(self, key: jax.Array) -> Any:
        table = jnp.ones((1, self.sizes.head_dim // 2))
        return self._block().init(key, jnp.zeros((1, 1, self.sizes.width)), (table, table))[
            "params"
        ]

    def embed(self, tokens: jax.Array) -> jax.Array:
        """``[B, N] -> [B, N, D]``."""
        # Cast first, so that a frozen table is kept in the compute dtype (models.frozen).
        return jnp.take(self.embedding["kernel"].astype(self.dtype), tokens, axis=0)

    def __call__(self, x: jax.Array, tables: Tables) -> jax.Array:
        """States after the last block: ``[B, N, D] -> [B, N, D]``."""
        block = self._block()
        return run_stacked(
            lambda x, own: block.apply({"params": own}, x, tables),
            x,
            self.blocks,
            remat=self.remat,
        )


class DecoderBlock(nn.Module):
    """``x + attention(norm(x))``, then ``x + fc2(silu(gate(norm(x))) * fc1(norm(x)))``."""

    sizes: LanguageSizes
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, tables: Tables) -> jax.Array:
        """``[B, N, D] -> [B, N, D]``; ``tables`` turn queries and keys."""
        eps = self.sizes.eps
        h = rms_norm(eps, self.dtype, "norm1")(x)
        x = x + CausalAttention(self.sizes, self.dtype, name="attn")(h, tables)
        return x + self._feed(rms_norm(eps, self.dtype, "norm2")(x))

    def _feed(self, h: jax.Array) -> jax.Array:
        def dense(features: int, name: str) -> Linear:
            return linear(features, self.dtype, name, use_bias=False)

        gated = nn.silu(dense(self.sizes.hidden, "gate")(h)) * dense(self.sizes.hidden, "fc1")(h)
        return dense(self.sizes.width, "fc2")(gated)


class CausalAttention(nn.Module):
    """Each token attends to itself and to those before it; scores and softmax in float32."""

    sizes: LanguageSizes
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h: jax.Array, tables: Tables) -> jax.Array:
        """``[B, N, D] -> [B, N, D]``."""
        sizes, (batch, count, width) = self.sizes, h.shape

        def project(name: str, heads: int) -> jax.Array:
            y = linear(heads * sizes.head_dim, self.dtype, name)(h)
            return y.reshape(batch, count, heads, sizes.head_dim)

        q = rotate_halves(project("q", sizes.heads), tables)
        k = rotate_halves(project("k", sizes.key_heads), tables)
        v = project("v", sizes.key_heads)
        # Head i of the queries belongs to head i // r of the keys.
        q = q.reshape(batch, count, sizes.key_heads, -1, sizes.head_dim)
        kind, precision = jnp.promote_types(self.dtype, jnp.float32), exact(self.dtype)
        scores = jnp.einsum(
            "bqgrd,bkgd->bgrqk", q, k, precision=precision, preferred_element_type=kind
        )
        earlier = jnp.tril(jnp.ones((count, count), bool))
        scores = jnp.where(earlier, scores * sizes.head_dim**-0.5, -jnp.inf)
        weights = jax.nn.softmax(scores).astype(self.dtype)
        y = jnp.einsum("bgrqk,bkgd->bqgrd", weights, v, precision=precision)
        return linear(width, self.dtype, "o", use_bias=False)(y.reshape(batch, count, -1))


def rms_norm(eps: float, dtype: Any, name: str) -> ChannelNorm:
    """``x / rms(x) * scale``."""
    return ChannelNorm(eps, dtype=dtype, use_bias=False, name=name)
