"""Softmax attention over the positions of one frame, in bounded memory."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vidlatent.kernels.attention import map_query_blocks
from vidlatent.parallel.sharding import split_axes, ways

__all__ = ["frame_attention"]

# Queries of each frame at a time, at least: fewer leave matrix units idle.
_FEWEST = 128


def frame_attention(q: jax.Array, k: jax.Array, v: jax.Array, block: int = 2048) -> jax.Array:
    """``softmax(q k^T / sqrt(d)) v`` for each frame.

    All scores of one 720p frame at an eighth of its size would take 0.8 GB, so beyond ``block``
    positions the queries are taken some at a time; each still meets all keys, so nothing is
    approximated. The backward pass recomputes their scores. Softmax in float32.

    On a mesh devices attend in their own frames alone, several of one frame together.

    Args:
      q, k, v: ``[F, N, D]`` (F independent frames).
      block: queries that a device handles at a time, of all of its frames together.

    Returns:
      ``[F, N, D]`` in the dtype of ``v``.
    """
    q = q * (q.shape[-1] ** -0.5)
    frames, positions = q.shape[:2]

    def attend(queries):
        scores = jnp.einsum("fnd,fmd->fnm", queries, k, preferred_element_type=jnp.float32)
        return jnp.einsum("fnm,fmd->fnd", jax.nn.softmax(scores).astype(v.dtype), v)

    if positions <= block:
        return attend(q)
    own = frames // ways(split_axes("batch", frames))
    return map_query_blocks(attend, q, -(-positions // max(block // own, _FEWEST)))
