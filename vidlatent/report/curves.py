"""Curves of a run: which there are, and how one is drawn, on HTML pages and as PNG."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vidlatent.report.writers import read_metrics

# Scores that come first on a page, in this order.
_FIRST = ("psnr", "ssim", "psnr_constant_colour")

__all__ = ["draw_curve", "finite_points", "run_curves", "write_curves"]

# Logged training scalars that are not losses.
_HOUSEKEEPING = ("bad_steps", "bad_clips", "steps_per_second", "frames_per_second")

Curve = tuple[Sequence[float], Sequence[Any]]


def run_curves(workdir: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Curves of ``metrics.jsonl``, name -> (steps, values): scores first, then all else."""
    curves = read_metrics(workdir / "metrics.jsonl")
    wanted = [f"val/{name}" for name in _FIRST]
    wanted += [name for name in curves if name.startswith("val/") and name != "val/clips"]
    wanted += [name for name in curves if name.startswith("train/")]
    left_out = {f"train/{name}" for name in _HOUSEKEEPING}
    return {n: curves[n] for n in dict.fromkeys(wanted) if n in curves and n not in left_out}


def finite_points(steps: Sequence[float], values: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the points of a curve that are neither None nor infinite nor NaN."""
    x = np.asarray(steps, float)
    y = np.asarray([math.nan if v is None else float(v) for v in values])
    return x[np.isfinite(y)], y[np.isfinite(y)]


def draw_curve(axes: Any, x: np.ndarray, y: np.ndarray, across: str, colour: str) -> None:
    """Draw a curve without gaps: a line with its points, or over 60 points a smoothed line.

    Args:
      axes: of matplotlib.
      x, y: from ``finite_points``, at least one.
      across: label of the x axis.
      colour: of the line.
    """
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True)
    if len(y) > 60:
        axes.plot(*_thin(x, y), color=colour, alpha=0.3, linewidth=0.8)
        axes.plot(*_thin(x, _smooth(y)), color=colour, linewidth=1.8)
    else:
        axes.plot(x, y, color=colour, linewidth=1.8, marker="o", markersize=3.2)
    # Over such a range a linear axis would press most of the curve flat.
    if y.min() > 0 and y.max() > 50 * y.min():
        axes.set_yscale("log")
    axes.margins(x=0.02, y=0.08)
    _widen(axes, y)
    axes.xaxis.get_major_locator().set_params(integer=True)  # steps, frames
    axes.set_xlabel(across)


def _widen(axes: Any, y: np.ndarray) -> None:
    """At least a tenth of the values' size from bottom to top: small changes then look small."""
    least = 0.1 * float(np.abs(y).max())
    low, high = axes.get_ylim()
    if axes.get_yscale() == "linear" and high - low < least:
        middle = (low + high) / 2
        axes.set_ylim(middle - least / 2, middle + least / 2)


def _thin(steps: np.ndarray, values: np.ndarray, limit: int = 1500) -> tuple[Any, Any]:
    """At most ``limit`` points, so that a page does not grow with the length of the run."""
    stride = -(-len(steps) // limit)
    return steps[::stride], values[::stride]


def _smooth(values: np.ndarray) -> np.ndarray:
    """Centred running mean over a fiftieth of the curve."""
    # Odd, so that the mean has a centre.
    width = max(3, len(values) // 50) | 1
    kernel = np.ones(width)
    # How many points each mean has: fewer at both ends.
    weights = np.convolve(np.ones(len(values)), kernel, mode="same")
    return np.convolve(values, kernel, mode="same") / weights


def write_curves(
    curves: Mapping[str, Curve],
    path: str | os.PathLike[str],
    *,
    title: str = "",
    across: str = "step",
    columns: int = 4,
) -> None:
    """A PNG with one small chart a curve; those without a finite point are left out."""
    # Not pyplot, which keeps figures alive and looks for a display.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    found = {name: finite_points(*curve) for name, curve in curves.items()}
    found = {name: points for name, points in found.items() if len(points[1])}
    rows = max(1, -(-len(found) // columns))
    with rc_context({"font.size": 8.5, "grid.alpha": 0.25}):
        figure = Figure(figsize=(3.1 * columns, 2.0 * rows + 0.4), layout="constrained")
        if title:
            figure.suptitle(title, fontsize=11)
        places = list(figure.subplots(rows, columns, squeeze=False).flat)
        # The grid may have places to spare, which are hidden below.
        for (name, points), axes in zip(found.items(), places, strict=False):
            draw_curve(axes, *points, across, "#2f6fde")
            axes.set_title(name, fontsize=8.5)
        for axes in places[len(found) :]:
            axes.set_visible(False)
        figure.savefig(path, dpi=100)
