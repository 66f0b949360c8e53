"""Rotary positions in time, rows and columns, over adjacent channel pairs (Wan2.1, CogVideoX)."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vidlatent.errors import VidlatentError

__all__ = ["axis_sizes", "chunk_places", "eighths", "fitted_places", "rope_tables", "rotate_pairs"]


def axis_sizes(head_dim: int) -> tuple[int, int, int]:
    """Channels of a head that time, rows and columns turn: 44, 42, 42 of 128."""
    if head_dim < 6 or head_dim % 2:
        raise VidlatentError(
            f"heads of {head_dim} channels cannot hold rotary positions of three axes: "
            "use an even number of 6 or more."
        )
    side = 2 * (head_dim // 6)
    return head_dim - 2 * side, side, side


def eighths(head_dim: int) -> tuple[int, int, int]:
    """As ``axis_sizes``, in CogVideoX's shares of two, three and three eighths."""
    if head_dim % 16:
        raise VidlatentError(
            f"heads of {head_dim} channels do not part into eighths of channel pairs: use a "
            "multiple of 16."
        )
    return head_dim // 4, 3 * head_dim // 8, 3 * head_dim // 8


def fitted_places(
    grid: tuple[int, int, int], plane: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places of a grid whose frame is laid into the middle of ``plane`` (CogVideoX 1.0).

    Args:
      grid: tokens in time, rows and columns.
      plane: rows and columns that the model was trained with.
    """
    (_, rows, columns), (high, wide) = grid, plane
    if rows / columns > high / wide:
        extent = (high, round(high / rows * columns))
    else:
        extent = (round(wide / columns * rows), wide)
    places = [np.arange(grid[0], dtype=np.float64)]
    for size, whole, part in zip((rows, columns), plane, extent, strict=True):
        start = round((whole - part) / 2.0)
        places.append(np.linspace(start, (start + part) * (size - 1) / size, size))
    return places[0], places[1], places[2]


def chunk_places(count: int, latents: int, step: int, group: int) -> np.ndarray:
    """Number of the last frame of each of ``count`` latents of clips coded in chunks (ProMAG).

    Args:
      count: latents, of chunks one after the other.
      latents: of a chunk; the first stands for one frame, each later one for ``group``.
      step: frames from the beginning of a chunk to that of the next.
    """
    number = np.arange(count, dtype=np.float64)
    return number // latents * step + number % latents * group


def rope_tables(
    grid: tuple[int, int, int],
    head_dim: int,
    base: float = 10_000.0,
    sizes: tuple[int, int, int] | None = None,
    places: Sequence[np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of all positions of a grid, worked out in float64.

    Args:
      grid: tokens in time, rows and columns; tokens are numbered with columns fastest.
      head_dim: channels per head.
      base: of the wave lengths.
      sizes: channels of a head that time, rows and columns turn; None for ``axis_sizes``.
      places: coordinates along each axis; None for the tokens' numbers.

    Returns:
      Two float32 arrays ``[N, head_dim / 2]``; pair ``i`` of an axis of ``n`` channels turns by
      ``position * base ** (-2 i / n)``.
    """
    angles = []
    places = [np.arange(size, dtype=np.float64) for size in grid] if places is None else places
    for axis, size in enumerate(axis_sizes(head_dim) if sizes is None else sizes):
        turns = base ** (-np.arange(0, size, 2, dtype=np.float64) / size)
        along = np.asarray(places[axis], np.float64)[:, None] * turns
        shape = [1, 1, 1, size // 2]
        shape[axis] = grid[axis]
        angles.append(np.broadcast_to(along.reshape(shape), (*grid, size // 2)))
    angle = np.concatenate(angles, axis=-1).reshape(-1, head_dim // 2)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def rotate_pairs(x: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Turn channels ``(2i, 2i+1)`` of ``[B, N, K, d]`` by the angles of each token, in float32."""
    cos, sin = (jnp.asarray(table)[:, None, :] for table in tables)
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    a, b = pairs[..., 0], pairs[..., 1]
    turned = jnp.stack([a * cos - b * sin, a * sin + b * cos], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)
