"""Clips as the networks of the Fréchet video distances look at them.

How frames are brought to the networks' size is not settled in the literature and changes the
number, so it is part of the score's name.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from vidlatent.errors import VidlatentError
from vidlatent.models.pretrained import NETWORKS, Network
from vidlatent.models.pretrained.resize import center_crop_short_side, resize
from vidlatent.spec import check_shape

__all__ = ["RESIZE", "fvd_features", "fvd_name", "resized_clip"]

# bilinear: each frame straight to the square, whatever its aspect, neighbours only (the
# content-debiased FVD's own rule for both networks). antialias: the same, with a kernel as wide as
# the reduction. crop: short side first (antialiased), then the middle square (its loader of files).
RESIZE = ("bilinear", "antialias", "crop")


def resized_clip(video: Any, side: int, rule: str = "bilinear") -> jax.Array:
    """``[..., H, W, 3]`` to ``[..., side, side, 3]`` float32 in [-1, 1].

    Args:
      video: uint8, or floats in [-1, 1].
      side: of the square frames.
      rule: one of ``RESIZE``.

    Raises:
      VidlatentError: another rule.
    """
    if rule not in RESIZE:
        raise VidlatentError(f"frames are resized by {', '.join(RESIZE)}, not by {rule!r}.")
    x = jnp.asarray(video, jnp.float32)
    if video.dtype == jnp.uint8:
        x = x / 127.5 - 1.0
    if rule == "crop":
        return center_crop_short_side(x, side)
    return resize(x, side, side, antialias=rule == "antialias")


def fvd_name(network: Network, rule: str = "bilinear") -> str:
    """Name of the Fréchet video distance through a network, with all that defines its value.

    ``fvd_i3d_kinetics400_biased_bilinear224``: network (and seed, where its weights are random),
    covariance divided by n, resize rule and size.
    """
    return f"fvd_{network.label}_biased_{rule}{_side(network)}"


def fvd_features(network: Network, video: Any, rule: str = "bilinear") -> jax.Array:
    """Features ``[B, D]`` float32 of clips ``[B, T, H, W, 3]`` (uint8, or floats in [-1, 1]).

    The logits of I3D, the normalised mean token of VideoMAE. Sum them with
    ``metrics.FeatureSums``. Inside ``jit`` give the weights as an argument:
    ``network._replace(params=params)``.
    """
    check_shape(video, "B T H W C", C=3)
    return network.apply(network.params, resized_clip(video, _side(network), rule))["features"]


def _side(network: Network) -> int:
    return NETWORKS.get(network.name).inputs[0][-2]
