"""Quality measures as pure functions; a measure's name says its definition.

Those of pictures take videos ``[B, T, H, W, C]`` and return one value a frame, ``[B, T]``, so that
the caller can average over frames, clips and padding masks as it must. Pixels are uint8, or floats
in [-1, 1] as everywhere in the package, or, where a function has ``data_range``, floats in
[0, data_range]. Those of latents (``gride``, ``ChannelMoments``) work on the host, and so do those
of whole sets of clips (``FeatureSums``, ``inception_score``), which take one row a clip.
"""

from vidlatent.metrics.clips import RESIZE, fvd_features, fvd_name, resized_clip
from vidlatent.metrics.frechet import FeatureSums, frechet_of_sums
from vidlatent.metrics.gride import gride
from vidlatent.metrics.group_position import by_group_position, max_margin
from vidlatent.metrics.inception_score import InceptionScore, inception_score
from vidlatent.metrics.latent import ChannelMoments, channel_maps
from vidlatent.metrics.lpips import lpips, lpips_name
from vidlatent.metrics.preservation import PRESERVATION, absolute_sums
from vidlatent.metrics.psnr import psnr
from vidlatent.metrics.reducio import REDUCIO, psnr_reducio, ssim_reducio
from vidlatent.metrics.ssim import ssim

__all__ = [
    "PRESERVATION",
    "REDUCIO",
    "RESIZE",
    "ChannelMoments",
    "FeatureSums",
    "InceptionScore",
    "absolute_sums",
    "by_group_position",
    "channel_maps",
    "frechet_of_sums",
    "fvd_features",
    "fvd_name",
    "gride",
    "inception_score",
    "lpips",
    "lpips_name",
    "max_margin",
    "psnr",
    "psnr_reducio",
    "resized_clip",
    "ssim",
    "ssim_reducio",
]
