"""Fixed positions of sines and cosines, added to tokens (DiT, Latte, PixArt)."""

from __future__ import annotations

import numpy as np

from vidlatent.errors import VidlatentError

__all__ = ["sincos", "sincos_plane"]


def sincos(places: np.ndarray, width: int, base: float = 10_000.0) -> np.ndarray:
    """``[sin(p w_k), cos(p w_k)]``, ``w_k = base ** (-2 k / width)``: ``[n] -> [n, width]``.

    Worked out in float64; float32.
    """
    if width % 2:
        raise VidlatentError(
            f"positions of {width} channels: sines and cosines need an even width."
        )
    half = width // 2
    turns = base ** (-np.arange(half, dtype=np.float64) / half)
    angles = np.asarray(places, np.float64)[:, None] * turns
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
