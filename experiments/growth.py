"""Does growing a tokenizer reach a higher temporal compression sooner than training it directly?

    python -m experiments.growth                     an hour or two of one CPU core
    python -m experiments.growth --size=gpu          64x64 videos, for one GPU
    python -m experiments.growth --report            table and plot of finished runs

A 4x ProMAG is grown to 8x and 16x (ProMAG 3.2), as published or plainly (without key frames and
adaptive norm). It is compared with 8x and 16x models that are trained directly, for as many steps
as all its stages together and for twice and four times as many. Design and result:
docs/experiments/growth.md.
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
from vidlatent.data.loader import make_loader
from vidlatent.latents.pixels import from_pixels, to_pixels
from vidlatent.metrics import psnr
from vidlatent.models.load import abstract_params, model_of
from vidlatent.spec import FrameRule
from vidlatent.weights.files import load_params

__all__ = ["build"]

RATES = ("3e-4", "6e-4", "1e-3", "2e-3")
FRAMES = 17  # of a training clip
_CHUNKS = 4  # clips of 68 frames: 17 of them for a 4x model, 4 chunks of 17 for a 16x model
_NOTES = (
    "Equal steps, never convergence: a direct arm may catch up with more.",
    "The base was trained at 6 frames a second, so on longer windows; direct arms only at 24 (8x: "
    "12).",
    "A grown 16x encoder runs on 31 frames for 17: about 1.8 times the base encoder's cost. Stages "
    "of growth train only the added blocks.",
    "'Steps in all' include the stages before, but not the search for a learning rate, which is "
    "the same for base and direct arms.",
)


def build(size: str) -> Experiment:
    """The experiment at ``'cpu'``, ``'gpu'`` or ``'smoke'`` size."""
    preset, base, grow, shares, least = {
        "cpu": ("line", 900, 300, 2, 24.0),
        "gpu": ("square", 6000, 2000, 2, 28.0),
        "smoke": ("line", 4, 2, 1, 0.0),
    }[size]
    small = {}
    if size == "smoke":
        small = {
            "data.synthetic.clips": "60",
            "data.validation_share": "0.3",
            "data.validation_clips": "8",
            "data.buckets": "((17, 1, 16, 4),)",
            "data.synthetic.width": "16",
            "model.width": "4",
            "model.groups": "2",
            "optim.warmup_steps": "1",
        }
    rates = tuple({"optim.lr": rate} for rate in (RATES if size != "smoke" else RATES[2:3]))
    return Experiment(
        name="growth",
        title=f"Growing against training directly ({size} size)",
        arms=(
            *_grown(preset, base, grow, rates, small),
            *_direct(preset, base, grow, rates, small, shares),
            *_grown_at_own_rates(preset, base, grow, rates, small),
        ),
        seeds=(0,) if size == "smoke" else (0, 1, 2),
        columns={
            "psnr": "PSNR, dB",
            "psnr_frame_0": "frame 0",
            "psnr_without_frame_0": "without frame 0",
            "psnr_same_frames": "on the same frames",
            "psnr_interpolated": "every 4th frame, interpolated",
            "psnr_interpolated_true_keys": "the same from true frames",
        },
        differences=_DIFFERENCES,
        measure=measure,
        draw=draw,
        notes=_NOTES,
        gate=("base_4x", least),
    )


def _stage(preset, base, grow, small, name, mode, number, start, label, **rate) -> Arm:
    return Arm(
        name,
        f"configs/promag.py:{preset},grow={number},mode={mode}",
        grow,
        label,
        {**small, "eval.every": str(grow)},
        starts_from=start,
        more_steps=base + (number - 1) * grow,
        **rate,
    )


def _grown(preset: str, base: int, grow: int, rates, small) -> list[Arm]:
    def stage(*names):
        return _stage(preset, base, grow, small, *names, follows="base_4x")

    every = {**small, "eval.every": str(max(1, base // 3))}
    return [
        Arm("base_4x", f"configs/promag.py:{preset}", base, "base 4x", every, rates),
        stage("grown_8x", "full", 1, "base_4x", "grown 8x"),
        stage("grown_16x", "full", 2, "grown_8x", "grown 16x"),
        stage("plain_8x", "plain", 1, "base_4x", "plain growth 8x"),
        stage("plain_16x", "plain", 2, "plain_8x", "plain growth 16x"),
    ]


def _grown_at_own_rates(preset: str, base: int, grow: int, rates, small) -> list[Arm]:
    """Growth with its own search for a learning rate, from the same base; added later."""

    def stage(*names):
        return _stage(preset, base, grow, small, *names, settings=rates)

    eight = "grown_8x_own_rate"
    return [
        stage(eight, "full", 1, "base_4x", "grown 8x, own rate"),
        stage("grown_16x_own_rate", "full", 2, eight, "grown 16x, own rate"),
    ]


def _direct(preset: str, base: int, grow: int, rates, small, shares: int) -> list[Arm]:
    """Direct arms at 1, 2 and 4 times the steps; 16x runs first because it matters more."""
    arms: dict[tuple[int, int], Arm] = {}
    for k, stages in ((16, 2), (8, 1)):
        steps = base + stages * grow
        overrides = {**small, "eval.every": str(max(1, steps // shares))}
        before = ""
        for times in (1, 2, 4):
            name = f"direct_{k}x" if times == 1 else f"direct_{k}x_{times}_times"
            label = f"direct {k}x" if times == 1 else f"direct {k}x, {times} times the steps"
            config = f"configs/promag.py:{preset},k={k}"
            arms[k, times] = Arm(
                name, config, times * steps, label, overrides, rates, continues=before
            )
            before = name
    order = [(16, 1), (16, 2), (16, 4), (8, 1), (8, 2), (8, 4)]
    return [arms[key] for key in order]


_DIFFERENCES = (
    *(
        Difference(first, second, metric)
        for metric in ("psnr", "psnr_without_frame_0")
        for first, second in (
            ("grown_16x", "direct_16x"),
            ("grown_16x", "direct_16x_2_times"),
            ("grown_16x", "direct_16x_4_times"),
            ("grown_8x", "direct_8x"),
            ("grown_8x", "direct_8x_2_times"),
            ("grown_8x", "direct_8x_4_times"),
            ("grown_16x", "plain_16x"),
            ("grown_8x", "plain_8x"),
            ("grown_16x_own_rate", "direct_16x"),
            ("grown_16x_own_rate", "direct_16x_4_times"),
            ("grown_8x_own_rate", "direct_8x"),
        )
    ),
    Difference("base_4x", "direct_16x", "psnr_same_frames"),
    Difference("base_4x", "direct_16x_2_times", "psnr_same_frames"),
    Difference("base_4x", "direct_16x_4_times", "psnr_same_frames"),
    Difference("grown_16x", "direct_16x", "psnr_same_frames"),
    Difference("grown_16x", "base_4x", "psnr_same_frames"),
)


def measure(config: ConfigDict, workdir: Path, seed: int, scores: Mapping) -> dict[str, float]:
    """Controls: a 4x model on every 4th frame against 16x models; interpolation between keys."""
    del scores
    model = model_of(config)
    if model.latent_spec.t not in (4, 16):
        return {}
    params = load_params(str(workdir), abstract_params(model), family=config.model.name)

    @jax.jit
    def coded(params, video):
        return model.apply({"params": params}, from_pixels(video))[0]

    def same_frames(video):
        """PSNR of frames 0, 4, 8, ...: 4x codes them as one clip, 16x codes four whole clips."""
        if model.latent_spec.t == 4:
            found = coded(params, video[:, ::4])
        else:
            clips = video.reshape(-1, FRAMES, *video.shape[2:])
            found = coded(params, clips).reshape(video.shape)[:, ::4]
        return psnr(video[:, ::4], to_pixels(found), data_range=255.0)

    result = {"psnr_same_frames": _average_score(same_frames, config, seed, _CHUNKS * FRAMES)}
    if model.latent_spec.t == 4:

        def interpolated(keys, video):
            return psnr(video, to_pixels(_interpolate(keys)), data_range=255.0)

        result["psnr_interpolated"] = _average_score(
            lambda video: interpolated(coded(params, video[:, ::4]), video), config, seed, FRAMES
        )
        between = np.arange(FRAMES) % 4 > 0  # the keys themselves are exact here
        result["psnr_interpolated_true_keys"] = _average_score(
            lambda video: interpolated(from_pixels(video[:, ::4]), video)[:, between],
            *(config, seed, FRAMES),
        )
    return result


def _interpolate(keys: jax.Array) -> jax.Array:
    """``[B, 1 + n, ...]`` -> ``[B, 1 + 4n, ...]`` by linear interpolation in time."""
    steps = jnp.arange(4, dtype=keys.dtype).reshape(1, 1, 4, 1, 1, 1) / 4
    between = keys[:, :-1, None] * (1 - steps) + keys[:, 1:, None] * steps
    between = between.reshape(keys.shape[0], -1, *keys.shape[2:])
    return jnp.concatenate([between, keys[:, -1:]], axis=1)


def _average_score(score, config: ConfigDict, seed: int, frames: int) -> float:
    """Mean of ``score(video) -> [B, T]`` over held-out clips at 24 frames a second."""
    data = config.data.to_dict()
    data["buckets"] = tuple((frames, *bucket[1:]) for bucket in data["buckets"])
    data["fps"] = 24.0
    values = []
    with make_loader(data, split="validation", rule=FrameRule(1, 1), seed=seed) as loader:
        for batch in loader:
            found = np.asarray(score(jnp.asarray(batch["video"])))
            values += found[batch["mask"] > 0].mean(axis=1).tolist()
    return float(np.mean(values))


def draw(figure: Any, summary: Mapping[str, Any]) -> None:
    """PSNR against all steps spent, and PSNR of each frame of a clip."""
    rows = {row["arm"]: row for row in summary["arms"] if row["chosen"]}
    left, right = figure.subplots(1, 2)
    lines = {
        "grown (full)": ("base_4x", "grown_8x", "grown_16x"),
        "grown plainly": ("base_4x", "plain_8x", "plain_16x"),
        "grown, own rates": ("base_4x", "grown_8x_own_rate", "grown_16x_own_rate"),
        "direct 8x": ("direct_8x", "direct_8x_2_times", "direct_8x_4_times"),
        "direct 16x": ("direct_16x", "direct_16x_2_times", "direct_16x_4_times"),
    }
    for (label, names), marker in zip(lines.items(), "osdv^", strict=True):
        found = [rows[name] for name in names if name in rows]
        left.errorbar(
            [row["steps_in_all"] for row in found],
            [row["metrics"]["psnr"]["mean"] for row in found],
            [row["metrics"]["psnr"]["sd"] for row in found],
            marker=marker,
            capsize=4,
            label=label,
            linestyle="-" if label.startswith("direct") else "--",
        )
    for name in ("base_4x", "grown_8x", "grown_16x"):
        if name in rows:
            at = rows[name]["steps_in_all"], rows[name]["metrics"]["psnr"]["mean"]
            left.annotate(name.rpartition("_")[2], at, (0, 8), textcoords="offset points")
    left.set(xlabel="steps of all stages", ylabel="PSNR, dB", title="held-out clips")
    shown = ("grown_16x", "grown_16x_own_rate", "plain_16x", "direct_16x", "direct_16x_4_times")
    for name in shown:
        if name in rows:
            frames = rows[name]["metrics"]["psnr_by_frame"]
            means, sds = ([frame[key] for frame in frames] for key in ("mean", "sd"))
            right.errorbar(range(len(frames)), means, sds, capsize=2, label=rows[name]["label"])
    right.set(xlabel="frame of the clip", ylabel="PSNR, dB", title="16x, frame by frame")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if axes.has_data():
            axes.legend(fontsize=8)


if __name__ == "__main__":
    sys.exit(main(build, ("cpu", "gpu", "smoke"), __doc__))
