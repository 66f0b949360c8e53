"""Peak signal-to-noise ratio."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from vidlatent.metrics.pixels import check_pair

__all__ = ["PSNR_CEILING", "psnr"]

# dB. Equal frames have no error, and their PSNR would be infinite, which no mean can hold.
PSNR_CEILING = 100.0


def psnr(a: Any, b: Any, data_range: float | None = None) -> jax.Array:
    """PSNR of every frame in dB: ``10 log10(data_range^2 / MSE)``.

    The mean squared error is taken over height, width and channels (RGB together, no luma), in
    float32. Values are not clipped. Equal frames, and any whose PSNR would be higher, give
    ``PSNR_CEILING``; pixels that are not finite give NaN.

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
    # Divided by the range before squaring, so that squares of any range stay finite.
    apart = (jnp.asarray(a, jnp.float32) - jnp.asarray(b, jnp.float32)) / data_range
    error = jnp.mean(jnp.square(apart), axis=(-3, -2, -1))
    return -10.0 * jnp.log10(jnp.maximum(error, 10.0 ** (-PSNR_CEILING / 10.0)))
