"""Structural similarity (Wang et al. 2004) with the original's Gaussian window."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vidlatent.errors import VidlatentError
from vidlatent.kernels.dispatch import current_platform
from vidlatent.metrics.pixels import check_pair

__all__ = ["WINDOW", "ssim"]

# Window, its Gaussian and the constants of Wang et al. 2004.
WINDOW = 11
_SIGMA = 1.5
_K1, _K2 = 0.01, 0.03
# Pixels of one channel that a CPU works on at a time, so that a handful of arrays fits its cache.
_BAND_PIXELS = 3 << 15


def _gaussian_window() -> list[float]:
    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-0.5 * (offsets / _SIGMA) ** 2)
    return (weights / weights.sum()).tolist()


def _blur(x: jax.Array, axis: int) -> jax.Array:
    """Gaussian-weighted means along an axis where the window lies inside the frame."""
    size = x.shape[axis] - WINDOW + 1
    # A sum of shifted copies: XLA fuses it, whereas its depthwise convolution is slow on CPUs.
    shifted = (jax.lax.slice_in_dim(x, i, i + size, axis=axis) for i in range(WINDOW))
    weighted: Any = sum(w * part for w, part in zip(_gaussian_window(), shifted, strict=True))
    return weighted


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
    # SSIM compares means as ratios, so black must be 0.
    black = 0.0 if data_range is not None or a.dtype == jnp.uint8 else -1.0
    if data_range is None:
        data_range = 255.0 if a.dtype == jnp.uint8 else 2.0
    a, b = jnp.asarray(a), jnp.asarray(b)
    if current_platform() == "cpu":
        # A band of n rows reads n + 10: below the window's height most of the work would be double.
        rows = _BAND_PIXELS // (sizes["B"] * sizes["W"])
        return _in_bands(a, b, black, data_range, max(rows, WINDOW))
    return _at_once(a, b, black, data_range)


@jax.jit  # some two hundred small operations: one program even if the caller does not compile
def _at_once(a: jax.Array, b: jax.Array, black: float, data_range: float) -> jax.Array:
    x, y = ((v.astype(jnp.float32) - black) / data_range for v in (a, b))
    shifts = [jnp.mean(v, axis=(-3, -2), keepdims=True) for v in (x, y)]
    x, y = (v - shift for v, shift in zip((x, y), shifts, strict=True))
    sums = [_blur(_blur(v, -3), -2) for v in (x, y, x * x + y * y, x * y)]
    return jnp.mean(_similarity(*sums, *shifts), axis=(-3, -2, -1))


@functools.partial(jax.jit, static_argnames="rows")
def _in_bands(a: jax.Array, b: jax.Array, black: float, data_range: float, rows: int) -> jax.Array:
    """The same, one channel of a frame after another, and ``rows`` rows of the map at a time.

    On CPUs this is three times as fast as whole frames, whose intermediate results do not fit the
    cache. The batch stays one axis, because it may be sharded.
    """
    batch, frames, height, width, channels = a.shape
    places = height - WINDOW + 1
    bands = -(-places // rows)
    rows = -(-places // bands)

    def plane(pair):
        """``[B, H, W]`` twice -> sums of the map ``[B]``."""
        x, y = (jnp.mean(v.astype(jnp.float32), axis=(1, 2), keepdims=True) for v in pair)
        shifts = [(v - black) / data_range for v in (x, y)]

        def band(number):
            # All bands have one size, so that one program serves all.
            start = jnp.minimum(number * rows, places - rows)
            near = (jax.lax.dynamic_slice_in_dim(v, start, rows + WINDOW - 1, 1) for v in pair)
            x, y = (
                (v.astype(jnp.float32) - black) / data_range - shift
                for v, shift in zip(near, shifts, strict=True)
            )
            # In loops: otherwise XLA fuses the two directions and computes the first again for
            # every element of the second.
            sums = jnp.stack([x, y, x * x + y * y, x * y])
            sums = jax.lax.map(lambda v: _blur(v, -2), sums)
            sums = jax.lax.map(lambda v: _blur(v, -1), sums)
            # The last band overlaps the one before it; count its new rows only.
            new = start + jnp.arange(rows) >= number * rows
            return jnp.sum(jnp.where(new[:, None], _similarity(*sums, *shifts), 0.0), axis=(1, 2))

        return jnp.sum(jax.lax.map(band, jnp.arange(bands)), axis=0)

    # [B, T, H, W, C] -> [T C, B, H, W]
    pair = [jnp.moveaxis(v, (1, 4), (0, 1)).reshape(-1, batch, height, width) for v in (a, b)]
    sums = jax.lax.map(plane, pair).reshape(frames, channels, batch)
    return jnp.sum(sums, axis=1).T / (channels * places * (width - WINDOW + 1))


def _similarity(mx, my, squares, products, x_shift, y_shift) -> jax.Array:
    """SSIM's map from weighted means of ``x``, ``y``, ``x x + y y`` and ``x y``.

    ``x`` and ``y`` had their shifts subtracted, which brings their mean to zero. Variances and
    covariance stay the same, and lose less to rounding.
    """
    spread, cov = squares - mx * mx - my * my, products - mx * my
    mx, my = mx + x_shift, my + y_shift
    c1, c2 = _K1**2, _K2**2
    luminance = (2 * mx * my + c1) / (mx * mx + my * my + c1)
    return luminance * (2 * cov + c2) / (spread + c2)
