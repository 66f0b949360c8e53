"""LPIPS of every frame of a clip."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from vidlatent.metrics.base import METRICS, FrameMetric, MetricEntry, MetricRequest
from vidlatent.metrics.pixels import check_pair, scale_pixels
from vidlatent.models.pretrained import Network

__all__ = ["lpips", "lpips_name"]


def lpips(network: Network, a: Any, b: Any, *, unit_range: bool = False) -> jax.Array:
    """LPIPS v0.1 (Zhang et al. 2018) of every frame; papers report its mean over frames and clips.

    One frame of all clips at a time, so that memory does not grow with their length.

    Args:
      network: ``lpips_vgg`` or ``lpips_alex``; inside ``jit`` with its weights as an argument,
        ``network._replace(params=params)``, since constants of a program cost memory.
      a, b: ``[B, T, H, W, 3]``, both uint8 or both floats in [-1, 1].
      unit_range: show the network pixels in [0, 1] instead, as Reducio's evaluation does.

    Returns:
      ``[B, T]`` float32.
    """
    check_pair(a, b, "LPIPS")

    def frames_first(video):
        x = scale_pixels(video)
        # [B, T, ...] -> [T, B, ...]: lax.map loops over the first axis.
        return jnp.moveaxis((x + 1.0) / 2.0 if unit_range else x, 1, 0)

    pair = frames_first(a), frames_first(b)
    distances = jax.lax.map(lambda frames: network.apply(network.params, *frames), pair)
    return distances.T


def lpips_name(network: Network, unit_range: bool = False) -> str:
    """Name of the score: the network's label and, where it is not [-1, 1], the range it saw."""
    return network.label + ("_unit_range" if unit_range else "")


def _register(name: str, network: str, unit_range: bool = False) -> None:
    def function(network, video, restored):
        return lpips(network, video, restored, unit_range=unit_range)

    def make(request: MetricRequest) -> FrameMetric:
        assert request.network is not None
        pixels = "[0, 1], not rescaled to the network's [-1, 1]" if unit_range else "[-1, 1]"
        reported = lpips_name(request.network, unit_range)
        return FrameMetric(request, reported, function, pixels=pixels)

    entry = MetricEntry(make, "LPIPS v0.1 (perceptual distance)", better="lower", network=network)
    METRICS.register(name, entry)


_register("lpips_vgg", "lpips_vgg")
_register("lpips_alex", "lpips_alex")
_register("lpips_tiny", "lpips_tiny")
# Reducio's evaluation shows the VGG network pixels in [0, 1] and does not rescale them.
_register("lpips_reducio", "lpips_vgg", unit_range=True)
