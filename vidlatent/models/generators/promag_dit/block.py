"""CogVideoX's block: joint attention over video and text, each with its own modulation."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vidlatent.layers.attention import TokenAttention
from vidlatent.layers.dense import Linear, Mlp
from vidlatent.layers.norms import LayerNorm
from vidlatent.layers.residual import add_residual

__all__ = ["JointBlock"]

Tables = tuple[jax.Array, jax.Array]
_LAYOUT = ("batch", "tokens", "channel")
_zeros = nn.initializers.zeros


class JointBlock(nn.Module):
    """Attention and feed-forward on video and text tokens with the same weights.

    Norms and linear layers are shared; shift, scale and gate are not. A new block is the identity.

    Attributes:
      width: channels ``D``.
      heads: attention heads.
      hidden: width of the feed-forward layer.
      eps: of the norms of states.
      head_eps: of the norms of queries and keys.
      residual_dtype: dtype of the states between sub-layers.
    """

    width: int
    heads: int
    hidden: int
    eps: float = 1e-5
    head_eps: float = 1e-6
    residual_dtype: str = "float32"
    dtype: Any = jnp.float32

    def setup(self) -> None:
        # Modulation is float32 in any compute dtype, as its input, the time embedding, is.
        self.modulation1, self.modulation2 = (
            Linear(6 * self.width, jnp.float32, _zeros) for _ in range(2)
        )
        self.norm1, self.norm2 = (LayerNorm(self.eps, jnp.float32) for _ in range(2))
        self.attn = TokenAttention(
            self.width, self.heads, eps=self.head_eps, norm="head", dtype=self.dtype
        )
        self.ffn = Mlp(self.hidden, self.width, dtype=self.dtype)

    def __call__(
        self,
        video: jax.Array,
        text: jax.Array,
        time: jax.Array,
        tables: Tables,
        lengths: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """States of video ``[B, N, D]`` and text ``[B, S, D]``.

        Args:
          video, text: states.
          time: embedding ``[B, E]`` float32.
          tables: rotary tables of the video tokens; text has no positions.
          lengths: ``[B]``, how many text tokens are attended to; None for all.
        """
        time = nn.silu(time)
        (u, gate), (v, text_gate) = self._modulate(self.norm1, self.modulation1(time), video, text)
        # Video first, so that padding of the text stands at the end and one length hides it.
        # [B, N, K, d] and [B, S, K, d] -> [B, N + S, K, d], for keys and for values.
        pairs = zip(self.attn.pair(u, tables), self.attn.pair(v), strict=True)
        k, values = (jnp.concatenate(pair, axis=1) for pair in pairs)
        if lengths is not None:
            lengths = lengths + video.shape[1]
        # Queries of video and text in two calls: concatenated, sharded video tokens would move.
        h = self.attn(self.attn.queries(u, tables), (k, values), lengths=lengths)
        video = self._add(video, gate * h)
        h = self.attn(self.attn.queries(v), (k, values), lengths=lengths)
        text = self._add(text, text_gate * h)
        (u, gate), (v, text_gate) = self._modulate(self.norm2, self.modulation2(time), video, text)
        return self._add(video, gate * self.ffn(u)), self._add(text, text_gate * self.ffn(v))

    def _modulate(self, norm, parts, video, text):
        """For video and text: normalised, scaled and shifted states, and the gate ``[B, 1, D]``."""
        # [B, 6 D] -> six of [B, 1, D]: shift, scale, gate of the video, then of the text.
        parts = jnp.split(parts[:, None], 6, axis=-1)

        def one(x, shift, scale, gate):
            return (norm(x) * (1 + scale) + shift).astype(self.dtype), gate

        return one(video, *parts[:3]), one(text, *parts[3:])

    def _add(self, x: jax.Array, h: jax.Array) -> jax.Array:
        return add_residual(x, h, self.residual_dtype, _LAYOUT)
