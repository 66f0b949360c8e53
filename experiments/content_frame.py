"""Which frame should a Reducio-VAE keep as its content frame: the middle, the first, any, or none?

    python -m experiments.content_frame              one CPU core
    python -m experiments.content_frame --size=gpu   64x64 videos, for one GPU
    python -m experiments.content_frame --report     table and plot of finished runs

All arms have a latent of the same size and keep the content frame as it is beside it, except for
one: it keeps no frame, and its latent has as many more values instead. Design and result:
docs/experiments/content_frame.md.
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
from experiments.design import Arm, Experiment, compare_pairs
from experiments.proofs import (
    GATE_METRIC,
    SIZES,
    SQUARED,
    clip_keys,
    compute_gate_metric,
    list_rates,
    load_held_out,
    plot_arms,
    plot_lists,
    select_chosen,
)
from vidlatent.latents.pixels import from_pixels, to_pixels
from vidlatent.metrics import psnr
from vidlatent.models.load import abstract_params, model_of
from vidlatent.weights.files import load_params

__all__ = ["build", "measure"]

FRAMES = 16
MIDDLE = (FRAMES - 1) // 2
CHANNELS = 16
RATES = ("5e-4", "1e-3")
_TIE_DB = 0.2  # fixed before the first run, see the page
_NOTES = (
    "All latents but the last arm's have the same size; a content frame is kept beside them, "
    "uncoded. Beating 'none' is no compression gain: compare with the last arm, which keeps as "
    "many values in its latent.",
    "The random arm is scored with each of the 16 places equally often, clip by clip in turn.",
    "Equal steps, never convergence; drawn clips, no discriminator, no perceptual loss.",
)


def build(size: str) -> Experiment:
    """The experiment at ``'cpu'``, ``'gpu'`` or ``'smoke'`` size."""
    steps, batch, scored = {"cpu": (800, 4, 192), "gpu": (6000, 16, 512), "smoke": (3, 2, 8)}[size]
    common = {**clip_keys(size, FRAMES, batch, scored), **_model(size)}
    space = int(common["model.space_factor"])
    # A latent channel has 4 / space^2 values for each pixel of a frame, the content frame 3.
    wide = CHANNELS + 3 * space**2 // 4

    def arm(name: str, content: str, label: str, channels: int = CHANNELS) -> Arm:
        overrides = {**common, "model.latent_channels": str(channels)}
        config = f"configs/reducio_vae.py:demo,content={content}"
        return Arm(name, config, steps, label, overrides, list_rates(size, RATES))

    return Experiment(
        name="content_frame",
        title=f"The content frame of a Reducio-VAE ({size} size)",
        arms=(
            arm("middle", "middle", "middle frame"),
            arm("first", "first", "first frame"),
            arm("random", "random", "random frame"),
            arm("none", "none", "none"),
            arm("none_wide", "none", "none, latent as large as both", wide),
        ),
        seeds=(0,) if size == "smoke" else (0, 1, 2),
        columns={
            "psnr": "PSNR, dB",
            "psnr_other_frames": "without the content frame",
            "psnr_shown_middle": "shown the middle frame",
            "latent_values": "latent values",
            "content_values": "content values",
            "values_per_kept_value": "values per kept value",
        },
        differences=compare_pairs(
            ("psnr", "psnr_other_frames"),
            ("middle random", "random none", "middle first", "random first", "middle none_wide"),
            _TIE_DB,
        ),
        measure=measure,
        draw=draw,
        notes=_NOTES,
        gate=None if size == "smoke" else ("middle", 4.0),
        gate_metric=GATE_METRIC,
        decimals={"latent_values": 0, "content_values": 0, "values_per_kept_value": 1},
    )


def _model(size: str) -> dict[str, str]:
    # Decode the posterior's mean, since no KL term limits the latent here. Residual branches that
    # start at zero learn faster in short runs.
    fields = {
        **SQUARED,
        "train.sample_latent": "False",
        "model.residual_scale": "0.0",
        "model.space_factor": "4",
        "model.time_factor": "4",
    }
    if size == "gpu":
        fields |= {
            "model.width": "32",
            "model.multipliers": "(1, 2, 4, 4)",
            "model.content_width": "32",
            "model.content_multipliers": "(1, 2, 4)",
            "model.fuse": "(-1, 1, 2, -1)",
            "model.space_factor": "8",
        }
    return fields


def measure(config: ConfigDict, workdir: Path, seed: int, scores: Mapping) -> dict[str, Any]:
    """PSNR by frame, and by distance from the content frame where the arm has one.

    It replaces the score of the training loop, in which the random arm gets the same few places in
    every batch.
    """
    model = model_of(config)
    params = load_params(str(workdir), abstract_params(model), family=config.model.name)
    batches = list(load_held_out(config, model.latent_spec.rule, seed))
    found, places = _score_frames(model, params, batches, config.model.content)
    distance = np.abs(np.arange(FRAMES) - places[:, None])
    keeps = model.condition_kind != "none"
    latent, content = _count_kept_values(config, model)
    result = {
        **compute_gate_metric(scores),
        "psnr": float(found.mean()),
        "psnr_by_frame": found.mean(axis=0).tolist(),
        "psnr_frame_0": float(found[:, 0].mean()),
        "psnr_without_frame_0": float(found[:, 1:].mean()),
        "psnr_other_frames": float(found[distance > 0].mean() if keeps else found.mean()),
        "latent_values": latent,
        "content_values": content,
        "values_per_kept_value": FRAMES * _frame_values(config) / (latent + content),
    }
    if keeps:
        farthest = int(distance.max())
        result["psnr_by_distance"] = [
            float(found[distance == far].mean()) for far in range(farthest + 1)
        ]
    if config.model.content == "random":
        middle, _ = _score_frames(model, params, batches, "middle")
        result["psnr_shown_middle"] = float(middle.mean())
    return result


def _score_frames(
    model: Any, params: Any, batches: list, content: str
) -> tuple[np.ndarray, np.ndarray]:
    """PSNR ``[clips, frames]``, and each clip's content frame; 'random': all places in turn."""

    @jax.jit
    def scored(params, video, places):
        pixels = from_pixels(video)
        condition = None
        if model.condition_kind != "none":
            condition = jax.vmap(lambda clip, place: clip[place])(pixels, places)
        variables = {"params": params}
        latent = model.apply(variables, pixels, method="encode")[0].mode()
        found = model.apply(variables, latent, condition=condition, method="decode")[0]
        return psnr(video, to_pixels(found), data_range=255.0)

    rows, all_places, seen = [], [], 0
    for batch in batches:
        real = batch["mask"] > 0
        number = seen + np.cumsum(real) - 1
        seen += int(real.sum())
        fixed = {"middle": MIDDLE, "first": 0, "none": 0}
        places = np.maximum(number, 0) % FRAMES
        if content in fixed:
            places = np.full_like(places, fixed[content])
        found = scored(params, jnp.asarray(batch["video"]), jnp.asarray(places))
        rows.append(np.asarray(found, np.float64)[real])
        all_places.append(places[real])
    return np.concatenate(rows), np.concatenate(all_places)


def _frame_values(config: ConfigDict) -> int:
    _, height, width, _ = config.data.buckets[0]
    return 3 * height * width


def _count_kept_values(config: ConfigDict, model: Any) -> tuple[int, int]:
    """How many values a clip's latent and its content frame have."""
    spec = model.latent_spec
    frame = _frame_values(config)
    latent = FRAMES // spec.t * frame // 3 // (spec.h * spec.w) * spec.channels
    return latent, 0 if model.condition_kind == "none" else frame


def draw(figure: Any, summary: Mapping[str, Any]) -> None:
    """PSNR of each arm, by frame, and by distance from the content frame."""
    left, middle, right = figure.subplots(1, 3)
    rows = select_chosen(summary)
    plot_arms(left, rows, "psnr", "PSNR, dB")
    plot_lists(middle, rows, "psnr_by_frame", range(FRAMES), "by frame of the clip")
    plot_lists(right, rows, "psnr_by_distance", range(FRAMES), "by distance from the content frame")
    for axes in (middle, right):
        axes.set_xlabel("frames")


if __name__ == "__main__":
    sys.exit(main(build, SIZES, __doc__))
