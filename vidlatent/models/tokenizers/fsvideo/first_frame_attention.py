"""Attention of every decoded frame to the encoder's features of frame 0 (FSVideo 2.2.3)."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vidlatent.errors import VidlatentError
from vidlatent.kernels.attention import attention
from vidlatent.kernels.qk_norm_rope import rotate
from vidlatent.layers.dense import Pointwise
from vidlatent.layers.norms import ChannelNorm
from vidlatent.layers.positions import frequencies
from vidlatent.models.tokenizers.fsvideo.linear_attention import relu_linear_attention

__all__ = ["FirstFrameAttention", "rotate_plane", "window_attention"]

Origin = tuple[Any, Any]
# A mesh shards the rows of the picture here; XLA's partitioner handles that for the plain form
# only.
_attend = functools.partial(attention, implementation="xla")


class FirstFrameAttention(nn.Module):
    """``x + Wo attend(Wq n(x), Wk n(f), Wv n(f))`` with the features ``f`` of frame 0.

    ``Wo`` starts at zero, so a decoder that gains this module decodes as before. Keys and values
    do not depend on the decoded frames: they are the cache of a stream.

    Attributes:
      head_dim: channels per head.
      form: ``'softmax'``, or ``'linear'`` (ReLU linear attention, without rotary positions).
      window: side in tokens of aligned windows shared by queries and keys; 0 for the whole frame.
        A side of the map that is not longer than the window is not cut.
      rotary: turn queries and keys by their positions in the frame (softmax form only).
    """

    head_dim: int = 64
    form: str = "softmax"
    window: int = 0
    rotary: bool = True
    norm_eps: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        cache: Any = None,
        features: jax.Array | None = None,
        origin: Origin = (0, 0),
    ) -> tuple[jax.Array, Any]:
        """``[B, T, h, w, C] -> [B, T, h, w, C]`` and ``{'k', 'v'}`` ``[B, H, W, K, d]``.

        Args:
          x: decoded frames; a crop of them starts at ``origin`` (row, column) of the whole map.
          cache: what an earlier chunk returned; then ``features`` is not read.
          features: ``[B, H, W, F]``, the whole map of frame 0.
        """
        channels = x.shape[-1]
        if channels % self.head_dim or self.head_dim % 4:
            sizes = [size for size in range(4, channels + 1, 4) if channels % size == 0]
            raise VidlatentError(
                f"first-frame attention cuts {channels} channels into heads of {self.head_dim}: "
                "config.model.cross_head_dim must be a multiple of 4 that divides the width, here "
                f"{', '.join(map(str, sizes)) or 'none: change the width'}."
            )
        if self.form not in ("softmax", "linear"):
            raise VidlatentError(f"config.model.cross {self.form!r}: use 'softmax' or 'linear'.")
        if cache is None:
            f = self._norm("norm_kv")(features)
            cache = {"k": self._heads(f, channels, "to_k"), "v": self._heads(f, channels, "to_v")}
            if self.rotary and self.form == "softmax":
                # Keys are the whole map, so they start at (0, 0) even where the queries are a crop.
                cache["k"] = rotate_plane(cache["k"], (0, 0))
        q = self._heads(self._norm("norm_q")(x), channels, "to_q")
        if self.form == "softmax":
            q = rotate_plane(q, origin) if self.rotary else q
            y = window_attention(q, cache["k"], cache["v"], self.window, origin)
        else:
            k, v = (_tokens(cache[name]) for name in ("k", "v"))
            y = relu_linear_attention(_tokens(q), k, v).reshape(q.shape)
        y = y.astype(self.dtype).reshape(x.shape)
        out = Pointwise(channels, False, self.dtype, nn.initializers.zeros, name="to_out")
        return x + out(y), cache

    def _norm(self, name: str) -> ChannelNorm:
        return ChannelNorm(self.norm_eps, use_bias=False, dtype=self.dtype, name=name)

    def _heads(self, x: jax.Array, features: int, name: str) -> jax.Array:
        y = Pointwise(features, use_bias=False, dtype=self.dtype, name=name)(x)
        return y.reshape(*x.shape[:-1], -1, self.head_dim)


def _tokens(x: jax.Array) -> jax.Array:
    """``[B, ..., K, d] -> [B, N, K, d]``."""
    return x.reshape(x.shape[0], -1, *x.shape[-2:])


def rotate_plane(x: jax.Array, origin: Origin) -> jax.Array:
    """Rotary positions in two dimensions: ``[..., H, W, K, d]``, rows in the first half of d.

    ``origin`` is the position of the first row and column in the whole frame, so that a crop is
    turned as the whole is.
    """
    height, width, _, dim = x.shape[-4:]
    turns = frequencies(dim // 2).astype(np.float32)
    halves = []
    for axis, size in enumerate((height, width)):
        places = (origin[axis] + jnp.arange(size)).astype(jnp.float32)
        angles = places[:, None] * turns
        angles = angles[:, None, None] if axis == 0 else angles[None, :, None]
        half = x[..., axis * (dim // 2) : (axis + 1) * (dim // 2)].astype(jnp.float32)
        # Points to rotate: two [..., H, W, K, d / 4] for rows, two for columns.
        a, b = jnp.split(half, 2, axis=-1)
        halves += rotate(a, b, jnp.cos(angles), jnp.sin(angles))
    return jnp.concatenate(halves, axis=-1).astype(x.dtype)


def window_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, window: int, origin: Origin = (0, 0)
) -> jax.Array:
    """Attention from every frame's map to one map, inside aligned windows.

    Windows are counted from the whole frame's corner. Queries may be a crop that starts anywhere:
    it is laid on a canvas of whole windows, which then meet their own part of the keys.

    Args:
      q: ``[B, T, h, w, K, d]``, rows and columns from ``origin`` on.
      k, v: ``[B, H, W, K, d]``.
      window: side in tokens; 0 for the whole frame.

    Returns:
      ``[B, T, h, w, K, d]`` float32.
    """
    batch, time, *crop, heads, dim = q.shape
    whole = k.shape[1:3]
    sides = [min(window or size, size) for size in whole]
    if tuple(sides) == tuple(whole):
        # One softmax: queries [B, T h w, K, d], keys [B, H W, K, d].
        return _attend(_tokens(q), _tokens(k), _tokens(v)).reshape(q.shape)
    plans = [_canvas(*sizes) for sizes in zip(crop, whole, sides, origin, strict=True)]
    (rows, top, dy), (columns, left, dx) = plans
    canvas = (rows * sides[0], columns * sides[1])
    laid = jnp.zeros((batch, time, *canvas, heads, dim), q.dtype)
    laid = lax.dynamic_update_slice(laid, q, (0, 0, dy, dx, 0, 0))
    padded = [(0, -size % side) for size, side in zip(whole, sides, strict=True)]

    def keys(x):
        x = jnp.pad(x, ((0, 0), *padded, (0, 0), (0, 0)))
        x = lax.dynamic_slice(x, (0, top, left, 0, 0), (batch, *canvas, heads, dim))
        return _cut(x[:, None], sides).reshape(-1, sides[0] * sides[1], heads, dim)

    # Which positions of the canvas hold a real key.
    inside = (top + jnp.arange(canvas[0]) < whole[0])[:, None]
    inside = inside & (left + jnp.arange(canvas[1]) < whole[1])
    inside = jnp.broadcast_to(inside, (batch, *canvas))[:, None, :, :, None, None]
    seen = _cut(inside, sides).reshape(-1, sides[0] * sides[1])
    # A window of padding alone holds no real query; let it see everything, to avoid 0 / 0.
    seen = seen | ~jnp.any(seen, axis=1, keepdims=True)
    queries = _cut(laid, sides)
    # All frames of a window are queries to the same keys: [B windows, T s s, K, d].
    tokens = queries.reshape(-1, time * sides[0] * sides[1], heads, dim)
    out = _attend(tokens, keys(k), keys(v), seen).reshape(queries.shape)
    out = jnp.moveaxis(out, 3, 1)  # [B, T, rows, columns, side, side, K, d]
    out = jnp.moveaxis(out, 4, 3).reshape(batch, time, *canvas, heads, dim)
    return lax.dynamic_slice(out, (0, 0, dy, dx, 0, 0), q.shape)


def _canvas(size: int, whole: int, side: int, start: Any) -> tuple[int, Any, Any]:
    """Windows that a crop can touch, the first token of the first of them, the crop's offset."""
    total = -(-whole // side)
    # A crop that starts anywhere can touch one window more than it could fill.
    count = total if size == whole else min(total, (size + side - 2) // side + 1)
    # Not beyond the last window: dynamic_slice would move the start without a word.
    first = jnp.minimum(start // side, total - count) * side
    return count, first, start - first


def _cut(x: jax.Array, sides: list[int]) -> jax.Array:
    """``[B, T, H, W, ...] -> [B, H / s, W / s, T, s, s, ...]``."""
    batch, time, height, width = x.shape[:4]
    rows, columns = height // sides[0], width // sides[1]
    y = x.reshape(batch, time, rows, sides[0], columns, sides[1], *x.shape[4:])
    return jnp.moveaxis(jnp.moveaxis(y, 4, 3), 1, 3)
