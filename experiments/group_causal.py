"""Is quality within a group of frames more even with group causal than with causal convolutions?

    python -m experiments.group_causal              one CPU core
    python -m experiments.group_causal --size=gpu   64x64 videos, for one GPU
    python -m experiments.group_causal --report     table and plot of finished runs

IV-VAE's inflated baseline is trained with causal and with group causal convolutions, which have the
same parameters; so is the model with separate branches for key frames and motion (IV-VAE, table 5).
Design and result: docs/experiments/group_causal.md.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # if run as a file, not with -m

from experiments.cli import main
from experiments.design import Arm, Difference, Experiment
from experiments.proofs import (
    GATE_METRIC,
    SIZES,
    SQUARED,
    clip_keys,
    compute_gate_metric,
    list_rates,
    plot_arms,
    plot_lists,
    select_chosen,
)

__all__ = ["build", "measure"]

FRAMES = 17
GROUP = 4
RATES = ("5e-4", "1e-3")
_TIES = {"ssim_max_margin": 0.002, "ssim": 0.002, "psnr_max_margin": 0.1, "psnr": 0.2}
_NOTES = (
    "Place 1 of a group is its first frame; frame 0 of a clip belongs to no group.",
    "Causal and group causal models of a pair have the same parameters; the pair with two branches "
    "has about four fifths of the other's parameters, as published.",
    "A margin (best place minus worst) is above zero even if all places are equally good, since "
    "the four means are noisy.",
    "Equal steps from random weights, never convergence; drawn clips, no discriminator.",
)


def build(size: str) -> Experiment:
    """The experiment at ``'cpu'``, ``'gpu'`` or ``'smoke'`` size."""
    steps, batch, scored, width, branch = {
        "cpu": (1200, 4, 192, 8, 6),
        "gpu": (6000, 8, 512, 36, 24),
        "smoke": (3, 2, 8, 6, 4),
    }[size]
    common = {**clip_keys(size, FRAMES, batch, scored), **SQUARED}
    if size == "gpu":
        common |= {
            "model.multipliers": "(1, 2, 4, 4)",
            "model.temporal_down": "(1, 2)",
            "model.latent_channels": "8",
        }

    def arm(variant: str, label: str, width: int) -> Arm:
        overrides = {**common, "model.width": str(width)}
        return Arm(
            variant,
            f"configs/ivvae.py:demo,variant={variant}",
            steps,
            label,
            overrides,
            list_rates(size, RATES),
        )

    return Experiment(
        name="group_causal",
        title=f"Causal and group causal convolutions ({size} size)",
        arms=(
            arm("causal", "baseline, causal", width),
            arm("gcconv", "baseline, group causal", width),
            arm("ktc_causal", "two branches, causal", branch),
            arm("ktc", "two branches, group causal", branch),
        ),
        seeds=(0,) if size == "smoke" else (0, 1, 2),
        metric="ssim",
        columns={
            "ssim": "SSIM",
            "ssim_max_margin": "SSIM, max margin",
            **{f"ssim_place_{place}": f"place {place}" for place in range(1, GROUP + 1)},
            "psnr": "PSNR, dB",
            "psnr_max_margin": "PSNR, max margin",
        },
        differences=tuple(
            Difference(first, second, metric, least)
            for first, second in (("gcconv", "causal"), ("ktc", "ktc_causal"))
            for metric, least in _TIES.items()
        ),
        measure=measure,
        draw=draw,
        notes=_NOTES,
        gate=None if size == "smoke" else ("causal", 4.0),
        gate_metric=GATE_METRIC,
        decimals={
            name: 4
            for name in ("ssim", "ssim_max_margin", *(f"ssim_place_{i + 1}" for i in range(GROUP)))
        },
        tried_metrics=("ssim_max_margin", "psnr", "psnr_max_margin"),
    )


def measure(config: ConfigDict, workdir: Path, seed: int, scores: Mapping) -> dict[str, Any]:
    """Scores by place in a group, from those of the training loop."""
    del config, workdir, seed
    groups = scores["by_group_position"]
    return {
        **compute_gate_metric(scores),
        **{f"ssim_place_{place}": value for place, value in enumerate(groups["ssim"], 1)},
        "ssim_by_place": groups["ssim"],
        "psnr_by_place": groups["psnr"],
        "ssim_by_frame": scores["by_frame_position"]["ssim"],
        "ssim_max_margin": groups["ssim_max_margin"],
        "psnr_max_margin": groups["psnr_max_margin"],
    }


def draw(figure: Any, summary: Mapping[str, Any]) -> None:
    """The margins, and SSIM and PSNR at each place of a group."""
    left, middle, right = figure.subplots(1, 3)
    rows = select_chosen(summary)
    plot_arms(left, rows, "ssim_max_margin", "SSIM, best minus worst place")
    places = range(1, GROUP + 1)
    plot_lists(middle, rows, "ssim_by_place", places, "SSIM by place in the group")
    plot_lists(right, rows, "psnr_by_place", places, "PSNR by place in the group, dB")
    for axes in (middle, right):
        axes.set_xticks(places)


if __name__ == "__main__":
    sys.exit(main(build, SIZES, __doc__))
