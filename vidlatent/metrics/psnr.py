"""Peak signal-to-noise ratio."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from vidlatent.errors import VidlatentError
from vidlatent.spec import check_shape

__all__ = ["check_pair", "psnr"]


def check_pair(a: Any, b: Any, measure: str) -> dict[str, int]:
    """Sizes of two videos ``[B, T, H, W, C]``; raises unless shapes and dtypes agree."""
    sizes = check_shape(a, "B T H W C")
    if a.shape != b.shape or a.dtype != b.dtype:
        raise VidlatentError(
            f"{measure} compares two videos of one shape and dtype, "
            f"not {a.shape} {a.dtype} and {b.shape} {b.dtype}."
        )
    if a.dtype != jnp.uint8 and not jnp.issubdtype(a.dtype, jnp.floating):
        raise VidlatentError(f"{measure} takes uint8 or floating-point pixels, not {a.dtype}.")
    return sizes


def psnr(a: Any, b: Any, data_range: float | None = None) -> jax.Array:
    """PSNR of every frame in dB: ``10 log10(data_range^2 / MSE)``.

    The mean squared error is taken over height, width and channels (RGB together, no luma), in
    float32. Values are not clipped: equal frames give +inf, non-finite pixels NaN.

    Args:
      a, b: ``[B, T, H, W, C]``, both uint8 or both floating point.
      data_range: distance between the darkest and the brightest value a pixel can have; None: 255
        for uint8, 2 for floats (in [-1, 1]).

    Returns:
      ``[B, T]`` float32.

    Raises:
      VidlatentError: shapes or dtypes differ or are not those above.
    """
    check_pair(a, b, "PSNR")
    if data_range is None:
        data_range = 255.0 if a.dtype == jnp.uint8 else 2.0
    # Relative to the range before squaring, so that half-precision inputs of any range fit.
    apart = (jnp.asarray(a, jnp.float32) - jnp.asarray(b, jnp.float32)) / data_range
    return -10.0 * jnp.log10(jnp.mean(jnp.square(apart), axis=(-3, -2, -1)))
