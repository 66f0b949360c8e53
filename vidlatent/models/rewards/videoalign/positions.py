"""Rotary positions: of patches in the vision tower, of tokens in the language model.

Tables are cosines and sines ``[..., N, d / 2]``, as ``kernels.qk_norm_rope.rotate_halves`` reads
them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vidlatent.layers.positions import frequencies, rope_tables

__all__ = ["axis_positions", "axis_tables", "patch_tables", "sequence_tables"]

Tables = tuple[jax.Array, jax.Array]
Span = tuple[jax.Array, tuple[int, int, int]]


def patch_tables(rows: int, columns: int, head_dim: int, merge: int = 2) -> Tables:
    """Tables ``[rows columns, d / 2]`` of a frame's patches, in the order of ``frames.patchify``.

    The first half of the pairs turns with the row, the second with the column; time has no part.
    """
    side = head_dim // 2
    tables = rope_tables((1, rows, columns), head_dim, sizes=(0, side, side))

    def by_token(table: np.ndarray) -> np.ndarray:
        x = table.reshape(rows // merge, merge, columns // merge, merge, side)
        return x.transpose(0, 2, 1, 3, 4).reshape(rows * columns, side)

    return by_token(tables[0]), by_token(tables[1])


def sequence_tables(length: int, head_dim: int, base: float) -> Tables:
    """Tables ``[length, d / 2]`` of the token's number, which the released reward was trained with.

    All three axes of Qwen2-VL's positions are that number then, which makes them ordinary ones.
    """
    angles = np.arange(length)[:, None] * frequencies(head_dim, base)
    return np.float32(np.cos(angles)), np.float32(np.sin(angles))


def axis_positions(length: int, *spans: Span) -> jax.Array:
    """Qwen2-VL's positions in time, rows and columns, ``[3, B, length]`` int32.

    Text counts on along all three axes. The tokens of a picture or a video begin where the text
    stopped and count along their own axes; the text after them goes on behind the largest position.

    Args:
      length: tokens of the sequence.
      spans: of each picture or video: bool ``[B, length]``, which tokens are its, one after
        another; and their grid in time, rows and columns.
    """
    place = jnp.arange(length)[None]
    # In place of as many positions as it has tokens, a span takes up those of its longest axis.
    text, inside = place, []
    for own, grid in spans:
        count, start = math.prod(grid), jnp.argmax(own, axis=1, keepdims=True)
        text = text - jnp.where(place >= start + count, count - max(grid), 0)
        inside.append((own, jnp.where(own, place - start, 0), grid))
    axes = [text, text, text]
    for own, offset, (_, rows, columns) in inside:
        along = (offset // (rows * columns), offset // columns % rows, offset % columns)
        axes = [
            jnp.where(own, text - offset + axis, position)
            for axis, position in zip(along, axes, strict=True)
        ]
    return jnp.stack(axes).astype(jnp.int32)


def axis_tables(
    positions: jax.Array, head_dim: int, base: float, sections: Sequence[int]
) -> Tables:
    """Tables ``[B, L, d / 2]`` of positions ``[3, B, L]``; ``sections`` are an axis' pairs each."""
    axis = np.repeat(np.arange(len(sections)), sections)
    # [d / 2, B, L] -> [B, L, d / 2]
    angles = jnp.moveaxis(positions[axis].astype(jnp.float32), 0, -1)
    angles = angles * np.float32(frequencies(head_dim, base))
    return jnp.cos(angles), jnp.sin(angles)
