"""What do FSAE-Standard and FSAE-Lite gain over fine-tuning the causal decoder as many steps?

    python -m experiments.decoder_finetune              one CPU core
    python -m experiments.decoder_finetune --size=gpu   64x64 videos, for one GPU
    python -m experiments.decoder_finetune --report     table and plot of finished runs

All start from one causal FSAE and keep its encoder frozen (FSVideo 2.2.3). Standard's decoder reads
later frames, features of frame 0, and noise; one arm reads only later frames. Lite starts from
Standard. Design and result: docs/experiments/decoder_finetune.md.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # if run as a file, not with -m

from experiments.alignment import fsae_keys
from experiments.cli import main
from experiments.design import Arm, Experiment, Setting, compare_pairs
from experiments.proofs import (
    GATE_METRIC,
    SIZES,
    compute_gate_metric,
    list_rates,
    plot_arms,
    plot_lists,
    select_chosen,
)

__all__ = ["build", "measure"]

_TIE_DB = 0.2  # fixed before the first run, see the page
_NOTES = (
    "Standard and Lite decode with features of the true frame 0, which is kept beside the latent; "
    "the causal decoder and the arm without these features have only the latent.",
    "All arms train only the decoder, 'continued' too. Lite is trained after Standard, so compare "
    "it with 'continued, twice the steps'.",
    "Decoders that add noise get the same noise in every evaluation.",
    "Equal further steps, never convergence; drawn clips, no discriminator.",
)


def build(size: str) -> Experiment:
    """The experiment at ``'cpu'``, ``'gpu'`` or ``'smoke'`` size."""
    keys, base, further = fsae_keys(size, scored={"cpu": 192, "gpu": 512, "smoke": 8}[size])

    def arm(name: str, config: str, label: str, start: str = "base", **more: str) -> Arm:
        return Arm(
            name,
            f"configs/fsae.py:{config}",
            further,
            label,
            {**keys, "optim.freeze": "encoder/", **more},
            list_rates(size),
            starts_from=start,
            more_steps=base + (further if start != "base" else 0),
        )

    standard = "demo,form=standard,finetune=true"
    plain: Setting = {"model.cross_stages": "()", "model.noise_weight": "0.0"}
    continued = arm("continued", "demo", "base continued")
    return Experiment(
        name="decoder_finetune",
        title=f"Fine-tuned decoders of an FSAE ({size} size)",
        arms=(
            Arm("base", "configs/fsae.py:demo", base, "base", keys, list_rates(size)),
            continued,
            arm("standard", standard, "Standard"),
            arm("centred", standard, "Standard, only looking both ways", **plain),
            arm("lite", "demo,form=lite,finetune=true", "Lite, after Standard", "standard"),
            Arm(
                "continued_longer",
                continued.config,
                2 * further,
                "base continued, twice the steps",
                continued.overrides,
                follows="continued",
                starts_from="base",
                more_steps=base,
            ),
        ),
        seeds=(0,) if size == "smoke" else (0, 1, 2),
        columns={
            "psnr": "PSNR, dB",
            "psnr_frame_0": "frame 0",
            "psnr_without_frame_0": "without frame 0",
        },
        differences=compare_pairs(
            ("psnr", "psnr_without_frame_0"),
            (
                *("standard continued", "centred continued", "standard centred"),
                *("lite continued_longer", "lite standard"),
            ),
            _TIE_DB,
        ),
        measure=measure,
        draw=draw,
        notes=_NOTES,
        gate=None if size == "smoke" else ("base", 4.0),
        gate_metric=GATE_METRIC,
        tried_metrics=("psnr_without_frame_0",),
    )


def measure(config: ConfigDict, workdir: Path, seed: int, scores: Mapping) -> dict[str, Any]:
    """Only the gate's metric: everything else is among the scores of the training loop."""
    del config, workdir, seed
    return compute_gate_metric(scores)


def draw(figure: Any, summary: Mapping[str, Any]) -> None:
    """PSNR of each arm, and by frame."""
    left, right = figure.subplots(1, 2)
    rows = select_chosen(summary)
    plot_arms(left, rows, "psnr_without_frame_0", "PSNR without frame 0, dB")
    plot_lists(right, rows, "psnr_by_frame", range(64), "PSNR by frame, dB")
    right.set_xlabel("frame of the clip")


if __name__ == "__main__":
    sys.exit(main(build, SIZES, __doc__))
