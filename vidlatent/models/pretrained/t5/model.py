"""T5 text encoders: v1.0 and v1.1 (Raffel et al. 2020; Shazeer 2020), and UMT5 (Chung et al. 2023).

T5 v1.1 XXL reads the captions of PixArt-like generators, UMT5 XXL those of Wan.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vidlatent.errors import VidlatentError
from vidlatent.layers.dense import Linear, exact
from vidlatent.layers.norms import ChannelNorm
from vidlatent.models.pretrained.registry import Definition
from vidlatent.models.pretrained.vit import linear
from vidlatent.spec import check_shape

__all__ = ["T5Encoder", "distance_buckets"]


def distance_buckets(length: int, buckets: int, farthest: int) -> np.ndarray:
    """Bucket ``[length, length]`` of each (query, key) pair by relative position.

    Half of the buckets are for keys after the query. In each half, the first buckets hold a single
    distance each and the others grow logarithmically up to ``farthest``; the last one also takes
    all greater distances (Raffel et al. 2020, 2.1). The logarithm is computed in float32, because
    its rounding decides border cases for which the released weights were trained.
    """
    side = buckets // 2
    single = side // 2
    offset = np.arange(length)[None, :] - np.arange(length)[:, None]
    distance = np.abs(offset)
    ratio = np.log(np.maximum(distance, single).astype(np.float32) / np.float32(single))
    steps = ratio / np.float32(math.log(farthest / single)) * np.float32(side - single)
    far = np.minimum(single + steps.astype(np.int64), side - 1)
    return np.where(offset > 0, side, 0) + np.where(distance < single, distance, far)


class T5Encoder(nn.Module):
    """T5's encoder: no biases, no scaling of attention scores, RMS norms, relative positions.

    Attributes:
      vocab: rows of the token table.
      width, depth, heads: of the transformer.
      head_dim: channels per head; ``heads * head_dim`` need not be ``width``.
      hidden: width of the feed-forward layer.
      gated: ``wo(gelu(wi_0(x)) * wi_1(x))`` (v1.1, UMT5; tanh form) instead of ``wo(relu(wi(x)))``.
      own_bias: every layer learns its own position bias (UMT5); else all use layer 0's.
      buckets, farthest: see ``distance_buckets``.
      eps: of the norms.
      dtype: compute dtype; scores, softmax and norm statistics are float32.
    """

    vocab: int = 32128
    width: int = 4096
    depth: int = 24
    heads: int = 64
    head_dim: int = 64
    hidden: int = 10240
    gated: bool = True
    own_bias: bool = False
    buckets: int = 32
    farthest: int = 128
    eps: float = 1e-6
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: jax.Array, mask: jax.Array | None = None, *, all_states: bool = False
    ) -> Any:
        """Last states ``[B, N, D]`` of token numbers ``[B, N]``.

        Args:
          tokens: integers below ``vocab``.
          mask: ``[B, N]``, 0 for padding, which nothing attends to; None: no padding. The states
            *at* padding are of no use: generators put zeros there (``conditions.pad_text``).
          all_states: return a list instead: the embeddings, the output of each layer but the last,
            and the last states, which have gone through the final norm.
        """
        length = check_shape(tokens, "B N")["N"]
        if mask is not None and mask.shape != tokens.shape:
            raise VidlatentError(
                f"the text mask {tuple(mask.shape)} does not go with tokens {tuple(tokens.shape)}."
            )
        table = self.param("embedding", nn.initializers.normal(1.0), (self.vocab, self.width))
        x = jnp.take(table, tokens, axis=0).astype(self.dtype)
        # Computed on the host once for all layers: a constant of the program.
        places = distance_buckets(length, self.buckets, self.farthest)
        states, bias = [x], None
        for i in range(self.depth):
            learns = self.own_bias or i == 0  # T5 shares the first layer's bias
            x, bias = _Block(
                self.heads,
                self.head_dim,
                self.hidden,
                self.gated,
                self.buckets if learns else 0,
                self.eps,
                self.dtype,
                name=f"blocks_{i}",
            )(x, places, bias, mask)
            states.append(x)
        states[-1] = _norm(self.eps, self.dtype, "norm")(x)
        return states if all_states else states[-1]


class _Block(nn.Module):
    """Attention and feed-forward layer; hands the position bias on to layers that learn none."""

    heads: int
    head_dim: int
    hidden: int
    gated: bool
    buckets: int
    eps: float
    dtype: Any

    @nn.compact
    def __call__(self, x, places, bias, mask):
        if self.buckets:
            shape = (self.buckets, self.heads)
            table = self.param("relative_bias", nn.initializers.normal(0.1), shape)
            # [queries, keys, heads] -> [heads, queries, keys]
            bias = jnp.moveaxis(jnp.take(table, places, axis=0), -1, 0).astype(jnp.float32)
        h = _norm(self.eps, self.dtype, "norm1")(x)
        x = x + self._attend(h, bias, mask)
        h = _norm(self.eps, self.dtype, "norm2")(x)
        return x + self._feed(h), bias

    def _attend(self, h, bias, mask):
        batch, length, width = h.shape
        inner, precision = self.heads * self.head_dim, exact(self.dtype)

        def project(name):
            y = _dense(inner, self.dtype, name)(h)
            return y.reshape(batch, length, self.heads, self.head_dim)

        q, k, v = project("q"), project("k"), project("v")
        scores = jnp.einsum(
            "bqhd,bkhd->bhqk", q, k, precision=precision, preferred_element_type=jnp.float32
        )
        # No 1 / sqrt(d): T5 folds it into the initialisation of the projections.
        scores = scores + bias
        if mask is not None:
            # The smallest finite number, not -inf: an entirely masked text must not become NaN.
            scores = jnp.where(mask[:, None, None] > 0, scores, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores).astype(self.dtype)
        y = jnp.einsum("bhqk,bkhd->bqhd", weights, v, precision=precision)
        return _dense(width, self.dtype, "o")(y.reshape(batch, length, inner))

    def _feed(self, h):
        if self.gated:
            # The tanh form, as in the released code.
            gate = nn.gelu(_dense(self.hidden, self.dtype, "wi_0")(h), approximate=True)
            y = gate * _dense(self.hidden, self.dtype, "wi_1")(h)
        else:
            y = nn.relu(_dense(self.hidden, self.dtype, "wi")(h))
        return _dense(h.shape[-1], self.dtype, "wo")(y)


def _dense(features: int, dtype: Any, name: str) -> Linear:
    return linear(features, dtype, name, use_bias=False)


def _norm(eps: float, dtype: Any, name: str) -> ChannelNorm:
    return ChannelNorm(eps, dtype=dtype, use_bias=False, name=name)


def _definition(files: tuple[str, ...], source: str, **fields: Any) -> Definition:
    return Definition(
        module=functools.partial(T5Encoder, **fields),
        inputs=((1, 2),),
        input_dtype=jnp.int32,
        tables=("t5_transformers", "umt5_wan"),
        files=files,
        source=source,
        keeps_dtype=True,
    )


_ONE = ("model.safetensors",)


def _v10(name: str, width: int, depth: int, heads: int, hidden: int) -> Definition:
    fields = {"width": width, "depth": depth, "heads": heads, "hidden": hidden, "gated": False}
    return _definition(_ONE, f"google-t5/t5-{name} on huggingface.co", **fields)


def _flan(name: str, width: int, depth: int, heads: int, hidden: int) -> Definition:
    fields = {"width": width, "depth": depth, "heads": heads, "hidden": hidden}
    return _definition(_ONE, f"google/flan-t5-{name} on huggingface.co", **fields)


V10_SMALL = _v10("small", 512, 6, 8, 2048)
V10_BASE = _v10("base", 768, 12, 12, 3072)
V10_LARGE = _v10("large", 1024, 24, 16, 4096)
FLAN_SMALL = _flan("small", 512, 8, 6, 1024)
FLAN_BASE = _flan("base", 768, 12, 12, 2048)
FLAN_LARGE = _flan("large", 1024, 24, 16, 2816)
FLAN_XL = _flan("xl", 2048, 24, 32, 5120)
V11_XXL = _definition(
    ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"),
    "DeepFloyd/t5-v1_1-xxl on huggingface.co",
)
UMT5_XXL = _definition(
    ("models_t5_umt5-xxl-enc-bf16.pth",),
    "Wan-AI/Wan2.1-T2V-14B on huggingface.co; google/umt5-xxl and the shards of text_encoder in "
    "its Diffusers form will do too",
    vocab=256384,
    own_bias=True,
)
_TINY = {"vocab": 64, "width": 16, "depth": 2, "heads": 2, "head_dim": 8, "hidden": 24}
TINY = _definition((), "", **_TINY)
UMT5_TINY = _definition((), "", own_bias=True, **_TINY)
