"""Quality measures as pure functions; a measure's name says its definition.

All take videos ``[B, T, H, W, C]`` and return one value a frame, ``[B, T]``, so that the caller can
average over frames, clips and padding masks as it must. Pixels are uint8, or floats in [-1, 1] as
everywhere in the package, or floats in [0, data_range] if ``data_range`` is given.
"""

from vidlatent.metrics.psnr import psnr
from vidlatent.metrics.ssim import ssim

__all__ = ["psnr", "ssim"]
