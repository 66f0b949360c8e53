"""Does aligning latents to an image network's features lower their intrinsic dimension?

    python -m experiments.alignment              one CPU core
    python -m experiments.alignment --size=gpu   64x64 videos, for one GPU
    python -m experiments.alignment --report     table and plot of finished runs

An FSAE is trained further from the same weights, with and without the Video VF loss (FSVideo,
equations 2 to 4), for the same number of steps. The dimension is Gride's estimate. A small network
with random weights (dinov2_tiny) stands in for DINOv2. Design and result:
docs/experiments/alignment.md.
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
    clip_keys,
    compute_gate_metric,
    list_rates,
    load_held_out,
    plot_arms,
    plot_lists,
    select_chosen,
)
from vidlatent.latents.pixels import from_pixels
from vidlatent.metrics import gride
from vidlatent.models.load import abstract_params, model_of
from vidlatent.weights.files import load_params

__all__ = ["build", "fsae_keys", "measure"]

_NOTES = (
    "The features are those of dinov2_tiny with random weights, a stand-in: the effect of DINOv2's "
    "own features is not tested.",
    "A point is the whole latent of a held-out clip. A dimension is the geometric mean over "
    "Gride's scales; with so few points it is underestimated, most at large scales.",
    "A difference of 0.05 between logarithms is 5 %.",
    "Equal further steps from the same weights; learning rates are chosen by PSNR.",
)


def fsae_keys(size: str, scored: int) -> tuple[dict[str, str], int, int]:
    """``(config keys, steps of the base, further steps)`` of the small FSAEs."""
    base, further, frames = {
        "cpu": (800, 500, 9),
        "gpu": (6000, 3000, 17),
        "smoke": (3, 2, 9),
    }[size]
    keys = clip_keys(size, frames, 2 if size == "smoke" else 8, scored)
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
    keys, base, further = fsae_keys(size, scored={"cpu": 512, "gpu": 2000, "smoke": 8}[size])

    def arm(name: str, stage: str, label: str) -> Arm:
        return Arm(
            name,
            f"configs/fsae.py:demo,stage={stage}",
            further,
            label,
            keys,
            list_rates(size),
            starts_from="base",
            more_steps=base,
        )

    return Experiment(
        name="alignment",
        title=f"Latents aligned to image features, a random stand-in for DINOv2 ({size} size)",
        arms=(
            Arm("base", "configs/fsae.py:demo", base, "base", keys, list_rates(size)),
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
    for batch in load_held_out(config, model.latent_spec.rule, seed):
        real = batch["mask"] > 0
        found = np.asarray(latent(params, jnp.asarray(batch["video"])), np.float32)[real]
        points[""].append(_flatten(found))
        points["_first_frames"].append(_flatten(found[:, :1]))
        points["_pixels"].append(_flatten(batch["video"][real].astype(np.float32)))
    result: dict[str, Any] = compute_gate_metric(scores)
    for kind, parts in points.items():
        scales = [scale.dimension for scale in gride(np.concatenate(parts))]
        log = float(np.mean(np.log(scales)))
        result[f"dimension{kind}_by_scale"] = scales
        result[f"log_dimension{kind}"] = log
        result[f"dimension{kind}"] = float(np.exp(log))
    result["points"] = sum(map(len, points[""]))
    return result


def _flatten(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1)


def draw(figure: Any, summary: Mapping[str, Any]) -> None:
    """Dimension by Gride's scale, of videos and first frames, and PSNR."""
    left, middle, right = figure.subplots(1, 3)
    rows = select_chosen(summary)
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
