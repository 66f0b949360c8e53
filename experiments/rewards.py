"""Do rewards raise what they measure, and at the cost of what? Small proofs.

    python -m experiments.rewards                  one CPU core pair
    python -m experiments.rewards --report         table and plot of finished runs
    python -m experiments.rewards --data=runs/fsvideo_demo-demo     the demo's tokenizer and base

A base model continues first frames of labelled shapes. It is fine-tuned to raise a reward that
needs no weights, the change of the pixels in a second, or in the control a number that says nothing
about a video. 256 fixed prompts are then drawn from fixed seeds: does the reward rise, do colour,
shape and direction still follow the label, and is it the shape that moves more? Tokenizer, latents
and base model are made once, first. Design and result: docs/experiments/rewards.md.
"""

from __future__ import annotations

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
from experiments.fsvideo_demo import CHANNELS, FRAMES, LOW, Demo, make_base
from experiments.fsvideo_demo import SIZES as DEMOS
from experiments.generator_demo import ASPECTS, measure_label_accuracy
from experiments.proofs import plot_arms, select_chosen
from vidlatent import config as configs
from vidlatent.data.renderers.shapes import make_shape_scene, render_shape
from vidlatent.latents.pixels import from_pixels
from vidlatent.media.sheets import contact_sheet, encode_picture
from vidlatent.rewards import make_rewards
from vidlatent.sample.generator import Generator

__all__ = ["SIZES", "build", "main", "make_data", "measure", "measure_motion"]

SIZES = ("cpu", "smoke")
REWARD = "motion"
_WATCHED = "sharpness"
_VIDEOS = {"cpu": 256, "smoke": 4}
_STEPS = {"cpu": 40, "smoke": 2}
_SHOWN = 8  # prompts on each run's sheet
_POINTS = 5.0  # of accuracy that may be lost; fixed with the issue

_POLICY: dict[str, Mapping[str, str]] = {
    "cpu": {
        "data.buckets": f"(({FRAMES}, {LOW}, {LOW}, 8),)",
        "rl.group": "8",
        "optim.lr": "3e-4",
        "data.validation_clips": "16",
    },
    "smoke": {
        "data.buckets": f"(({FRAMES}, {LOW}, {LOW}, 2),)",
        "rl.group": "2",
        "data.validation_clips": "2",
        "rl.window.stay": "1",
        **DEMOS["tiny"].keys["dit"],
        "sampler.steps": "4",
    },
}
_NOTES = (
    "Reward: root mean square change of the pixels in [0, 1] in a second, of decoded 8-bit frames.",
    "Accuracy: the share of 256 videos of unseen first frames in which the label's colour, shape "
    "or direction is read; changes are against the base model's, from the same seeds, in points.",
    "Way: pixels that the shape's centre moves from the first frame to the last. Flicker: mean "
    "change from frame to frame, in levels of 255, of pixels that the shape never comes near.",
    "The control's reward is a number that says nothing about a video; all else is equal.",
    "Tokenizer, base model, prompts and their seeds are the same for all seeds.",
)


def build(size: str, folder: Path) -> Experiment:
    """The experiment at ``'cpu'`` or ``'smoke'`` size.

    Args:
      folder: of the tokenizer, the latents and the base model.
    """
    keys = {
        "imports": "('experiments.chance_reward',)",
        "data.path": str(folder / "small"),
        "tokenizer.path": str(folder / "tokenizer"),
        "train.init_from": str(folder / "base"),
        "generator.latent_channels": str(CHANNELS),
        "generator.condition_channels": str(CHANNELS),
        "sampler.guidance.scales": "()",
        "sampler.guidance.drops": "()",
        "train.log_every": "1",
        "train.tensorboard": "False",
        "checkpoint.every": "10",
        "checkpoint.keep_latest": "1",
        "eval.every": "0",
        "sample.grid": "0",
        "rl.watch": f"('{_WATCHED}',)",
        **_POLICY[size],
    }
    config = "configs/fsvideo_dit.py:demo,first=true,stage=grpo"

    def arm(name: str, reward: str, label: str) -> Arm:
        overrides = {**keys, "rewards.use": f"('{reward}',)"}
        return Arm(name, config, _STEPS[size], label, overrides)

    # Arms of other methods that start from the same base model go here.
    return Experiment(
        name="rewards",
        title=f"Rewards that need no weights, on labelled shapes ({size} size)",
        arms=(
            arm("grpo_chance", "chance", "MixGRPO, a reward that says nothing"),
            arm("grpo_motion", REWARD, "MixGRPO, motion"),
        ),
        seeds=(0,) if size == "smoke" else (0, 1, 2),
        metric="gain",
        columns={
            "gain": "reward, change in %",
            **{f"{aspect}_change": f"{aspect}, change in points" for aspect in ASPECTS},
            "way_change": "way, change in pixels",
            "flicker_change": "flicker, change in levels",
        },
        differences=(
            Difference("grpo_motion", "grpo_chance", "gain", 5.0),
            *(
                Difference("grpo_motion", "grpo_chance", f"{aspect}_change", _POINTS)
                for aspect in ASPECTS
            ),
            Difference("grpo_motion", "grpo_chance", "way_change"),
            Difference("grpo_motion", "grpo_chance", "flicker_change"),
        ),
        measure=measure,
        draw=draw,
        notes=_NOTES,
    )


def make_data(size: str, folder: Path) -> int:
    """Tokenizer, latents and base model unless done; returns the exit status."""
    demo = DEMOS["demo"] if size == "cpu" else DEMOS["tiny"]
    return make_base(Demo(folder, demo))


def measure(config: ConfigDict, workdir: Path, seed: int, scores: Mapping) -> dict[str, Any]:
    """What the run's videos of the fixed prompts are, against those of the base model."""
    del seed, scores
    count = _VIDEOS["cpu" if config.rl.group > 2 else "smoke"]
    begun, before = _measure_base(config, count)
    found, after = _look(draw_videos(config, workdir, count), config)
    sheet = contact_sheet(
        [video for pair in zip(before[:_SHOWN], after, strict=False) for _, video in pair],
        [f"{label}: {which}" for label, _ in before[:_SHOWN] for which in ("base", "tuned")],
        group=2 * _SHOWN,
    )
    (workdir / "videos.png").write_bytes(sheet)
    changes = {f"{name}_change": found[name] - begun[name] for name in found}
    gain = 100.0 * (found["reward"] / begun["reward"] - 1.0)
    base = {f"base_{name}": value for name, value in begun.items()}
    return {"gain": gain, **changes, **found, **base}


def _measure_base(config: ConfigDict, count: int) -> tuple[dict[str, float], list]:
    """The base model's videos by the same sampler, and what they are."""
    base = Path(config.train.init_from)
    own = configs.read(base)
    with own.unlocked():
        own.sampler = config.sampler.copy_and_resolve_references()
        own.data.path, own.tokenizer.path = config.data.path, config.tokenizer.path
    videos = draw_videos(own, base, count)
    return _look(videos, config)[0], videos


def draw_videos(config: ConfigDict, workdir: Path, count: int) -> list[tuple[str, np.ndarray]]:
    """(label, video) of ``count`` unseen clips' first frames; the k-th has the seed k."""
    generator = Generator.of(config, workdir, -1)
    generator = generator.with_settings(size=(LOW, LOW), frames=FRAMES)
    scenes = [make_shape_scene(1, index, FRAMES) for index in range(count)]
    rows = [
        {"prompt": scene.label, "encoded": encode_picture(render_shape(scene, [0], LOW, LOW)[0])}
        for scene in scenes
    ]
    requests = generator.requests_for(rows, 1, 0)
    return [
        (request.prompt, np.concatenate(list(generator.decode(request, latent))))
        for request, latent in generator.latents(requests)
    ]


def _look(
    videos: Sequence[tuple[str, np.ndarray]], config: ConfigDict
) -> tuple[dict[str, float], list[tuple[str, np.ndarray]]]:
    """Mean reward, accuracies in percent, way and flicker; and the videos themselves."""
    accuracy = measure_label_accuracy(videos)
    rewards = make_rewards((REWARD, _WATCHED), config)
    frames = from_pixels(jnp.asarray(np.stack([video for _, video in videos])))
    tokens = rewards.tokenize([label for label, _ in videos])
    scores = jax.jit(
        lambda frames: rewards.score({}, frames, rewards.encode({}, tokens), fps=config.sample.fps)
    )(frames)
    moved = [measure_motion(video) for _, video in videos]
    found = {
        "reward": float(scores[REWARD].mean()),
        _WATCHED: float(scores[_WATCHED].mean()),
        **{aspect: 100.0 * accuracy[aspect]["share"] for aspect in ASPECTS},
        "way": float(np.mean([way for way, _ in moved])),
        "flicker": float(np.mean([flicker for _, flicker in moved])),
    }
    return found, list(videos)


def measure_motion(video: np.ndarray) -> tuple[float, float]:
    """Way of the shape's centre in pixels, and flicker of what it never comes near.

    Args:
      video: uint8 ``[T, H, W, 3]``.

    Returns:
      The distance of the centre's first and last place, and the mean absolute change from frame to
      frame, of 255 levels, of pixels that are never further from the background than a tenth of the
      shape; 0 for what a video has not.
    """
    pixels = np.asarray(video, np.float32)
    apart = np.abs(pixels - np.median(pixels, axis=(0, 1, 2))).max(axis=-1)
    most = np.quantile(apart, 0.99)
    cover = np.where(apart > 0.5 * most, apart, 0.0)
    seen = np.flatnonzero(cover.sum(axis=(1, 2)) > 0)
    way = 0.0
    if len(seen) > 1 and most > 0:
        rows, columns = np.indices(apart.shape[1:])
        ends = cover[seen[[0, -1]]]
        total = ends.sum(axis=(1, 2))
        centres = [(ends * axis).sum(axis=(1, 2)) / total for axis in (rows, columns)]
        way = float(np.hypot(*(c[1] - c[0] for c in centres)))
    ground = (apart < 0.1 * most).all(axis=0)
    changes = np.abs(np.diff(pixels, axis=0)).mean(axis=(0, 3))
    return way, float(changes[ground].mean()) if ground.any() else 0.0


def draw(figure: Any, summary: Mapping[str, Any]) -> None:
    """The reward's change, and the accuracies'."""
    left, right = figure.subplots(1, 2)
    rows = select_chosen(summary)
    plot_arms(left, rows, "gain", "reward, change in %")
    for place, aspect in enumerate(ASPECTS):
        for row in rows:
            value = row["metrics"][f"{aspect}_change"]
            right.errorbar(place, value["mean"], value["sd"], fmt="o", capsize=4)
    right.axhline(-_POINTS, color="C3", linestyle="--")
    right.set_xticks(range(len(ASPECTS)), ASPECTS)
    right.set_ylabel("accuracy, change in points")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return main_with_data("rewards", build, make_data, SIZES, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
