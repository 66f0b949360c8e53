"""Running scores of a set of clips, from the measurements of one batch after another.

Only finite numbers count. A frame that a metric has no number for (SSIM of frames smaller than its
window) is left out of its means, and the score's definition says how many were.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from vidlatent.metrics import (
    PRESERVATION,
    PSNR_CEILING,
    Metric,
    SetMetric,
    by_group_position,
    max_margin,
)
from vidlatent.spec import LatentSpec

__all__ = ["ABSOLUTE", "ALWAYS", "RunningScores", "average_group_positions", "log_scores"]

# Computed for every evaluation; ``config.eval.metrics`` adds others.
ALWAYS = ("psnr", "ssim", "psnr_constant_colour")
# Sums that information preservation is the ratio of.
ABSOLUTE = ("absolute_error", "absolute_pixels")


class RunningScores:
    """Sums over the clips of all processes, from which the scores follow."""

    def __init__(self, index: Sequence[Any], metrics: Sequence[Metric]):
        self._index = index
        self._of_sets = {m.name: (m, m.accumulate()) for m in metrics if isinstance(m, SetMetric)}
        self._of_frames = {m.name: m for m in metrics if not isinstance(m, SetMetric)}
        self.names = (*ALWAYS, *self._of_frames)
        self.clips: list[dict[str, Any]] = []
        # Metric -> frame of the window -> sum over clips, and number of clips that have it.
        self.sums: dict[str, Any] = {name: defaultdict(float) for name in self.names}
        self.counts: dict[str, Any] = {name: defaultdict(int) for name in self.names}
        self._absolute = np.zeros(2)

    def add(self, measured: dict[str, Any], size: tuple[int, ...]) -> None:
        """Add what an eval step returned for windows of ``size`` (frames, height, width)."""
        real = np.flatnonzero(measured["mask"])
        if ABSOLUTE[0] in measured:
            self._absolute += [measured[name][real].sum(dtype=np.float64) for name in ABSOLUTE]
        for name, (_, accumulator) in self._of_sets.items():
            tags = [measured[key] for key in ("mask", "clip", "start")]
            for side, rows in enumerate(measured[name]):
                accumulator.add(side, rows, *tags)
        for row in real:
            # float64, because the sums grow over all clips.
            per_frame = {n: np.asarray(measured[n][row], np.float64) for n in self.names}
            self.clips.append(
                {
                    "clip": self._index[int(measured["clip"][row])].path,
                    "start": round(float(measured["start"][row]), 3),
                    "size": "x".join(map(str, size)),
                    **{name: _mean(values) for name, values in per_frame.items()},
                }
            )
            for name, values in per_frame.items():
                for position, value in enumerate(values):
                    # Windows may differ in length, so late positions have fewer clips.
                    finite = math.isfinite(value)
                    self.counts[name][position] += finite
                    self.sums[name][position] += value if finite else 0.0

    def positions(self) -> dict[str, list[float | None]]:
        """Metric -> mean at each frame position over the clips that have it; None if none has."""
        return {
            name: [
                self.sums[name][frame] / count if count else None
                for frame, count in sorted(self.counts[name].items())
            ]
            for name in self.names
        }

    def results(self) -> tuple[dict[str, float], dict[str, dict[str, Any]]]:
        """Scores and their definitions."""
        lengths = sorted({int(row["size"].split("x")[0]) for row in self.clips})
        how: dict[str, Any] = {"averaged": "over the frames of a clip, then over clips"}
        how |= {"n": len(self.clips), "clip_frames": lengths}
        numbers: dict[str, float] = {}
        about: dict[str, dict[str, Any]] = {}
        for name in self.names:
            found = [row[name] for row in self.clips if row[name] is not None]
            if found:
                # ``fsum`` rounds once, so that the order in which rows arrive does not matter.
                numbers[name] = math.fsum(found) / len(found)
                about[name] = how | {"n": len(found)} | self._describe(name)
            else:
                logging.warning("%s: no frame has a number, so there is no such score.", name)
        # Only eval steps that were asked for preservation return these sums.
        if self._absolute[1]:
            numbers[PRESERVATION] = float(1 - self._absolute[0] / self._absolute[1])
            about[PRESERVATION] = how | {"averaged": "one ratio of sums over all pixels"}
        for name, (metric, accumulator) in self._of_sets.items():
            found, counted = accumulator.result(name)
            numbers |= found
            pieces = {"clip_frames": [metric.cut] if metric.cut else lengths}
            pieces["clip_stride"] = pieces["clip_frames"]  # pieces do not overlap
            about |= dict.fromkeys(found, {**metric.about, **pieces, **counted})
        numbers["clips"] = len(self.clips)
        return numbers, about

    def _describe(self, name: str) -> dict[str, Any]:
        """What else defines a metric of frames."""
        about = dict(self._of_frames[name].about) if name in self._of_frames else {}
        if name.startswith("psnr") and name in ALWAYS:
            about["ceiling"] = f"{PSNR_CEILING:g} dB, the score of frames that equal the original"
        frames = sum(int(row["size"].split("x")[0]) for row in self.clips)
        without = frames - sum(self.counts[name].values())
        return about | ({"frames_without_a_number": without} if without else {})


def _mean(values: np.ndarray) -> float | None:
    """Mean of the finite values; None if there is none."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else None


def average_group_positions(running: RunningScores, spec: LatentSpec) -> dict[str, Any]:
    """PSNR and SSIM at each place of a frame group: ``Evaluation.group_positions``."""
    result: dict[str, Any] = {}
    for name in ("psnr", "ssim"):
        sums, counts = running.sums[name], running.counts[name]
        frames = sorted(counts)
        means, numbers = by_group_position(
            [sums[frame] for frame in frames],
            [counts[frame] for frame in frames],
            first=spec.rule.first,
            group=spec.t,
        )
        # A place in the group that no frame had cannot be compared with the others.
        if spec.t == 1 or not all(numbers):
            continue
        result |= {"n": numbers, name: means, f"{name}_max_margin": max_margin(means)}
    return result


def log_scores(scores: Mapping[str, float]) -> None:
    """One line a score."""
    for name, value in scores.items():
        logging.info("%s %.4g", name, value)
