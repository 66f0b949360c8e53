"""Metrics: pure functions that turn videos, latents or features into a number.

``config.eval.metrics`` names metrics of ``METRICS``, scored beside PSNR, SSIM and information
preservation, which every evaluation of a tokenizer has:

    lpips_vgg, lpips_alex          LPIPS of every frame (``lpips.py``)
    psnr_reducio, ssim_reducio     as Reducio's evaluation defines them (``reducio.py``)
    lpips_reducio                  LPIPS (VGG) shown pixels in [0, 1], as Reducio's evaluation does
    fvd_i3d, fvd_videomae          Fréchet distance between originals and reconstructions
                                   (``fvd.py``). Endings choose the resize rule (_antialias, _crop)
                                   and cut clips into pieces of some frames (_cut16)
    is_c3d                         inception score of the reconstructions, and of the originals, in
                                   ``config.eval.is_splits`` parts (``inception_score.py``)
    lpips_tiny, fvd_i3d_tiny, fvd_videomae_tiny, is_c3d_tiny    the same through small networks

To add one, write the function and register it; ``base.py`` says what a metric has to do:

    def contrast(video, restored):  # uint8 [B, T, H, W, 3] twice -> float32 [B, T]
        ...

    METRICS.register('contrast', MetricEntry(
        lambda request: FrameMetric(request, 'contrast', contrast), 'ratio of standard deviations'))

A score is reported under a name that says what defines it: the network, whether its weights are
random, and how frames are resized.

Metrics of pictures take videos ``[B, T, H, W, C]`` and return one value a frame, ``[B, T]``; the
caller averages over frames and clips and leaves out padding. Pixels are uint8, or floats in
[-1, 1] as everywhere in the package, or, where a function has ``data_range``, floats in
[0, data_range]. Metrics of latents (``gride``, ``ChannelMoments``) work on the host, and so do
those of whole sets of clips (``FeatureSums``, ``inception_score``), which take one row a clip.
"""

from vidlatent.metrics.base import (
    METRICS,
    Accumulator,
    FrameMetric,
    Metric,
    MetricEntry,
    MetricRequest,
    SetMetric,
    collect_networks,
    make_metrics,
)
from vidlatent.metrics.frechet import FeatureSums, frechet_of_sums
from vidlatent.metrics.fvd import RESIZE, fvd_features, fvd_name, resize_clip
from vidlatent.metrics.gride import gride
from vidlatent.metrics.group_position import by_group_position, max_margin
from vidlatent.metrics.inception_score import InceptionScore, inception_score
from vidlatent.metrics.latent import ChannelMoments, stretch_channels
from vidlatent.metrics.lpips import lpips, lpips_name
from vidlatent.metrics.preservation import PRESERVATION, absolute_sums
from vidlatent.metrics.psnr import PSNR_CEILING, psnr
from vidlatent.metrics.reducio import psnr_reducio, ssim_reducio
from vidlatent.metrics.ssim import ssim

__all__ = [
    "METRICS",
    "PRESERVATION",
    "PSNR_CEILING",
    "RESIZE",
    "Accumulator",
    "ChannelMoments",
    "FeatureSums",
    "FrameMetric",
    "InceptionScore",
    "Metric",
    "MetricEntry",
    "MetricRequest",
    "SetMetric",
    "absolute_sums",
    "by_group_position",
    "stretch_channels",
    "collect_networks",
    "frechet_of_sums",
    "fvd_features",
    "fvd_name",
    "gride",
    "inception_score",
    "lpips",
    "lpips_name",
    "make_metrics",
    "max_margin",
    "psnr",
    "psnr_reducio",
    "resize_clip",
    "ssim",
    "ssim_reducio",
]
