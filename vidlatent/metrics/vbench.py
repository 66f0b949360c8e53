"""VBench's totals from its scores by dimension (Huang et al. 2024; image to video: VBench++, 2025).

VBench's own program scores the videos (``config.sample.vbench`` names the files for it). Here its
scores become the totals that papers print. Each score is first rescaled from the range between the
least and the greatest value that VBench states for its dimension (its ``scripts/constant.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from vidlatent.errors import VidlatentError
from vidlatent.registry import did_you_mean

__all__ = ["IMAGE_TO_VIDEO", "TEXT_TO_VIDEO", "Dimension", "Suite", "compute_totals", "find_suite"]


class Dimension(NamedTuple):
    """Range and weight of a dimension; ``kind`` is the total that it counts for."""

    kind: str
    least: float = 0.0
    greatest: float = 1.0
    weight: float = 1.0


class Suite(NamedTuple):
    """One of VBench's two sets of dimensions.

    Attributes:
      name: 'VBench' or 'VBench-I2V'.
      dimensions: by the names that VBench's program writes.
      weights: of the two totals in the third.
    """

    name: str
    dimensions: Mapping[str, Dimension]
    weights: Mapping[str, float]


# Of both suites.
_QUALITY = {
    "subject_consistency": Dimension("quality", 0.1462),
    "background_consistency": Dimension("quality", 0.2615),
    "motion_smoothness": Dimension("quality", 0.706, 0.9975),
    "dynamic_degree": Dimension("quality", weight=0.5),
    "aesthetic_quality": Dimension("quality"),
    "imaging_quality": Dimension("quality"),
}
TEXT_TO_VIDEO = Suite(
    "VBench",
    _QUALITY
    | {
        "temporal_flickering": Dimension("quality", 0.6293),
        "object_class": Dimension("semantic"),
        "multiple_objects": Dimension("semantic"),
        "human_action": Dimension("semantic"),
        "color": Dimension("semantic"),
        "spatial_relationship": Dimension("semantic"),
        "scene": Dimension("semantic", 0.0, 0.8222),
        "appearance_style": Dimension("semantic", 0.0009, 0.2855),
        "temporal_style": Dimension("semantic", 0.0, 0.364),
        "overall_consistency": Dimension("semantic", 0.0, 0.364),
    },
    {"quality": 4.0, "semantic": 1.0},
)
IMAGE_TO_VIDEO = Suite(
    "VBench-I2V",
    {
        "i2v_subject": Dimension("i2v", 0.1462),
        "i2v_background": Dimension("i2v", 0.2615),
        "camera_motion": Dimension("i2v", weight=0.1),
    }
    | _QUALITY,
    {"i2v": 1.0, "quality": 1.0},
)


def find_suite(scores: Mapping[str, float]) -> Suite:
    """The suite that scores are of: VBench-I2V if one of its own dimensions is among them."""
    own = set(IMAGE_TO_VIDEO.dimensions) - set(TEXT_TO_VIDEO.dimensions)
    return IMAGE_TO_VIDEO if own & set(scores) else TEXT_TO_VIDEO


def compute_totals(scores: Mapping[str, float]) -> dict[str, float]:
    """``total`` and what it is made of, in [0, 1], of raw scores by dimension, in [0, 1].

    ``quality`` and ``semantic`` of text to video, where quality counts four times; ``i2v`` and
    ``quality`` of image to video, whose mean is the total.

    Raises:
      VidlatentError: an unknown dimension, one that is missing, or a score outside [0, 1].
    """
    suite = find_suite(scores)
    for name, score in scores.items():
        if name not in suite.dimensions:
            hint = did_you_mean(name, suite.dimensions)
            raise VidlatentError(f"{suite.name} has no dimension {name!r}: {hint}")
        if not 0.0 <= score <= 1.0:
            raise VidlatentError(f"the {suite.name} score {name} = {score} is outside [0, 1].")
    missing = [name for name in suite.dimensions if name not in scores]
    if missing:
        raise VidlatentError(
            f"{suite.name}'s totals need all dimensions, {', '.join(missing)} lack."
        )
    found = {}
    for kind in suite.weights:
        own = {name: rule for name, rule in suite.dimensions.items() if rule.kind == kind}
        parts = [
            rule.weight * (scores[name] - rule.least) / (rule.greatest - rule.least)
            for name, rule in own.items()
        ]
        found[kind] = sum(parts) / sum(rule.weight for rule in own.values())
    total = sum(weight * found[kind] for kind, weight in suite.weights.items())
    return {**found, "total": total / sum(suite.weights.values())}
