"""Resizing images by matrix products, with the same result on every backend.

``jax.image.resize`` follows other rules: its cubic has a = -0.5 and renormalises at the border, and
it antialiases by default. Released networks expect torch's rules, which are these.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

__all__ = ["center_crop_short_side", "resize", "resize_matrix"]


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(x), 0)


def _cubic(x: np.ndarray, a: float = -0.75) -> np.ndarray:
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


# method -> (kernel, half of its width)
_KERNELS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], int]] = {
    "bilinear": (_triangle, 1),
    "bicubic": (_cubic, 2),
}


@functools.lru_cache(maxsize=64)
def resize_matrix(
    size: int,
    target: int,
    method: str = "bilinear",
    *,
    antialias: bool = False,
    corners: bool = False,
    scale: float | None = None,
) -> np.ndarray:
    """The weights ``[target, size]`` float32 of a one-dimensional resize.

    Pixel centres lie at halves, and the border is repeated.

    Args:
      size, target: lengths before and after.
      method: ``'bilinear'`` or ``'bicubic'`` (a = -0.75).
      antialias: widen the kernel for downsampling (bilinear only), with weights that sum to 1.
      corners: the first and last samples coincide instead of the borders.
      scale: target pixels per source pixel, where it is not ``target / size``.
    """
    kernel, reach = _KERNELS[method]
    step = 1.0 / scale if scale else size / target
    centres = (np.arange(target) + 0.5) * step - 0.5
    if corners:
        centres = np.linspace(0, size - 1, target) if target > 1 else np.zeros(1)
    # Only shrinking needs a wider kernel.
    if antialias and step > 1:
        weights = kernel((np.arange(size) - centres[:, None]) / step)
        return np.float32(weights / weights.sum(axis=1, keepdims=True))
    weights = np.zeros((target, size))
    first = np.floor(centres).astype(int)
    for tap in range(1 - reach, reach + 1):
        place = np.clip(first + tap, 0, size - 1)
        # Added, not assigned: clipped taps may meet on one border pixel.
        np.add.at(weights, (np.arange(target), place), kernel(first + tap - centres))
    return np.float32(weights)


def resize(
    x: jax.Array,
    height: int,
    width: int,
    method: str = "bilinear",
    *,
    antialias: bool = False,
    corners: bool = False,
) -> jax.Array:
    """``[..., H, W, C] -> [..., height, width, C]`` float32; see ``resize_matrix``."""
    x = jnp.asarray(x, jnp.float32)
    for axis, target in ((-3, height), (-2, width)):
        # An axis of the right length stays untouched, without rounding.
        if x.shape[axis] != target:
            options = {"antialias": antialias, "corners": corners}
            weights = resize_matrix(x.shape[axis], target, method, **options)
            equation = "ts,...shc->...thc" if axis == -3 else "ts,...hsc->...htc"
            x = jnp.einsum(equation, weights, x, precision=lax.Precision.HIGHEST)
    return x


def center_crop_short_side(x: jax.Array, side: int) -> jax.Array:
    """Resize the short side to ``side`` (bilinear, antialiased), then crop the central square.

    The long side is rounded up.

    ``[..., H, W, C] -> [..., side, side, C]`` float32.
    """
    factor = side / min(x.shape[-3:-1])
    tall, wide = (
        side if size == min(x.shape[-3:-1]) else math.ceil(size * factor) for size in x.shape[-3:-1]
    )
    x = resize(x, tall, wide, antialias=True)
    top, left = (tall - side) // 2, (wide - side) // 2
    return x[..., top : top + side, left : left + side, :]
