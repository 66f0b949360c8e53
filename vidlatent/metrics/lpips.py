"""LPIPS of every frame of a clip."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from vidlatent.metrics.psnr import check_pair
from vidlatent.models.pretrained import Network

__all__ = ["lpips", "lpips_name"]


def lpips(network: Network, a: Any, b: Any, *, unit_range: bool = False) -> jax.Array:
    """LPIPS v0.1 of every frame; its mean over frames and clips is what papers report.

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

    def seen(video):
        x = jnp.asarray(video, jnp.float32)
        if video.dtype == jnp.uint8:
            x = x / 127.5 - 1.0
        return jnp.moveaxis((x + 1.0) / 2.0 if unit_range else x, 1, 0)

    distances = jax.lax.map(lambda pair: network.apply(network.params, *pair), (seen(a), seen(b)))
    return distances.T


def lpips_name(network: Network, unit_range: bool = False) -> str:
    """Name of the score: the network's label and, where it is not [-1, 1], the range it saw."""
    return network.label + ("_unit_range" if unit_range else "")
