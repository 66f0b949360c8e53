"""Fréchet video distance: how clips are shown to its networks, and the metrics ``fvd_*``.

How frames are brought to the networks' size is not settled in the literature and changes the
number, so it is part of the score's name.
"""

from __future__ import annotations

import re
from typing import Any

import jax
import numpy as np

from vidlatent.errors import VidlatentError
from vidlatent.metrics.base import METRICS, MetricEntry, MetricRequest, SetMetric
from vidlatent.metrics.frechet import FeatureSums, frechet_of_sums
from vidlatent.metrics.pixels import scale_pixels
from vidlatent.models.pretrained import NETWORKS, Network
from vidlatent.models.pretrained.resize import center_crop_short_side, resize
from vidlatent.spec import check_shape

__all__ = ["RESIZE", "FrechetAccumulator", "fvd_features", "fvd_name", "resize_clip"]

# bilinear: each frame straight to the square, whatever its aspect ratio, from the nearest pixels
# only (what content-debiased FVD does for both networks). antialias: the same with a wider kernel.
# crop: the short side first (antialiased), then the middle square (content-debiased FVD's loader of
# video files).
RESIZE = ("bilinear", "antialias", "crop")


def resize_clip(video: Any, side: int, rule: str = "bilinear") -> jax.Array:
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
    x = scale_pixels(video)
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
    return network.apply(network.params, resize_clip(video, _side(network), rule))["features"]


def _side(network: Network) -> int:
    return NETWORKS.get(network.name).inputs[0][-2]


class FrechetAccumulator:
    """Running moments of the features of originals, and of reconstructions or generated clips."""

    def __init__(self):
        self._sums: dict[int, FeatureSums] = {}

    def add(self, side: int, rows: Any, mask: Any, clips: Any, starts: Any) -> None:
        """Take in features ``[B, pieces, D]``; rows with ``mask`` ``[B]`` 0 are padding."""
        del clips, starts  # sums have no order
        rows = np.asarray(rows)[np.asarray(mask) > 0]
        width = rows.shape[-1]
        self._sums.setdefault(side, FeatureSums(width)).add(rows.reshape(-1, width))

    def result(self, name: str) -> tuple[dict[str, float], dict[str, Any]]:
        """{name: distance}, and how many clips (or pieces of them) and dimensions it is of.

        Raises:
          VidlatentError: nothing was added.
        """
        if not (0 in self._sums and 1 in self._sums and self._sums[0].n and self._sums[1].n):
            raise VidlatentError(f"{name}: no clip was added.")
        originals, restored = self._sums[0], self._sums[1]
        # With few clips rounding can bring the distance slightly below zero.
        distance = max(0.0, frechet_of_sums(originals, restored))
        width = len(originals.moments()[0])
        about = {"n": restored.n, "dimensions": width}
        if originals.n != restored.n:
            about["n_of_originals"] = originals.n
        return {name: distance}, about


# The resize rule, and the frames of the pieces that clips are cut into: fvd_i3d_crop_cut16.
_ENDINGS = r"(?:_(antialias|crop))?(?:_cut(\d+))?"


def _make(request: MetricRequest) -> SetMetric:
    network = request.network
    assert network is not None
    # It matches: the entry allows no other endings.
    match = re.fullmatch(_ENDINGS, request.ending)
    assert match is not None
    rule, cut = match[1] or RESIZE[0], match[2]

    def features(network, clips):
        return fvd_features(network, clips, rule)

    return SetMetric(
        request,
        fvd_name(network, rule) + (f"_cut{cut}" if cut else ""),
        features,
        FrechetAccumulator,
        int(cut or 0),
        covariance="biased (divided by n)",
        resize=f"{rule} to {_side(network)}x{_side(network)}",
    )


for _name, _network, _says in (
    ("i3d", "i3d_kinetics400", "logits of I3D (Kinetics-400)"),
    ("i3d_tiny", "i3d_tiny", "features of a small stand-in of I3D"),
    ("videomae", "videomae_g", "features of VideoMAE (giant, SSv2)"),
    ("videomae_tiny", "videomae_tiny", "features of a small stand-in of VideoMAE"),
):
    METRICS.register(
        f"fvd_{_name}",
        MetricEntry(
            _make,
            "Fréchet distance between original clips and reconstructed or generated ones, " + _says,
            better="lower",
            network=_network,
            endings=_ENDINGS,
        ),
    )
