"""Structural similarity (Wang et al. 2004) with the original's Gaussian window."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vidlatent.metrics.psnr import check_pair
from vidlatent.typing import VidlatentError

__all__ = ["WINDOW", "ssim"]

WINDOW = 11
_SIGMA = 1.5
_K1, _K2 = 0.01, 0.03


def _window() -> list[float]:
    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-0.5 * (offsets / _SIGMA) ** 2)
    return (weights / weights.sum()).tolist()


def _blur(x: jax.Array) -> jax.Array:
    """Gaussian-weighted means over height and width where the window lies inside the frame."""
    for axis in (-3, -2):
        size = x.shape[axis] - WINDOW + 1
        # A sum of shifted copies: XLA fuses it, whereas its depthwise convolution is slow on CPUs.
        shifted = (jax.lax.slice_in_dim(x, i, i + size, axis=axis) for i in range(WINDOW))
        x = sum(w * part for w, part in zip(_window(), shifted, strict=True))
    return x


def ssim(a: Any, b: Any, data_range: float | None = None) -> jax.Array:
    """SSIM of every frame, 1 for equal frames.

    Window 11x11, Gaussian with sigma 1.5, K1 = 0.01, K2 = 0.03, weighted (not sample) variances;
    the map is averaged over the positions where the window fits inside the frame, then over RGB.
    The same as scikit-image's ``structural_similarity(gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False, channel_axis=-1)``. SSIM depends on where black is: floats in
    [-1, 1] are therefore moved to [0, 2] first.

    Args:
      a, b: ``[B, T, H, W, C]``, both uint8 or both floating point; height and width at least 11.
      data_range: given: the pixels lie in [0, data_range]. None: [0, 255] for uint8, [-1, 1] for
        floats.

    Returns:
      ``[B, T]`` float32.

    Raises:
      VidlatentError: shapes or dtypes differ or are not those above, or frames smaller than the
        window.
    """
    sizes = check_pair(a, b, "SSIM")
    if min(sizes["H"], sizes["W"]) < WINDOW:
        raise VidlatentError(
            f"SSIM needs frames of at least {WINDOW}x{WINDOW} pixels, "
            f"not {sizes['H']}x{sizes['W']}."
        )
    black = 0.0 if data_range is not None or a.dtype == jnp.uint8 else -1.0
    if data_range is None:
        data_range = 255.0 if a.dtype == jnp.uint8 else 2.0
    return _mean_similarity(jnp.asarray(a), jnp.asarray(b), black, data_range)


@jax.jit  # Two hundred small operations: one program even when the caller does not compile.
def _mean_similarity(a: jax.Array, b: jax.Array, black: float, data_range: float) -> jax.Array:
    x, y = ((v.astype(jnp.float32) - black) / data_range for v in (a, b))
    # Variances and covariance are free of shifts; about zero, less of them is lost to rounding.
    sx, sy = (jnp.mean(v, axis=(-3, -2), keepdims=True) for v in (x, y))
    x, y = x - sx, y - sy
    mx, my = _blur(x), _blur(y)
    vx, vy, cov = _blur(x * x) - mx * mx, _blur(y * y) - my * my, _blur(x * y) - mx * my
    mx, my = mx + sx, my + sy
    c1, c2 = _K1**2, _K2**2
    luminance = (2 * mx * my + c1) / (mx * mx + my * my + c1)
    structure = (2 * cov + c2) / (vx + vy + c2)
    return jnp.mean(luminance * structure, axis=(-3, -2, -1))
