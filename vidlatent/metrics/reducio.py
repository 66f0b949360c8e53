"""PSNR and SSIM as Reducio's evaluation defines them; its published figures are these."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from vidlatent.metrics.base import METRICS, FrameMetric, MetricEntry
from vidlatent.metrics.pixels import check_pair
from vidlatent.metrics.ssim import ssim

__all__ = ["psnr_reducio", "ssim_reducio"]


def psnr_reducio(a: Any, b: Any) -> jax.Array:
    """``-10 log10(MSE + 1e-8)`` of every frame, pixels clipped and taken in [0, 1].

    Equal frames score 80 dB, not infinity.

    Args:
      a, b: ``[B, T, H, W, C]``, both uint8 or both floats in [-1, 1].

    Returns:
      ``[B, T]`` float32.
    """
    check_pair(a, b, "PSNR")
    error = jnp.mean(jnp.square(_unit(a) - _unit(b)), axis=(-3, -2, -1))
    # 1e-8 is theirs; it caps the score of equal frames.
    return -10.0 * jnp.log10(error + 1e-8)


def ssim_reducio(a: Any, b: Any) -> jax.Array:
    """``ssim`` of frames averaged down so that their short side comes near 256.

    Blocks of ``f x f`` pixels with ``f = round(short side / 256)``, halves to even; rows and
    columns that fill no block are dropped. Pixels are clipped first.

    Args:
      a, b: ``[B, T, H, W, C]``, both uint8 or both floats in [-1, 1].

    Returns:
      ``[B, T]`` float32.
    """
    sizes = check_pair(a, b, "SSIM")
    # Python's rounding, as in the authors' evaluation.
    factor = max(1, round(min(sizes["H"], sizes["W"]) / 256))
    return ssim(_pooled(_unit(a), factor), _pooled(_unit(b), factor), data_range=1.0)


def _unit(video: Any) -> jax.Array:
    x = jnp.asarray(video, jnp.float32)
    return x / 255.0 if video.dtype == jnp.uint8 else (jnp.clip(x, -1.0, 1.0) + 1.0) / 2.0


def _pooled(x: jax.Array, factor: int) -> jax.Array:
    if factor == 1:
        return x
    batch, time, height, width, channels = x.shape
    rows, columns = height // factor, width // factor
    x = x[:, :, : rows * factor, : columns * factor]
    # [B, T, H, W, C] -> [B, T, rows, f, columns, f, C], averaged over both f.
    x = x.reshape(batch, time, rows, factor, columns, factor, channels)
    return jnp.mean(x, axis=(3, 5))


METRICS.register(
    "psnr_reducio",
    MetricEntry(
        lambda request: FrameMetric(request, "psnr_reducio_eps1e-8", psnr_reducio, pixels="[0, 1]"),
        "PSNR as Reducio's evaluation defines it: 1e-8 is added to the mean squared error; 80 dB "
        "for frames that equal the original",
        unit="dB",
    ),
)
METRICS.register(
    "ssim_reducio",
    MetricEntry(
        lambda request: FrameMetric(
            request, "ssim_reducio_pooled256", ssim_reducio, pixels="[0, 1]"
        ),
        "SSIM as Reducio's evaluation defines it: frames are averaged down to about 256 pixels",
    ),
)
