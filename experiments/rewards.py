"""Do rewards raise what they measure, and at the cost of what? Small proofs.

    python -m experiments.rewards                  one CPU core pair
    python -m experiments.rewards --report         table and plot of finished runs
    python -m experiments.rewards --data=DIR       its tokenizer, latents and base that are there

A base model continues first frames of labelled shapes. It is fine-tuned to raise a reward that
needs no weights, by policy updates or by its gradient, or in the control by updates for a number
that says nothing about a video. 256 fixed prompts are then drawn from fixed seeds: does the reward
rise, do colour, shape and direction still follow the label, and is every pixel still one of the
given shape or ground? Tokenizer, latents and base model are made once, first. Design and result:
docs/experiments/rewards.md.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # if run as a file, not with -m

from experiments.cli import main_with_data
from experiments.design import Arm, Difference, Experiment
from experiments.generator_demo import (
    ASPECTS,
    TOKENIZERS,
    Demo,
    measure_label_accuracy,
    prepare_latents,
    run_stage,
)
from experiments.proofs import plot_arms, select_chosen
from vidlatent import config as configs
from vidlatent.data.renderers.shapes import make_shape_scene, render_shape
from vidlatent.latents.pixels import from_pixels
from vidlatent.media.sheets import contact_sheet, encode_picture
from vidlatent.rewards import make_rewards
from vidlatent.sample.generator import Generator
from vidlatent.train.loop import train

__all__ = ["SIZES", "build", "draw_videos", "main", "make_data", "measure", "measure_honesty"]

SIZES = ("cpu", "smoke")
FRAMES, SIDE = 9, 32  # of a clip
_BASE = "configs/fsvideo_dit.py:demo,first=true"
_VIDEOS = {"cpu": 256, "smoke": 4}
_STEPS = {"cpu": 10, "smoke": 2}
_SHOWN = 8  # prompts on each run's sheet
_POINTS = 5.0  # of accuracy that may be lost; fixed with the issue
# Of hacking: levels of 255 by which pixels may become strange (and 25 points of area: the page).
_STRANGE = 1.0

_GAIN = 5.0  # percent by which a reward must rise above the control's
_RATE = "5e-5"  # of a pilot with another seed, told on the page

_GENERATOR = {
    "cpu": {"generator.width": "64", "generator.depth": "4", "generator.hidden": "256"},
    "smoke": {
        "generator.width": "32",
        "generator.depth": "2",
        "generator.hidden": "32",
        "generator.heads": "2",
    },
}
_BASE_TRAINING = {
    "cpu": {
        "data.buckets": f"(({FRAMES}, {SIDE}, {SIDE}, 16),)",
        "optim.lr": "2e-3",
        "diffusion.eval_levels": "2",
        "train.steps": "1200",
        "checkpoint.every": "300",
        "eval.every": "0",
    },
    "smoke": {
        "data.buckets": f"(({FRAMES}, {SIDE}, {SIDE}, 4),)",
        "data.validation_clips": "4",
        "diffusion.eval_levels": "1",
        "train.steps": "2",
        "eval.every": "0",
    },
}
# Of both stages, and of one of them.
_TUNING: dict[str, Mapping[str, str]] = {
    "cpu": {
        "data.buckets": f"(({FRAMES}, {SIDE}, {SIDE}, 6),)",
        "data.validation_clips": "16",
        "sampler.steps": "5",
        # The average of some ten updates, for a run of 10.
        "optim.ema_decay": "0.9",
    },
    "smoke": {
        "data.buckets": f"(({FRAMES}, {SIDE}, {SIDE}, 2),)",
        "data.validation_clips": "2",
        "sampler.steps": "3",
    },
}
_STAGES: dict[str, dict[str, Mapping[str, str]]] = {
    "grpo": {
        "cpu": {"rl.group": "6", "rl.window.size": "1", "rl.window.stay": "5"},
        "smoke": {"rl.group": "2", "rl.window.size": "1", "rl.window.stay": "1"},
    },
    "refl": {
        "cpu": {"refl.steps": "(2, 3)"},
        "smoke": {"refl.steps": "(1, 1)"},
    },
}
# The optimizer of both stages, and no other loss beside the rewards.
_REFL = {
    "refl.flow_weight": "0.0",
    "refl.margin": "10.0",  # above all sharpness: no video is good enough
    "optim.b2": "0.999",
    "optim.weight_decay": "1e-4",
    "conditions.drop.label": "0.0",
    "conditions.drop.first": "0.0",
}
# Arm -> stage, label and what it alone sets; all else is equal.
_ARMS: dict[str, tuple[str, str, Mapping[str, str]]] = {
    "grpo_chance": ("grpo", "MixGRPO, a reward that says nothing", {"rewards.use": "('chance',)"}),
    "grpo_sharpness": ("grpo", "MixGRPO, sharpness", {"rewards.use": "('sharpness',)"}),
    "refl_sharpness": ("refl", "ReFL, sharpness", {"rewards.use": "('sharpness',)"}),
}
_RAISED, _CONTROL = ("grpo_sharpness", "refl_sharpness"), "grpo_chance"
_REWARDS = ("sharpness", "motion")  # the first is raised, the other one watched
_NOTES = (
    "Rewards are of decoded 8-bit frames of 256 unseen first frames; changes are against the base "
    "model's videos from the same seeds.",
    "Accuracy: the share of videos in which the label's colour, shape or direction is read.",
    "Strange: distance of the pixels from all mixtures of the given frame's ground and shape, in "
    "levels of 255. Area: difference of the shape's area from the given frame's, of all frames, in "
    "percent of it. Way: pixels that the shape's centre moves.",
    "Tokenizer, base model, prompts and their seeds are the same for all seeds.",
)


def build(size: str, folder: Path) -> Experiment:
    """The experiment at ``'cpu'`` or ``'smoke'`` size.

    Args:
      folder: of the tokenizer, the latents and the base model.
    """
    keys = {
        "imports": "('experiments.chance_reward',)",
        **_make_data_keys(size, folder),
        "train.init_from": str(folder / "base"),
        "sampler.guidance.scales": "()",
        "sampler.guidance.drops": "()",
        "optim.lr": _RATE,
        # Constants of the compiled program, which of policy updates so is one for all seeds.
        "rl.start_seed": "0",
        "rl.noise_seed": "0",
        "train.log_every": "1",
        "data.num_workers": "0",  # latents are read in no time, and processes begin slowly
        "train.tensorboard": "False",
        "checkpoint.every": "5",
        "checkpoint.keep_latest": "1",
        "eval.every": "5",
        "sample.grid": "0",
        "rl.watch": str(_REWARDS),
        **_TUNING[size],
    }
    own = {stage: {**keys, **_STAGES[stage][size]} for stage in _STAGES}
    own["refl"] |= _REFL
    arms = tuple(
        Arm(name, f"{_BASE},stage={stage}", _STEPS[size], label, {**own[stage], **alone})
        for name, (stage, label, alone) in _ARMS.items()
    )
    aspects = tuple(f"{aspect}_change" for aspect in ASPECTS)
    return Experiment(
        name="rewards",
        title=f"Rewards that need no weights, on labelled shapes ({size} size)",
        arms=arms,
        seeds=(0,) if size == "smoke" else (0, 1, 2),
        metric="sharpness_gain",
        columns={
            **{f"{name}_gain": f"{name}, change in %" for name in _REWARDS},
            **{f"{aspect}_change": f"{aspect}, change in points" for aspect in ASPECTS},
            "way_change": "way, change in pixels",
            "strange_change": "strange, change in levels",
            "area_change": "area, change in points",
        },
        differences=tuple(
            difference
            for arm in _RAISED
            for difference in (
                Difference(arm, _CONTROL, f"{_REWARDS[0]}_gain", _GAIN),
                *(Difference(arm, _CONTROL, change, _POINTS) for change in aspects),
            )
        ),
        measure=measure,
        draw=draw,
        notes=_NOTES,
    )


def make_data(size: str, folder: Path) -> int:
    """Tokenizer, latents and base model unless done; returns the exit status."""
    tokenizer, clips = (300, 2048) if size == "cpu" else (2, 96)
    known = (folder / "latents" / "header.json").is_file()  # perhaps of another tokenizer
    demo = Demo("fsvideo_dit", folder, tokenizer, 1, clips, 0, {})
    if not known and (status := prepare_latents(demo, {})):
        return status
    base = configs.load(_BASE, {**_make_data_keys(size, folder), **_BASE_TRAINING[size]})
    scored = folder / "base" / "eval" / f"step_{base.train.steps}" / "scores.json"
    return run_stage("base", scored, lambda: train(base, folder / "base"), {})


def _make_data_keys(size: str, folder: Path) -> dict[str, str]:
    """Of the base model and of what is made of it."""
    channels = str(TOKENIZERS["fsvideo_dit"].channels)
    return {
        "data.path": str(folder / "latents"),
        "tokenizer.path": str(folder / "tokenizer"),
        "generator.latent_channels": channels,
        "generator.condition_channels": channels,
        **_GENERATOR[size],
    }


def measure(config: ConfigDict, workdir: Path, seed: int, scores: Mapping) -> dict[str, Any]:
    """What the run's videos of the fixed prompts are, against those of the base model."""
    del seed, scores
    count = _VIDEOS["cpu" if config.data.buckets[0][3] > 2 else "smoke"]
    before = _draw_base(
        config.train.init_from,
        (config.data.path, config.tokenizer.path),
        json.dumps(config.sampler.to_dict()),
        count,
    )
    after = draw_videos(config, workdir, count)
    begun, found = (look(videos, config) for videos in (before, after))
    pairs = zip(before[:_SHOWN], after, strict=False)
    sheet = contact_sheet(
        [video for pair in pairs for _, video in pair],
        [f"{label}: {which}" for label, _ in before[:_SHOWN] for which in ("base", "tuned")],
        group=2 * _SHOWN,
    )
    (workdir / "videos.png").write_bytes(sheet)
    gains = {f"{name}_gain": 100.0 * (found[name] / begun[name] - 1.0) for name in _REWARDS}
    changes = {f"{name}_change": found[name] - begun[name] for name in found}
    base = {f"base_{name}": value for name, value in begun.items()}
    return {**gains, **changes, **found, **base}


@functools.cache
def _draw_base(
    base: str, data: tuple[str, str], sampler: str, count: int
) -> list[tuple[str, np.ndarray]]:
    """The base model's videos, by the sampler of the runs."""
    own = configs.read(Path(base))
    with own.unlocked():
        own.sampler = ConfigDict(json.loads(sampler))
        own.data.path, own.tokenizer.path = data
    return draw_videos(own, Path(base), count)


def draw_videos(config: ConfigDict, workdir: Path, count: int) -> list[tuple[str, np.ndarray]]:
    """(label, video) of ``count`` unseen clips' first frames; the k-th has the seed k."""
    generator = Generator.of(config, workdir, -1)
    generator = generator.with_settings(size=(SIDE, SIDE), frames=FRAMES)
    rows = [
        {"prompt": scene.label, "encoded": encode_picture(render_shape(scene, [0], SIDE, SIDE)[0])}
        for scene in _list_scenes(count)
    ]
    requests = generator.requests_for(rows, 1, 0)
    made = {
        request.seed: (request.prompt, np.concatenate(list(generator.decode(request, latent))))
        for request, latent in generator.latents(requests)
    }
    return [made[request.seed] for request in requests]


def _list_scenes(count: int) -> list[Any]:
    return [make_shape_scene(1, index, FRAMES) for index in range(count)]


def look(videos: Sequence[tuple[str, np.ndarray]], config: ConfigDict) -> dict[str, float]:
    """Mean rewards, accuracies in percent, way, strangeness and area of ``draw_videos``'s."""
    accuracy = measure_label_accuracy(videos)
    rewards = make_rewards(_REWARDS, config)
    frames = from_pixels(jnp.asarray(np.stack([video for _, video in videos])))
    scores = jax.jit(
        lambda frames: rewards.score(
            {}, frames, {name: {} for name in _REWARDS}, fps=config.sample.fps
        )
    )(frames)
    given = [render_shape(scene, [0], SIDE, SIDE)[0] for scene in _list_scenes(len(videos))]
    honesty = [
        measure_honesty(video, picture) for (_, video), picture in zip(videos, given, strict=True)
    ]
    return {
        **{name: float(scores[name].mean()) for name in _REWARDS},
        **{aspect: 100.0 * accuracy[aspect]["share"] for aspect in ASPECTS},
        **{name: float(np.mean([found[name] for found in honesty])) for name in honesty[0]},
    }


def measure_honesty(video: np.ndarray, given: np.ndarray) -> dict[str, float]:
    """How far a video is one of the given frame's shape, which moves on its ground.

    Args:
      video: uint8 ``[T, H, W, 3]``.
      given: its first frame, uint8 ``[H, W, 3]``: a shape on a plain ground.

    Returns:
      ``strange``, the mean distance of the pixels from all mixtures of the given ground and shape,
      in levels of 255, so that flashing frames and noise count wherever they are; ``area``, the
      mean over the frames of the difference of the shape's area from the given frame's, in percent
      of it, so that growing, vanishing and blinking shapes count, and grounds in the shape's
      colour; ``way``, the distance in pixels of the shape's centre in the first and last frame
      that has one.
    """
    pixels, picture = np.asarray(video, np.float32), np.asarray(given, np.float32)
    ground = np.median(picture, axis=(0, 1))
    apart = np.abs(picture - ground).max(axis=-1)
    paint = picture[apart > 0.8 * apart.max()].mean(axis=0) - ground

    def cover(frames: np.ndarray) -> np.ndarray:
        return np.clip((frames - ground) @ paint / (paint @ paint), 0.0, 1.0)

    covers = cover(pixels)
    strange = np.abs(pixels - ground - covers[..., None] * paint).mean()
    whole = cover(picture).sum()
    area = np.abs(covers.sum(axis=(1, 2)) / whole - 1.0).mean()
    core = np.where(covers > 0.5, covers, 0.0)
    seen = np.flatnonzero(core.sum(axis=(1, 2)) > 0)
    way = 0.0
    if len(seen) > 1:
        rows, columns = np.indices(core.shape[1:])
        ends = core[seen[[0, -1]]]
        total = ends.sum(axis=(1, 2))
        centres = [(ends * axis).sum(axis=(1, 2)) / total for axis in (rows, columns)]
        way = float(np.hypot(*(c[1] - c[0] for c in centres)))
    return {"way": way, "strange": float(strange), "area": float(100.0 * area)}


def draw(figure: Any, summary: Mapping[str, Any]) -> None:
    """The reward's change, the accuracies', and what hacking shows in."""
    left, middle, right = figure.subplots(1, 3)
    rows = [{**row, "label": row["arm"]} for row in select_chosen(summary)]
    plot_arms(left, rows, f"{_REWARDS[0]}_gain", f"{_REWARDS[0]}, change in %")
    for number, row in enumerate(rows):
        for place, aspect in enumerate(ASPECTS):
            value = row["metrics"][f"{aspect}_change"]
            middle.errorbar(
                place + 0.15 * number,
                value["mean"],
                value["sd"],
                fmt="o",
                capsize=3,
                color=f"C{number}",
                label="" if place else row["label"],
            )
    middle.axhline(-_POINTS, color="k", linestyle="--")
    middle.set_xticks(range(len(ASPECTS)), ASPECTS)
    middle.set_ylabel("accuracy, change in points")
    middle.legend(fontsize=8)
    plot_arms(right, rows, "strange_change", "strange, change in levels")
    right.axhline(_STRANGE, color="k", linestyle="--")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return main_with_data("rewards", build, make_data, SIZES, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
