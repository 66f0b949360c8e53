"""MPS: how much people would like a picture made for a prompt (Zhang et al. 2024).

CLIP encodes the picture, the prompt and a list of words that name what counts, the condition.
Layers of cross-attention let the picture's tokens read those tokens of the prompt that have to do
with the condition. The score is the cosine of what becomes of the class token with the prompt's
embedding, times CLIP's learned scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vidlatent.kernels.qk_norm_rope import rotate_halves
from vidlatent.layers.dense import exact
from vidlatent.layers.positions import frequencies
from vidlatent.models.pretrained.clip.image import preprocess
from vidlatent.models.pretrained.clip.model import ClipVision
from vidlatent.models.pretrained.clip.text import ClipText
from vidlatent.models.pretrained.registry import Definition
from vidlatent.models.pretrained.vit import linear

__all__ = ["Mps", "PromptStates"]

_NEVER = -1e30  # the logit of a token that is not attended to; finite, in every dtype's range


class PromptStates(NamedTuple):
    """What of a prompt is needed to score pictures made for it.

    Attributes:
      tokens: ``[B, L, P]``: CLIP's states of its tokens, projected.
      embedding: ``[B, P]``: of these the one at the end mark.
      kept: bool ``[B, L]``: tokens that have to do with the condition.
    """

    tokens: jax.Array
    embedding: jax.Array
    kept: jax.Array


class Mps(nn.Module):
    """CLIP's two encoders and layers in which the picture reads the prompt.

    Attributes:
      vision, text: CLIP's encoders, which project to one width.
      depth: layers of the cross model.
      heads, head_dim: of its attention; all heads share one key and one value.
      expansion: width of its feed-forward layers, in widths of the tokens.
      eps: of its norms.
      dtype: compute dtype.
    """

    vision: ClipVision
    text: ClipText
    depth: int = 4
    heads: int = 16
    head_dim: int = 64
    expansion: int = 4
    eps: float = 1e-5
    dtype: Any = jnp.float32

    def setup(self) -> None:
        fields = (self.heads, self.head_dim, self.expansion, self.eps, self.dtype)
        self.cross = [_CrossLayer(*fields) for _ in range(self.depth)]
        self.own = [_OwnLayer(*fields) for _ in range(self.depth)]
        # exp of it is 100 in released weights.
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(np.log(100.0)), ())

    def __call__(
        self, images: jax.Array, tokens: jax.Array, condition: jax.Array, threshold: float = 0.3
    ) -> jax.Array:
        """Scores ``[B]`` of images ``[B, H, W, 3]`` in [-1, 1], each by its own prompt."""
        return self.score(images, self.read(tokens, condition, threshold))

    def read(self, tokens: jax.Array, condition: jax.Array, threshold: float) -> PromptStates:
        """Everything that depends on texts alone.

        Args:
          tokens: token numbers of the prompts ``[B, L]``, padded.
          condition: of the condition ``[1, L']``.
          threshold: a prompt's token is kept if its largest product with a token of the condition
            is more than this share of the largest of the prompt. 0.3 for published scores; the
            training code has 0.01. Padding takes part on both sides, as it did in training.
        """
        prompt, words = self.text(tokens), self.text(condition).projected[0]
        products = jnp.einsum(
            "bnp,mp->bnm",
            prompt.projected.astype(jnp.float32),
            words.astype(jnp.float32),
            precision=exact(jnp.float32),
        )
        nearest = products.max(axis=-1)
        kept = nearest / nearest.max(axis=-1, keepdims=True) > threshold
        return PromptStates(prompt.projected, prompt.embedding, kept)

    def score(self, images: jax.Array, prompt: PromptStates, quantize: str = "none") -> jax.Array:
        """``[B]`` float32 of images ``[B, H, W, 3]`` in [-1, 1] of any size.

        The middle square of a picture counts; ``quantize`` says how its pixels are rounded
        (``models.pretrained.clip.image.preprocess``; published scores: ``'round'``).
        """
        pixels = preprocess(images, self.vision.side, "center", quantize)
        return self.rate(self.vision.encode(pixels, "projected"), prompt)

    def rate(self, tokens: jax.Array, prompt: PromptStates) -> jax.Array:
        """``score`` from the projected tokens ``[B, 1 + n, P]`` of images, class token first."""
        x = tokens
        for read_prompt, read_itself in zip(self.cross, self.own, strict=True):
            x = read_itself(read_prompt(x, prompt.tokens, prompt.kept))
        cosine = (_normalise(x[:, 0]) * _normalise(prompt.embedding)).sum(axis=-1)
        return jnp.exp(self.logit_scale.astype(jnp.float32)) * cosine


class _Layer(nn.Module):
    """What both kinds of layers have: attention beside an MLP, all without biases.

    All heads share one key and one value.
    """

    heads: int
    head_dim: int
    expansion: int
    eps: float
    dtype: Any

    def _norm(self, x: jax.Array) -> jax.Array:
        return nn.LayerNorm(
            self.eps, dtype=self.dtype, use_bias=False, use_fast_variance=False, name="norm"
        )(x)

    def _dense(self, features: int, name: str, x: jax.Array) -> jax.Array:
        return linear(features, self.dtype, name, use_bias=False)(x)

    def _heads(self, q: jax.Array) -> jax.Array:
        return q.reshape(*q.shape[:2], self.heads, self.head_dim)

    def _attend(
        self, q: jax.Array, k: jax.Array, v: jax.Array, kept: jax.Array | None = None
    ) -> jax.Array:
        """``[B, N, K d]`` of queries ``[B, N, K, d]``, keys and values ``[B, L, d]``."""
        precision = exact(self.dtype)
        scores = jnp.einsum("bqhd,bkd->bhqk", q * self.head_dim**-0.5, k, precision=precision)
        scores = scores.astype(jnp.float32)
        if kept is not None:
            scores = jnp.where(kept[:, None, None, :], scores, _NEVER)
        weights = jax.nn.softmax(scores).astype(self.dtype)
        y = jnp.einsum("bhqk,bkd->bqhd", weights, v, precision=precision)
        return y.reshape(*y.shape[:2], -1)


class _CrossLayer(_Layer):
    """The picture reads the prompt."""

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array, kept: jax.Array) -> jax.Array:
        """``x`` ``[B, N, D]`` after reading ``context`` ``[B, L, D]`` where ``kept`` ``[B, L]``."""
        width = x.shape[-1]
        y = self._norm(x)
        q = self._dense(self.heads * self.head_dim, "q", y)
        k, v = jnp.split(self._dense(2 * self.head_dim, "kv", context), 2, axis=-1)
        read = self._dense(width, "o", self._attend(self._heads(q), k, v, kept))
        up = self._dense(2 * self.expansion * width, "up", y)
        return x + read + self._dense(width, "down", _gate(up))


class _OwnLayer(_Layer):
    """The picture reads itself; its tokens are told apart by their numbers."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[B, N, D] -> [B, N, D]``."""
        width, one = x.shape[-1], self.head_dim
        parts = (self.heads * one, one, one, 2 * self.expansion * width)
        fused = self._dense(sum(parts), "fused", self._norm(x))
        q, k, v, up = jnp.split(fused, np.cumsum(parts[:-1]), axis=-1)
        places = _place_angles(x.shape[1], one)
        # A key has the axis of heads only while it is rotated.
        q, k = rotate_halves(self._heads(q), places), rotate_halves(k[:, :, None], places)[:, :, 0]
        read = self._dense(width, "o", self._attend(q, k, v))
        return x + read + self._dense(width, "down", _gate(up))


def _gate(h: jax.Array) -> jax.Array:
    """``u * silu(g)`` of ``[u, g]``: the second half is the gate."""
    up, gate = jnp.split(h, 2, axis=-1)
    return up * nn.silu(gate)


def _place_angles(count: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines ``[count, width / 2]`` of token numbers, the class token's being 0."""
    angles = np.arange(count)[:, None] * frequencies(width)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def _normalise(x: jax.Array) -> jax.Array:
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(axis=-1, keepdims=True), 1e-24))


def _definition(
    files: tuple[str, ...],
    source: str,
    vision: Mapping[str, Any],
    text: Mapping[str, Any],
    **fields: Any,
) -> Definition:
    def make(dtype: Any = jnp.float32) -> Mps:
        towers = ClipVision(**vision, dtype=dtype), ClipText(**text, dtype=dtype)
        return Mps(*towers, **fields, dtype=dtype)

    side, length = make().vision.side, make().text.length
    return Definition(
        module=make,
        inputs=((1, side, side, 3), (1, length), (1, length)),
        input_dtype=(jnp.float32, jnp.int32, jnp.int32),
        tables=("mps",),
        files=files,
        source=source,
    )


VITH14 = _definition(("MPS_overall_checkpoint.pth",), "Kwai-Kolors/MPS on github.com", {}, {})
_SMALL = {"width": 16, "depth": 2, "heads": 2, "hidden": 32, "projection": 16}
TINY = _definition(
    (),
    "",
    {**_SMALL, "patch": 4, "side": 12},
    {**_SMALL, "vocab": 512, "length": 12},
    depth=2,
    heads=2,
    head_dim=8,
)
