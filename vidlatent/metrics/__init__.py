"""Quality measures as pure functions; a measure's name says its definition.

Those of pictures take videos ``[B, T, H, W, C]`` and return one value a frame, ``[B, T]``, so that
the caller can average over frames, clips and padding masks as it must. Pixels are uint8, or floats
in [-1, 1] as everywhere in the package, or, where a function has ``data_range``, floats in
[0, data_range]. Those of latents (``gride``, ``ChannelMoments``) work on the host.
"""

from vidlatent.metrics.gride import gride
from vidlatent.metrics.group_position import by_group_position, max_margin
from vidlatent.metrics.latent import ChannelMoments, channel_maps
from vidlatent.metrics.preservation import PRESERVATION, absolute_sums
from vidlatent.metrics.psnr import psnr
from vidlatent.metrics.ssim import ssim

__all__ = [
    "PRESERVATION",
    "ChannelMoments",
    "absolute_sums",
    "by_group_position",
    "channel_maps",
    "gride",
    "max_margin",
    "psnr",
    "ssim",
]
