"""Where tokens are, and when: sines and cosines that are added, and rotary positions.

Two families. Added to tokens, or embedded by a small network: ``sincos`` (DiT, Latte, PixArt),
``interleaved_sincos`` (the original transformer; VideoMAE, Reducio) and ``time_features`` (the
diffusion's time). Rotary: ``rope_tables`` and ``rotate_pairs`` (Wan2.1, CogVideoX).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vidlatent.errors import VidlatentError
from vidlatent.kernels.qk_norm_rope import rotate

__all__ = [
    "BASE",
    "axis_sizes",
    "axis_sizes_cogvideox",
    "chunk_places",
    "fit_places",
    "frequencies",
    "interleaved_sincos",
    "rope_tables",
    "rotate_pairs",
    "sincos",
    "sincos_plane",
    "time_features",
]

# Ratio of the longest wave length to the shortest (Vaswani et al. 2017, 3.5).
BASE = 10_000.0


def frequencies(width: int, base: float = BASE) -> np.ndarray:
    """``base ** (-2 k / width)`` for the pairs ``k`` of channels: ``[width // 2]`` float64."""
    half = width // 2
    return base ** (-np.arange(half, dtype=np.float64) / half)


def time_features(time: jax.Array, size: int, base: float = BASE) -> jax.Array:
    """``[cos(t f), sin(t f)]``, ``f_j = base ** (-2 j / size)``: ``[B] -> [B, size]`` float32."""
    angles = time.astype(jnp.float32)[:, None] * frequencies(size, base).astype(np.float32)
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def sincos(places: np.ndarray, width: int, base: float = BASE) -> np.ndarray:
    """``[sin(p w_k), cos(p w_k)]``, ``w_k = base ** (-2 k / width)``: ``[n] -> [n, width]``.

    Computed in float64, returned as float32.
    """
    if width % 2:
        raise VidlatentError(
            f"positions of {width} channels: sines and cosines need an even width."
        )
    angles = np.asarray(places, np.float64)[:, None] * frequencies(width, base)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).astype(np.float32)


def sincos_plane(
    rows: int, columns: int, width: int, span: float | None = None, scale: float = 1.0
) -> np.ndarray:
    """Positions of a grid ``[rows * columns, width]``: columns in the first half of the channels.

    Args:
      rows, columns: tokens; numbered with columns fastest.
      width: channels, a multiple of 4.
      span: coordinates run from 0 to below ``span`` on both axes, whatever the number of tokens;
        None: they are the tokens' numbers.
      scale: coordinates are divided by it.
    """
    if width % 4:
        raise VidlatentError(f"positions of {width} channels in a plane: use a multiple of 4.")

    def along(size):
        step = 1.0 if span is None else span / size
        return sincos(np.arange(size) * step / scale, width // 2)

    shape = (rows, columns, width // 2)
    x = np.broadcast_to(along(columns)[None], shape)
    y = np.broadcast_to(along(rows)[:, None], shape)
    return np.concatenate([x, y], axis=-1).reshape(rows * columns, width)


def interleaved_sincos(count: int, width: int) -> np.ndarray:
    """Positions ``[count, width]`` float32: sines at even channels, cosines after them.

    The table of the original transformer (Vaswani et al. 2017, 3.5), as VideoMAE and Reducio have
    it; pairs of neighbouring channels share a frequency.
    """
    channels = np.arange(width)
    angles = np.arange(count)[:, None] / BASE ** (2 * (channels // 2) / width)
    return np.where(channels % 2 == 0, np.sin(angles), np.cos(angles)).astype(np.float32)


def axis_sizes(head_dim: int) -> tuple[int, int, int]:
    """Channels of a head for time, rows and columns: 44, 42 and 42 of 128 (Wan2.1).

    Raises:
      VidlatentError: the head is too small, or odd.
    """
    if head_dim < 6 or head_dim % 2:
        raise VidlatentError(
            f"heads of {head_dim} channels cannot hold rotary positions of three axes: "
            "use an even number of 6 or more."
        )
    # Whole pairs of channels for each axis; what is left over goes to time.
    side = 2 * (head_dim // 6)
    return head_dim - 2 * side, side, side


def axis_sizes_cogvideox(head_dim: int) -> tuple[int, int, int]:
    """As ``axis_sizes``, in CogVideoX's shares of 2/8, 3/8 and 3/8."""
    if head_dim % 16:
        raise VidlatentError(
            f"heads of {head_dim} channels cannot be split into eighths of channel pairs: use a "
            "multiple of 16."
        )
    return head_dim // 4, 3 * head_dim // 8, 3 * head_dim // 8


def fit_places(
    grid: tuple[int, int, int], plane: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coordinates of a grid that is fitted into the middle of ``plane`` (CogVideoX 1.0).

    Other sizes then reuse the range of positions that the model was trained with.

    Args:
      grid: tokens in time, rows and columns.
      plane: rows and columns of the training size.

    Returns:
      Coordinates along time ``[t]``, rows ``[h]`` and columns ``[w]``, float64.
    """
    (_, rows, columns), (high, wide) = grid, plane
    # The side that is longer, compared with the plane's, fills it; the other lies in the middle.
    if rows / columns > high / wide:
        extent = (high, round(high / rows * columns))
    else:
        extent = (round(wide / columns * rows), wide)
    places = [np.arange(grid[0], dtype=np.float64)]
    for size, whole, part in zip((rows, columns), plane, extent, strict=True):
        start = round((whole - part) / 2.0)
        # CogVideoX's own formula: the end is scaled from 0, not from `start`.
        places.append(np.linspace(start, (start + part) * (size - 1) / size, size))
    return places[0], places[1], places[2]


def chunk_places(count: int, latents: int, step: int, group: int) -> np.ndarray:
    """Number of the last frame of each of ``count`` latents, for clips encoded in chunks (ProMAG).

    Args:
      count: latents, chunk after chunk.
      latents: latents in a chunk.
      step: frames from the start of one chunk to the start of the next.
      group: frames in a latent, except a chunk's first, which stands for one frame.

    Returns:
      ``[count]`` float64.
    """
    number = np.arange(count, dtype=np.float64)
    return number // latents * step + number % latents * group


def rope_tables(
    grid: tuple[int, int, int],
    head_dim: int,
    base: float = BASE,
    sizes: tuple[int, int, int] | None = None,
    places: Sequence[np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of all positions of a grid, computed in float64.

    Args:
      grid: tokens in time, rows and columns; tokens are numbered with columns fastest.
      head_dim: channels per head.
      base: of the wave lengths.
      sizes: channels of a head for time, rows and columns; None for ``axis_sizes``.
      places: coordinates along each axis; None for the tokens' numbers.

    Returns:
      Two float32 arrays ``[N, head_dim / 2]``. Pair ``i`` of an axis with ``n`` channels is rotated
      by ``position * base ** (-2 i / n)``.
    """
    angles = []
    places = [np.arange(size, dtype=np.float64) for size in grid] if places is None else places
    for axis, size in enumerate(axis_sizes(head_dim) if sizes is None else sizes):
        # Angles along one axis, [n, size / 2], repeated over the two other axes of the grid.
        along = np.asarray(places[axis], np.float64)[:, None] * frequencies(size, base)
        shape = [1, 1, 1, size // 2]
        shape[axis] = grid[axis]
        angles.append(np.broadcast_to(along.reshape(shape), (*grid, size // 2)))
    # [t, h, w, d / 2] -> [N, d / 2]: pairs of time first, then of rows, then of columns.
    angle = np.concatenate(angles, axis=-1).reshape(-1, head_dim // 2)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def rotate_pairs(x: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotate channels ``(2i, 2i+1)`` of ``[B, N, K, d]`` by the angles of each token, in float32.

    ``tables`` are cosines and sines ``[N, d / 2]``, from ``rope_tables``.
    """
    # [N, 1, d / 2]: the same for all samples and heads.
    cos, sin = (jnp.asarray(table)[:, None, :] for table in tables)
    # [B, N, K, d] -> [B, N, K, d / 2, 2]
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    rotated = jnp.stack(rotate(pairs[..., 0], pairs[..., 1], cos, sin), axis=-1)
    return rotated.reshape(x.shape).astype(x.dtype)
