"""Does aligning latents to an image network's features lower their intrinsic dimension?

    python -m experiments.alignment              one CPU core
    python -m experiments.alignment --size=gpu   64x64 videos, for one GPU
    python -m experiments.alignment --report     table and plot of what has finished

An FSAE goes on from the same weights with and without the Video VF loss (FSVideo, equations 2 to
4) for as many steps; the dimension is Gride's. A small network with random weights (dinov2_tiny)
stands in for DINOv2. Design and result: docs/experiments/alignment.md.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # if run as a file, not with -m

from experiments.cli import main
from experiments.design import Arm, Difference, Experiment
from experiments.proofs import (
    GATE_METRIC,
    SIZES,
    chosen_rows,
    clips,
    held_out,
    over_mean_colour,
    plot_arms,
    plot_lists,
    rates,
)
from vidlatent.latents.pixels import from_pixels
from vidlatent.metrics import gride
from vidlatent.models.load import abstract_params, model_of
from vidlatent.weights.files import load_params

__all__ = ["build", "fsae_at", "measure"]

_NOTES = (
    "The features are those of dinov2_tiny with random weights, a stand-in: what DINOv2's would do "
    "is not tested.",
    "A point is a held-out clip's whole latent. A dimension is the geometric mean over Gride's "
    "scales; with so few points it is too low, more so at large scales.",
    "The difference of logarithms: 0.05 is 5 %.",
    "Equal further steps from the same weights; the rates are chosen by PSNR, not by dimension.",
)


def fsae_at(size: str, scored: int) -> tuple[dict[str, str], int, int]:
    """Config keys of the small FSAEs, steps of the base, and further steps."""
    base, further, frames = {
        "cpu": (800, 500, 9),
        "gpu": (6000, 3000, 17),
        "smoke": (3, 2, 9),
    }[size]
    keys = clips(size, frames, 2 if size == "smoke" else 8, scored)
    if size == "gpu":
        keys |= {
            "model.encoder_widths": "(32, 64, 128)",
            "model.decoder_widths": "(32, 64, 128)",
            "model.encoder_depths": "(1, 2, 2)",
            "model.decoder_depths": "(1, 2, 2)",
        }
    return keys, base, further


def build(size: str) -> Experiment:
    """The experiment at ``'cpu'``, ``'gpu'`` or ``'smoke'`` size."""
    keys, base, further = fsae_at(size, scored={"cpu": 512, "gpu": 2000, "smoke": 8}[size])

    def arm(name: str, stage: str, label: str) -> Arm:
        return Arm(
            name,
            f"configs/fsae.py:demo,stage={stage}",
            further,
            label,
            keys,
            rates(size),
            starts_from="base",
            more_steps=base,
        )

    return Experiment(
        name="alignment",
        title=f"Latents aligned to image features, a random stand-in for DINOv2 ({size} size)",
        arms=(
            Arm("base", "configs/fsae.py:demo", base, "base", keys, rates(size)),
            arm("continued", "1", "continued"),
            arm("aligned", "vf", "Video VF, random stand-in"),
        ),
        seeds=(0,) if size == "smoke" else (0, 1, 2),
        columns={
            "psnr": "PSNR, dB",
            "dimension": "dimension, videos",
            "dimension_first_frames": "dimension, first frames",
            "dimension_pixels": "dimension of the pixels",
            "log_dimension": "log of the dimension, videos",
            "log_dimension_first_frames": "log of the dimension, first frames",
        },
        differences=(
            Difference("aligned", "continued", "log_dimension", 0.05),
            Difference("aligned", "continued", "log_dimension_first_frames", 0.05),
            Difference("aligned", "continued", "psnr", 0.2),
            Difference("continued", "base", "log_dimension"),
            Difference("aligned", "base", "log_dimension"),
        ),
        measure=measure,
        draw=draw,
        notes=_NOTES,
        gate=None if size == "smoke" else ("base", 4.0),
        gate_metric=GATE_METRIC,
        decimals={"log_dimension": 3, "log_dimension_first_frames": 3},
        tried_metrics=("dimension", "log_dimension", "log_dimension_first_frames"),
    )


def measure(config: ConfigDict, workdir: Path, seed: int, scores: Mapping) -> dict[str, Any]:
    """Intrinsic dimensions of held-out latents, of their first frames, and of the pixels."""
    model = model_of(config)
    params = load_params(str(workdir), abstract_params(model), family=config.model.name)

    @jax.jit
    def latent(params, video):
        return model.apply({"params": params}, from_pixels(video), method="encode")[0].mode()

    points: dict[str, list[np.ndarray]] = {"": [], "_first_frames": [], "_pixels": []}
    for batch in held_out(config, model.latent_spec.rule, seed):
        real = batch["mask"] > 0
        found = np.asarray(latent(params, jnp.asarray(batch["video"])), np.float32)[real]
        points[""].append(_flat(found))
        points["_first_frames"].append(_flat(found[:, :1]))
        points["_pixels"].append(_flat(batch["video"][real].astype(np.float32)))
    result: dict[str, Any] = over_mean_colour(scores)
    for kind, parts in points.items():
        scales = [scale.dimension for scale in gride(np.concatenate(parts))]
        log = float(np.mean(np.log(scales)))
        result[f"dimension{kind}_by_scale"] = scales
        result[f"log_dimension{kind}"] = log
        result[f"dimension{kind}"] = float(np.exp(log))
    result["points"] = sum(map(len, points[""]))
    return result


def _flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1)


def draw(figure: Any, summary: Mapping[str, Any]) -> None:
    """Dimension by Gride's scale, of videos and first frames, and PSNR."""
    left, middle, right = figure.subplots(1, 3)
    rows = chosen_rows(summary)
    scales = [2 ** (k + 1) for k in range(6)]
    plot_lists(left, rows, "dimension_by_scale", scales, "dimension of video latents")
    name = "dimension_first_frames_by_scale"
    plot_lists(middle, rows, name, scales, "dimension of first frames' latents")
    for axes in (left, middle):
        axes.set_xscale("log", base=2)
        axes.set_xlabel("neighbours")
    plot_arms(right, rows, "psnr", "PSNR, dB")


if __name__ == "__main__":
    sys.exit(main(build, SIZES, __doc__))
