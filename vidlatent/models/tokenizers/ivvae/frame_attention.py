"""Softmax attention over the positions of one frame, in bounded memory."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vidlatent.kernels.attention import map_query_blocks
from vidlatent.parallel.sharding import split_axes, ways

__all__ = ["frame_attention"]

# Smallest block of queries of a frame: fewer leave matrix units idle.
_FEWEST = 128


def frame_attention(q: jax.Array, k: jax.Array, v: jax.Array, block: int = 2048) -> jax.Array:
    """``softmax(q k^T / sqrt(d)) v`` for each frame.

    The scores of one 720p frame at an eighth of its size would take 0.8 GB, so with more than
    ``block`` positions the queries are processed in blocks. Each still sees all keys, so nothing is
    approximated. The backward pass recomputes the scores. Softmax in float32.

    On a mesh each device attends within its own frames; devices that share a frame work together.

    Args:
      q, k, v: ``[F, N, D]`` (F independent frames).
      block: queries that a device handles at a time, of all of its frames together.

    Returns:
      ``[F, N, D]`` in the dtype of ``v``.
    """
    # Scaled here: q is much smaller than the scores.
    q = q * (q.shape[-1] ** -0.5)
    frames, positions = q.shape[:2]

    def attend(queries):
        scores = jnp.einsum("fnd,fmd->fnm", queries, k, preferred_element_type=jnp.float32)
        return jnp.einsum("fnm,fmd->fnd", jax.nn.softmax(scores).astype(v.dtype), v)

    if positions <= block:
        return attend(q)
    # `block` counts the queries of all frames of a device, and each frame gets its share.
    own = frames // ways(split_axes("batch", frames))
    return map_query_blocks(attend, q, -(-positions // max(block // own, _FEWEST)))
