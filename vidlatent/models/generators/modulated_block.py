"""The block of DiT, Latte and PixArt: attention and feed-forward under shift, scale and gate."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vidlatent.kernels.norms import layer_norm
from vidlatent.layers.attention import Pair, TokenAttention
from vidlatent.layers.dense import Linear, Mlp
from vidlatent.layers.norms import modulate
from vidlatent.layers.residual import add_residual
from vidlatent.models.generators.trunk import show_trunk

__all__ = ["ModulatedBlock", "ModulatedHead", "small_mlp"]

_LAYOUT = ("batch", "time", "tokens", "channel")
# What the attention's batch and tokens are on the mesh. Along time every place of a frame is a
# sequence of its own, so the batch holds samples times places: 'rows'.
_AXES = {"space": ("batch", "tokens"), "time": ("rows", "time")}


def small_mlp(width: int, activation: str = "silu", dtype: Any = jnp.float32) -> Mlp:
    """The two-layer MLP behind a time or text embedding, initialised as in DiT."""
    return Mlp(width, width, activation, nn.initializers.normal(0.02), dtype)


class ModulatedBlock(nn.Module):
    """``x += g1 attend(u(x))``, ``x += cross(x)``, ``x += g2 ffn(u'(x))`` on ``[B, T, N, D]``.

    Attributes:
      width: channels ``D``.
      heads: attention heads.
      hidden: width of the feed-forward layer.
      single: modulation is a table of the block's own plus a projection that all blocks share
        (PixArt's adaLN-single); False: a projection of the block's own, zero at the start
        (adaLN-zero).
      along: tokens attend within their frame (``'space'``) or to the same place in all frames
        (``'time'``). For full attention, reshape ``[B, T, N, D]`` to ``[B, 1, T N, D]``.
      cross: attend to condition tokens, without norm, gate or modulation (PixArt-alpha).
      time_after: attend along time at the end of the block, too, with an output that starts at
        zero.
      eps: of every norm.
      residual_dtype: dtype of the states between sub-layers.
    """

    width: int
    heads: int
    hidden: int
    single: bool = False
    along: str = "space"
    cross: bool = False
    time_after: bool = False
    eps: float = 1e-6
    residual_dtype: str = "float32"
    dtype: Any = jnp.float32

    def setup(self) -> None:
        if self.single:
            # Published as randn / sqrt(width) (PixArt-alpha, 2.3).
            table = nn.initializers.normal(self.width**-0.5)
            self.modulation = self.param("modulation", table, (6, self.width), jnp.float32)
        else:
            # Gates of 0: a new block is the identity (DiT's adaLN-zero, 3.2).
            self.modulation = Linear(6 * self.width, jnp.float32, nn.initializers.zeros)
        self.attn = self._attention(self.along)
        if self.cross:
            # Zero output: a DiT that gains cross-attention computes as before (PixArt-alpha, 2.3).
            self.cross_attn = self._attention("space", zero=True)
        if self.time_after:
            self.time_attn = self._attention("time", zero=True)
        self.mlp = Mlp(self.hidden, self.width, dtype=self.dtype)

    def _attention(self, along: str, **fields: Any) -> TokenAttention:
        return TokenAttention(
            self.width, self.heads, norm="none", axes=_AXES[along], dtype=self.dtype, **fields
        )

    def context(self, tokens: jax.Array) -> Pair:
        """Keys and values of condition tokens ``[B, S, D]``; they depend on nothing else."""
        return self.cross_attn.pair(tokens)

    def __call__(
        self,
        x: jax.Array,
        time: jax.Array,
        context: Pair | None = None,
        lengths: jax.Array | None = None,
    ) -> jax.Array:
        """``[B, T, N, D] -> [B, T, N, D]``.

        Args:
          x: state.
          time: float32; with ``single`` the shared projection ``[B, 6, D]``, else the embedding
            ``[B, D]``.
          context: from ``context``, for ``cross``.
          lengths: ``[B]``, how many condition tokens exist, from the first on; None for all.
        """
        if self.single:
            # [6, D] + [B, 6, D]
            parts = self.modulation + time
        else:
            parts = self.modulation(nn.silu(time)).reshape(-1, 6, self.width)
        parts = parts[:, :, None, None]  # over frames and tokens
        # [B, 6, 1, 1, D] -> six of [B, 1, 1, D], in the order of DiT and PixArt.
        shift, scale, gate, shift_ff, scale_ff, gate_ff = jnp.moveaxis(parts, 1, 0)
        u = modulate(x, scale, shift, self.eps)
        x = self._add(x, gate * self._attend(self.attn, u, self.along))
        if self.cross:
            # All frames in one sequence, as they read the same conditions.
            # [B, T, N, D] -> [B, T N, D]
            tokens = x.reshape(x.shape[0], -1, self.width).astype(self.dtype)
            h = self.cross_attn(self.cross_attn.queries(tokens), context, lengths=lengths)
            x = self._add(x, h.reshape(x.shape))
        h = self.mlp(modulate(x, scale_ff, shift_ff, self.eps).astype(self.dtype))
        x = self._add(x, gate_ff * h)
        if self.time_after:
            u = layer_norm(x, self.eps)
            x = self._add(x, self._attend(self.time_attn, u, "time"))
        return x

    def _attend(self, attn: TokenAttention, u: jax.Array, along: str) -> jax.Array:
        u = u.astype(self.dtype)
        # Attention runs over the second-last axis; the axes before it become the batch.
        # [B, T, N, D], along time [B, N, T, D]
        u = u if along == "space" else u.swapaxes(1, 2)
        tokens = u.reshape(-1, *u.shape[2:])
        h = attn(attn.queries(tokens), attn.pair(tokens)).reshape(u.shape)
        return h if along == "space" else h.swapaxes(1, 2)

    def _add(self, x: jax.Array, h: jax.Array) -> jax.Array:
        return add_residual(x, h, self.residual_dtype, _LAYOUT)


class ModulatedHead(nn.Module):
    """The head: a modulated norm and a linear layer that is initialised with zeros.

    Attributes:
      features: values of a patch.
      single, eps: as of ``ModulatedBlock``.
    """

    features: int
    single: bool = False
    eps: float = 1e-6
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, time: jax.Array) -> jax.Array:
        """``[B, N, D] -> [B, N, features]`` float32; ``time`` is the embedding ``[B, D]``."""
        width = x.shape[-1]
        if self.single:
            table = nn.initializers.normal(width**-0.5)
            parts = self.param("modulation", table, (2, width), jnp.float32) + time[:, None]
        else:
            zero = nn.initializers.zeros
            parts = Linear(2 * width, jnp.float32, zero, name="modulation")(nn.silu(time))
            parts = parts.reshape(-1, 2, width)
        shift, scale = jnp.split(parts, 2, axis=1)
        y = modulate(x, scale, shift, self.eps).astype(self.dtype)
        show_trunk(self, y)
        # Zeros: a new model predicts 0 (DiT, 3.2).
        linear = Linear(self.features, self.dtype, nn.initializers.zeros, name="linear")
        return linear(y).astype(jnp.float32)
