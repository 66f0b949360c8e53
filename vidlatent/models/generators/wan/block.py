"""The block of Wan2.1: self-attention and feed-forward modulated by time, cross-attention not."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vidlatent.layers.attention import TokenAttention
from vidlatent.layers.dense import Mlp
from vidlatent.layers.norms import LayerNorm, modulate
from vidlatent.layers.residual import add_residual

__all__ = ["WanBlock"]

Context = dict[str, tuple[jax.Array, jax.Array]]
Tables = tuple[jax.Array, jax.Array]
_LAYOUT = ("batch", "tokens", "channel")


class WanBlock(nn.Module):
    """``x += g1 attend(u)``, ``x += cross(norm(x))``, ``x += g2 ffn(modulated norm of x)``.

    With layer memory, keys and values of the self-attention read a mixture of earlier states
    instead of ``x``, normalised and modulated as ``x`` is.

    Attributes:
      width: channels ``D``.
      heads: attention heads.
      hidden: width of the feed-forward layer.
      image: attend to image tokens too, in a softmax of their own.
      normed: mixtures are normalised and modulated already.
      eps: of every norm.
      residual_dtype: dtype of the states between sub-layers.
    """

    width: int
    heads: int
    hidden: int
    image: bool
    normed: bool = False
    eps: float = 1e-6
    residual_dtype: str = "float32"
    dtype: Any = jnp.float32

    def setup(self) -> None:
        # A learned table per block on top of one projection that all blocks share (PixArt-alpha's
        # adaLN-single): a projection per block would be about a third of all parameters.
        table = nn.initializers.normal(self.width**-0.5)
        self.modulation = self.param("modulation", table, (1, 6, self.width), jnp.float32)
        fields = {"eps": self.eps, "dtype": self.dtype}
        self.self_attn = TokenAttention(self.width, self.heads, rotary=True, **fields)
        # The only norm with weights of its own: no modulation follows it (Wan2.1).
        self.cross_norm = LayerNorm(**fields)
        self.cross_attn = TokenAttention(self.width, self.heads, self.image, **fields)
        self.ffn = Mlp(self.hidden, self.width, dtype=self.dtype)

    def _modulation(self, time: jax.Array) -> list[jax.Array]:
        """Shift, scale and gate of the attention, then of the feed-forward: ``[B, 1, D]``."""
        return jnp.split(self.modulation + time, 6, axis=1)

    def inputs(self, x: jax.Array, time: jax.Array) -> jax.Array:
        """Normalised and modulated states, ``[B, N, D]`` float32: input of queries and routers.

        ``time`` is ``[B, 6, D]``.
        """
        shift, scale, *_ = self._modulation(time)
        return modulate(x, scale, shift, self.eps)

    def context(self, text: jax.Array, image: jax.Array | None = None) -> Context:
        """Keys and values of embedded text and image tokens ``[B, S, D]``.

        They do not depend on the noisy latent or the time, so a sampler computes them once.
        """
        pairs = {"text": self.cross_attn.pair(text)}
        if image is not None:
            pairs["image"] = self.cross_attn.image_pair(image)
        return pairs

    def __call__(
        self,
        x: jax.Array,
        mixture: jax.Array | None,
        time: jax.Array,
        tokens: dict[str, jax.Array],
        tables: Tables,
    ) -> jax.Array:
        """``[B, N, D] -> [B, N, D]`` with tokens ``{'text', 'image'}`` to attend to."""
        return self.attend(x, mixture, time, self.context(**tokens), tables)

    def attend(
        self,
        x: jax.Array,
        mixture: jax.Array | None,
        time: jax.Array,
        context: Context,
        tables: Tables,
    ) -> jax.Array:
        """``[B, N, D] -> [B, N, D]``.

        Args:
          x: state.
          mixture: what keys and values read; None for ``x``.
          time: projected time embedding ``[B, 6, D]`` float32.
          context: from ``context``.
          tables: rotary tables of the tokens.
        """
        *_, gate, shift_ff, scale_ff, gate_ff = self._modulation(time)
        u = self.inputs(x, time).astype(self.dtype)
        source = u if mixture is None else mixture
        # A mixture of raw states is normalised and modulated like the state it stands for.
        if mixture is not None and not self.normed:
            source = self.inputs(mixture, time)
        # Keys of a mixture keep the position of the token that reads it.
        source = source.astype(self.dtype)
        h = self.self_attn(self.self_attn.queries(u, tables), self.self_attn.pair(source, tables))
        x = self._add(x, gate * h)
        # Text and image in a softmax each, and neither gated nor modulated by time (Wan2.1).
        # Both share the queries, and are summed before the output projection.
        h = self.cross_attn(self.cross_attn.queries(self.cross_norm(x)), *context.values())
        x = self._add(x, h)
        h = self.ffn(modulate(x, scale_ff, shift_ff, self.eps).astype(self.dtype))
        return self._add(x, gate_ff * h)

    def _add(self, x: jax.Array, h: jax.Array) -> jax.Array:
        return add_residual(x, h, self.residual_dtype, _LAYOUT)
