"""IV-VAE's information preservation degree: how much of the pictures a codec keeps."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from vidlatent.metrics.pixels import check_pair, scale_pixels

__all__ = ["PRESERVATION", "absolute_sums"]

# The degree depends on which pixel value is zero, so the range of the pixels is part of its name.
PRESERVATION = "information_preservation_minus1_to_1"


def absolute_sums(original: Any, reconstruction: Any) -> tuple[jax.Array, jax.Array]:
    """``sum |x - x'|`` and ``sum |x|`` of every frame, pixels taken in [-1, 1].

    Both summed over all frames of a data set, ``1 - sum |x - x'| / sum |x|`` is the information
    preservation degree (IV-VAE, supplement, eq. 2): one ratio of sums, not a mean of ratios. The
    paper leaves the range open; its figures fit [-1, 1].

    Args:
      original, reconstruction: ``[B, T, H, W, C]``, both uint8 or both floats in [-1, 1].

    Returns:
      Two arrays ``[B, T]`` float32.
    """
    check_pair(original, reconstruction, "information preservation")
    x, y = scale_pixels(original), scale_pixels(reconstruction)
    space = (-3, -2, -1)
    return jnp.abs(x - y).sum(axis=space), jnp.abs(x).sum(axis=space)
