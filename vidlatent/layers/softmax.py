"""Softmax attention over the positions of one frame, in bounded memory."""

from __future__ import annotations

import jax
import jax.numpy as jnp

__all__ = ["frame_attention"]


def frame_attention(q: jax.Array, k: jax.Array, v: jax.Array, block: int = 2048) -> jax.Array:
    """``softmax(q k^T / sqrt(d)) v`` for each frame.

    All scores of one 720p frame at an eighth of its size would take 0.8 GB, so beyond ``block``
    positions the queries are taken block by block; each still meets all keys, so nothing is
    approximated. The backward pass recomputes a block's scores. Softmax in float32.

    Args:
      q, k, v: ``[F, N, D]`` (F independent frames).
      block: queries handled at a time.

    Returns:
      ``[F, N, D]`` in the dtype of ``v``.
    """
    q = q * (q.shape[-1] ** -0.5)
    frames, positions, width = q.shape
    if positions <= block:
        return _attend(q, k, v)
    count = -(-positions // block)
    padded = jnp.pad(q, ((0, 0), (0, count * block - positions), (0, 0)))
    blocks = padded.reshape(frames * count, 1, block, width)

    def one(item):
        frame, queries = item
        keys, values = (jax.lax.dynamic_slice_in_dim(a, frame, 1) for a in (k, v))
        return _attend(queries, keys, values)

    owners = jnp.repeat(jnp.arange(frames), count)
    out = jax.lax.map(jax.checkpoint(one), (owners, blocks))
    return out.reshape(frames, count * block, width)[:, :positions]


def _attend(q, k, v):
    scores = jnp.einsum("fnd,fmd->fnm", q, k, preferred_element_type=jnp.float32)
    return jnp.einsum("fnm,fmd->fnd", jax.nn.softmax(scores).astype(v.dtype), v)
