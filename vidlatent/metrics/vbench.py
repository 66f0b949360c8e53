"""VBench's totals from its scores by dimension (Huang et al. 2024).

VBench's own program scores the videos (``config.sample.vbench`` names the files for it). Here its
sixteen scores become the three totals that papers print. Each score is first rescaled from the
range between the least and the greatest value that VBench states for its dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from vidlatent.errors import VidlatentError
from vidlatent.registry import did_you_mean

__all__ = ["DIMENSIONS", "Dimension", "compute_vbench_totals"]


class Dimension(NamedTuple):
    """Range and weight of a dimension; ``kind`` is the total that it counts for."""

    kind: str
    least: float = 0.0
    greatest: float = 1.0
    weight: float = 1.0


DIMENSIONS: dict[str, Dimension] = {
    "subject_consistency": Dimension("quality", 0.1462),
    "background_consistency": Dimension("quality", 0.2615),
    "temporal_flickering": Dimension("quality", 0.6293),
    "motion_smoothness": Dimension("quality", 0.706, 0.9975),
    "dynamic_degree": Dimension("quality", weight=0.5),
    "aesthetic_quality": Dimension("quality"),
    "imaging_quality": Dimension("quality"),
    "object_class": Dimension("semantic"),
    "multiple_objects": Dimension("semantic"),
    "human_action": Dimension("semantic"),
    "color": Dimension("semantic"),
    "spatial_relationship": Dimension("semantic"),
    "scene": Dimension("semantic", 0.0, 0.8222),
    "appearance_style": Dimension("semantic", 0.0009, 0.2855),
    "temporal_style": Dimension("semantic", 0.0, 0.364),
    "overall_consistency": Dimension("semantic", 0.0, 0.364),
}
# VBench's own weights of the two totals.
_WEIGHTS = {"quality": 4.0, "semantic": 1.0}


def compute_vbench_totals(scores: Mapping[str, float]) -> dict[str, float]:
    """``quality``, ``semantic`` and ``total`` in [0, 1] of raw scores by dimension, in [0, 1].

    Raises:
      VidlatentError: an unknown dimension, one that is missing, or a score outside [0, 1].
    """
    for name, score in scores.items():
        if name not in DIMENSIONS:
            hint = did_you_mean(name, DIMENSIONS)
            raise VidlatentError(f"VBench has no dimension {name!r}: {hint}")
        if not 0.0 <= score <= 1.0:
            raise VidlatentError(f"the VBench score {name} = {score} is outside [0, 1].")
    missing = [name for name in DIMENSIONS if name not in scores]
    if missing:
        raise VidlatentError(f"VBench's totals need all dimensions, {', '.join(missing)} lack.")
    found = {}
    for kind in _WEIGHTS:
        own = {name: rule for name, rule in DIMENSIONS.items() if rule.kind == kind}
        parts = [
            rule.weight * (scores[name] - rule.least) / (rule.greatest - rule.least)
            for name, rule in own.items()
        ]
        found[kind] = sum(parts) / sum(rule.weight for rule in own.values())
    found["total"] = sum(w * found[kind] for kind, w in _WEIGHTS.items()) / sum(_WEIGHTS.values())
    return found
