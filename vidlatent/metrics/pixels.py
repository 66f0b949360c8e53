"""What all metrics of pictures need: two videos that can be compared, and pixels in one range."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from vidlatent.errors import VidlatentError
from vidlatent.spec import check_shape

__all__ = ["check_pair", "scale_pixels"]


def check_pair(a: Any, b: Any, metric: str) -> dict[str, int]:
    """Sizes ``{'B': ..., 'T': ..., 'H': ..., 'W': ..., 'C': ...}`` of two videos.

    Args:
      a, b: ``[B, T, H, W, C]``.
      metric: names the metric in messages.

    Raises:
      VidlatentError: shapes or dtypes differ, or the dtype is neither uint8 nor floating point.
    """
    sizes = check_shape(a, "B T H W C")
    if a.shape != b.shape or a.dtype != b.dtype:
        raise VidlatentError(
            f"{metric} compares two videos of one shape and dtype, "
            f"not {a.shape} {a.dtype} and {b.shape} {b.dtype}."
        )
    if a.dtype != jnp.uint8 and not jnp.issubdtype(a.dtype, jnp.floating):
        raise VidlatentError(f"{metric} takes uint8 or floating-point pixels, not {a.dtype}.")
    return sizes


def scale_pixels(video: Any) -> jax.Array:
    """Pixels as float32 in [-1, 1]: uint8 is rescaled, floats are taken to lie there already."""
    x = jnp.asarray(video, jnp.float32)
    return x / 127.5 - 1.0 if video.dtype == jnp.uint8 else x
