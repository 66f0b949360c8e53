"""The transformer block of DINOv2, VideoMAE, CLIP and Qwen2-VL: norms first, softmax attention."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vidlatent.kernels.qk_norm_rope import rotate_halves
from vidlatent.layers.dense import Linear, exact

__all__ = ["ViTBlock", "layer_norm", "linear"]


Tables = tuple[jax.Array, jax.Array]
# How random weights begin, for tests and smoke runs: released ones take their place.
_lecun = nn.initializers.lecun_normal()


def linear(features: int, dtype: Any, name: str, use_bias: bool = True) -> Linear:
    """The dense layer of pretrained networks: ``[..., I] -> [..., features]``."""
    return Linear(features, dtype, _lecun, use_bias, name=name)


def layer_norm(eps: float, dtype: Any, name: str) -> nn.LayerNorm:
    """A layer norm whose variance takes a second pass over the channels.

    The frameworks that trained the weights do so, on every platform. ``layers.norms.LayerNorm``
    saves that pass on TPUs, at a relative error of some 1e-7 that features need not have.
    """
    return nn.LayerNorm(eps, dtype=dtype, use_fast_variance=False, name=name)


class ViTBlock(nn.Module):
    """``x + s1 * attention(norm(x))``, then ``x + s2 * mlp(norm(x))``.

    Attributes:
      heads: attention heads.
      hidden: width of the feed-forward layer.
      gated: ``down(silu(gate(x)) * up(x))`` instead of ``fc2(gelu(fc1(x)))`` (exact GELU).
      layer_scale: learn the factors ``s1`` and ``s2`` per channel; without, they are 1.
      key_bias: whether keys have a bias; queries and values do.
      eps: of the layer norms.
      quick: ``x * sigmoid(1.702 x)`` (OpenAI's CLIP) in place of the GELU.
    """

    heads: int
    hidden: int
    gated: bool = False
    layer_scale: bool = False
    key_bias: bool = True
    eps: float = 1e-6
    dtype: Any = jnp.float32
    quick: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: jax.Array | None = None, tables: Tables | None = None
    ) -> jax.Array:
        """``[B, N, D] -> [B, N, D]``.

        Args:
          x: tokens.
          mask: bool, of the shape ``[B, heads, queries, keys]`` or one that broadcasts to it: which
            keys a query attends to, one or more; None: all.
          tables: rotary positions ``[N, d / 2]`` of queries and keys; None: none.
        """
        h = _Attention(self.heads, self.key_bias, self.dtype, name="attn")(
            layer_norm(self.eps, self.dtype, "norm1")(x), mask, tables
        )
        x = x + self._scale(h, "scale1")
        h = _Mlp(self.hidden, self.gated, self.dtype, self.quick, name="mlp")(
            layer_norm(self.eps, self.dtype, "norm2")(x)
        )
        return x + self._scale(h, "scale2")

    def _scale(self, h: jax.Array, name: str) -> jax.Array:
        if not self.layer_scale:
            return h
        scale = self.param(name, nn.initializers.ones, (h.shape[-1],), jnp.float32)
        return h * scale.astype(self.dtype)


class _Attention(nn.Module):
    heads: int
    key_bias: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None, tables: Tables | None) -> jax.Array:
        batch, count, width = x.shape
        head = width // self.heads

        def project(name: str, use_bias: bool = True) -> jax.Array:
            y = linear(width, self.dtype, name, use_bias)(x)
            return y.reshape(batch, count, self.heads, head)

        q, k, v = project("q"), project("k", self.key_bias), project("v")
        if tables is not None:
            q, k = rotate_halves(q, tables), rotate_halves(k, tables)
        precision = exact(self.dtype)
        # Scaled before the product, as in the released code: in half precision the order matters.
        scores = jnp.einsum("bqhd,bkhd->bhqk", q * head**-0.5, k, precision=precision)
        # [B, heads, queries, keys]; float32 also where the products are half precision.
        scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
        if mask is not None:
            scores = jnp.where(mask, scores, -jnp.inf)
        weights = jax.nn.softmax(scores).astype(self.dtype)
        y = jnp.einsum("bhqk,bkhd->bqhd", weights, v, precision=precision)
        return linear(width, self.dtype, "o")(y.reshape(x.shape))


class _Mlp(nn.Module):
    hidden: int
    gated: bool
    dtype: Any
    quick: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def dense(features: int, name: str) -> Linear:
            return linear(features, self.dtype, name)

        if self.gated:
            h = nn.silu(dense(self.hidden, "gate")(x)) * dense(self.hidden, "up")(x)
            return dense(x.shape[-1], "down")(h)
        h = dense(self.hidden, "fc1")(x)
        # OpenAI's weights were trained with this approximation, all others with the exact GELU.
        h = h * nn.sigmoid(1.702 * h) if self.quick else nn.gelu(h, approximate=False)
        return dense(x.shape[-1], "fc2")(h)
