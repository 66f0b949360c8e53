"""How many evaluations can distillation save before videos stop following their labels?

    python -m experiments.few_steps                     minutes a seed on two idle cores
    python -m experiments.few_steps --size=smoke        a few steps each: whether the parts fit
    python -m experiments.few_steps --size=seconds      the same at full width: seconds a video
    python -m experiments.few_steps --report            table and plot of finished runs
    python -m experiments.few_steps --data=runs/fsvideo_demo-demo      its tokenizer and latents

FSVideo's chain (2.4.3) at toy size, on latents of labelled shapes: a guided teacher of 40
evaluations; its guidance distilled (20); its steps halved to 8, 4 and 2; and 2 steps by score
distillation, SiDA and DMD2. Every stage is compared with fewer steps of what it was distilled from,
at the same number of evaluations, by the share of videos that show what their label says and by the
Fréchet distance of their latents. A tokenizer is trained and the clips are encoded once, first.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # if run as a file, not with -m

from experiments import cli
from experiments.design import Arm, Difference, Experiment
from experiments.generator_demo import (
    ASPECTS,
    TOKENIZERS,
    Demo,
    measure_label_accuracy,
    prepare_latents,
)
from experiments.proofs import load_held_out, select_chosen
from vidlatent import config as configs
from vidlatent.data.renderers.shapes import LABELS
from vidlatent.errors import VidlatentError
from vidlatent.evaluate.student import sum_patches
from vidlatent.metrics import FeatureSums, frechet_of_sums
from vidlatent.sample.generator import Generator
from vidlatent.sample.requests import Request

__all__ = ["EVALUATIONS", "SIZES", "STEPS", "Data", "build", "main", "measure"]

SIZES = ("cpu", "smoke", "seconds")
# Evaluations of the network for a video at which arms are compared.
EVALUATIONS = (40, 20, 8, 4, 2)
# Steps that each arm is sampled with; a guided one of the teacher takes two evaluations.
STEPS = {
    "teacher": (20, 10, 4, 2, 1),
    "guidance": (20, 8, 4, 2),
    "halved": (8, 4, 2),
    "sida": (2,),
    "dmd2": (2,),
}
_NOTES = (
    "Columns: evaluations of the network for a video. A guided step of the teacher takes two.",
    "Labels: shares of videos whose colour, shape and direction are as asked, their mean.",
    "Distance: Fréchet distance between patches of the videos' latents and of held-out clips'.",
    "Teacher and guidance student take fewer steps by UniPC, the preset's solver; the others by "
    "Euler, which they were distilled for.",
    "Seconds are of sampling alone, a batch at a time, without decoding.",
)


class Data(NamedTuple):
    """Where the tokenizer and the latents of all runs are."""

    tokenizer: Path
    latents: Path


class Length(NamedTuple):
    """Training steps of the arms, and videos of each class that are measured.

    ``halving`` is of each of the three halvings, ``score`` of updates of both networks.
    """

    teacher: int
    guidance: int
    halving: int
    score: int
    videos: int


_SHORT = Length(2, 2, 1, 6, 1)
_LENGTHS = {"cpu": Length(2400, 200, 80, 300, 1), "smoke": _SHORT, "seconds": _SHORT}
_CPU = {
    "generator.width": "64",
    "generator.depth": "4",
    "generator.hidden": "256",
    "data.buckets": "((9, 32, 32, 16),)",
    "data.validation_clips": "192",
    "diffusion.eval_levels": "2",
    "optim.lr": "2e-3",
}
_KEYS: dict[str, dict[str, str]] = {
    "cpu": _CPU,
    # How long sampling takes does not depend on what was learned.
    "seconds": {**_CPU, "data.validation_clips": "4"},
    "smoke": {
        "generator.width": "32",
        "generator.depth": "2",
        "generator.hidden": "32",
        "generator.heads": "2",
        "data.buckets": "((9, 32, 32, 4),)",
        "data.validation_clips": "4",
        "diffusion.eval_levels": "2",
    },
}
# One run for all seeds, so it may take larger batches.
_TEACHER = {"cpu": {"data.buckets": "((9, 32, 32, 32),)"}, "smoke": {}, "seconds": {}}
# Of all arms that are distilled: they start trained, and are not guided.
_STUDENT = {
    "sampler.guidance.scales": "()",
    "sampler.guidance.drops": "()",
    "optim.lr": "3e-4",
    "optim.warmup_steps": "20",
    "optim.weight_decay": "0.0",
}
_GUIDANCE = {**_STUDENT, "task": "distill_guidance", "distill.scales": "(2.5,)"}
_HALVED = {
    **_STUDENT,
    "task": "distill_progressive",
    "distill.stages": "(8, 4, 2)",
    "sampler.name": "euler",
    "sampler.steps": "2",
    "checkpoint.keep_latest": "3",
}
_ADAM = {"b1": "0.0", "b2": "0.999", "clip_norm": "0.0", "schedule": "constant"}
# Of generator and fake score, chosen by a pilot (docs/experiments/few_steps.md).
_RATES = {"optim": "1e-4", "distill.optim": "1e-4"}
_SIDA = {
    **_STUDENT,
    "task": "distill_score",
    "sampler.name": "euler",
    "conditions.drop.label": "0.0",
    # Samples in place of the published 20,000 and 40,000, as everything here is shorter.
    "distill.score.generator_after": "480",
    "distill.score.adversarial_after": "960",
    **{
        f"{section}.{key}": text
        for section, rate in _RATES.items()
        for key, text in {**_ADAM, "lr": rate}.items()
    },
}
# As DMD2's code for SDXL has them, but for the rates and 2 updates of the fake score in place of 5.
_DMD = {
    **_SIDA,
    "distill.score.kind": "dmd",
    "distill.score.fake_updates": "2",
    "distill.score.levels": "uniform",
    "distill.score.adversarial_weight": "5e-3",
    "distill.score.discriminator_weight": "1e-2",
}


_DECODERS: dict[str, Generator] = {}  # by workdir of the tokenizer


def make_demo(size: str, folder: Path) -> Demo:
    """The demo whose tokenizer and latents all runs use, if none are given."""
    steps, clips = (1200, 2048) if size == "cpu" else (2, 96)
    return Demo("fsvideo_dit", folder / "data", steps, 1, clips, 0, {})


def build(size: str, data: Data) -> Experiment:
    """The experiment at a size in ``SIZES``."""
    length = _LENGTHS[size]
    common = {
        "data.path": str(data.latents),
        "tokenizer.path": str(data.tokenizer),
        "generator.latent_channels": str(TOKENIZERS["fsvideo_dit"].channels),
        "train.log_every": "50",
        "train.tensorboard": "False",
        "checkpoint.every": "0",
        "eval.every": "0",
        "sample.grid": "0",
        **_KEYS[size],
    }

    def arm(name: str, label: str, steps: int, keys: Mapping[str, str], start: str = "") -> Arm:
        spec = "configs/fsvideo_dit.py:demo,memory=false"
        keys = {**common, **keys}
        return Arm(name, spec, steps, label, keys, starts_from=start, shared=not start)

    def score(name: str, label: str, keys: Mapping[str, str]) -> Arm:
        return arm(name, label, length.score, {**keys, "sampler.steps": "2"}, "guidance")

    halved = {**_HALVED, "checkpoint.every": str(length.halving)}
    return Experiment(
        name="few_steps",
        title=f"Few steps: a guided teacher distilled, on labelled shapes ({size} size)",
        arms=(
            arm("teacher", "teacher, guided", length.teacher, _TEACHER[size]),
            arm("guidance", "guidance distilled", length.guidance, _GUIDANCE, "teacher"),
            arm("halved", "steps halved", 3 * length.halving, halved, "guidance"),
            score("sida", "SiDA, 2 steps", _SIDA),
            score("dmd2", "DMD2, 2 steps", _DMD),
        ),
        seeds=(0, 1, 2) if size == "cpu" else (0,),
        metric="fewest",
        columns={
            **{f"labels_{n}": f"labels, {n}" for n in EVALUATIONS},
            **{f"distance_{n}": f"distance, {n}" for n in EVALUATIONS},
            **{f"seconds_{n}": f"seconds, {n}" for n in EVALUATIONS},
        },
        differences=_list_differences(),
        measure=functools.partial(measure, videos=length.videos),
        draw=draw,
        notes=_NOTES,
        gate=("teacher", 0.6),
        gate_metric="labels_40",
        decimals={f"{name}_{n}": 3 for name in ("distance", "seconds") for n in EVALUATIONS},
    )


def _list_differences() -> tuple[Difference, ...]:
    """Each stage against what it was distilled from, at the same evaluations.

    Labels count from 5 points on, distances from 10 %.
    """
    pairs = [("guidance", "teacher", 20)]
    pairs += [("halved", "guidance", n) for n in (8, 4, 2)]
    pairs += [(name, before, 2) for name in ("sida", "dmd2") for before in ("guidance", "halved")]
    pairs += [("dmd2", "sida", 2)]
    return tuple(
        Difference(first, second, f"{metric}_{n}", least)
        for first, second, n in pairs
        for metric, least in (("labels", 0.05), ("log_distance", 0.1))
    )


def measure(
    config: ConfigDict, workdir: Path, seed: int, scores: Mapping[str, Any], *, videos: int
) -> dict[str, Any]:
    """Labels, distance and seconds of an arm's videos, by evaluations of the network.

    ``labels`` is the mean of the shares of the three aspects, which are given, too; ``all`` is the
    share of videos that are right in all three, and ``fewest`` the labels at the fewest
    evaluations.
    """
    del scores
    arm = workdir.parents[1].name  # runs/<arm>/<setting>/seed_<n>
    found: dict[str, Any] = {}
    for number, steps in enumerate(STEPS[arm], 1):
        # Each of the halvings has a checkpoint of its own.
        share = number / len(STEPS[arm]) if arm == "halved" else 1.0
        generator = _open(workdir, steps, round(share * config.train.steps))
        count = generator.sampler.nfe
        rows: list[dict[str, object]] = [{"prompt": label} for label in LABELS]
        # All arms of a seed draw from the same noise, and no two seeds do.
        requests = generator.requests_for(rows, videos, config.sample.seed + 1000 * seed)
        list(generator.latents(requests[:1]))  # compiles
        began = time.perf_counter()
        drawn = list(generator.latents(requests))
        seconds = (time.perf_counter() - began) / len(drawn)
        made = [(request.prompt, _decode(generator, request, latent)) for request, latent in drawn]
        latents = np.stack([latent for _, latent in drawn])
        real = _sum_held_out(generator, seed)
        distance = frechet_of_sums(real, _sum_latents(generator, latents))
        right = measure_label_accuracy(made)
        labels = float(np.mean([right[aspect]["share"] for aspect in ASPECTS]))
        found |= {
            f"labels_{count}": labels,
            **{f"{name}_{count}": right[name]["share"] for name in (*ASPECTS, "all")},
            f"distance_{count}": distance,
            f"log_distance_{count}": math.log(distance),
            f"seconds_{count}": seconds,
            "fewest": labels,
        }
    return found


def _decode(generator: Generator, request: Request, latent: np.ndarray) -> np.ndarray:
    """The video of a latent; all arms have one tokenizer, whose decoder is compiled once."""
    path = generator.config.tokenizer.path
    decoder = _DECODERS.setdefault(path, generator)
    return np.concatenate(list(decoder.decode(request, latent)))


def _open(workdir: Path, steps: int, step: int) -> Generator:
    """The generator of a checkpoint, to be sampled with so many steps."""
    return Generator.of(configs.read(workdir, {"sampler.steps": str(steps)}), workdir, step)


def _sum_latents(generator: Generator, latents: np.ndarray) -> FeatureSums:
    """Sums of the patches of latents ``[B, t, h, w, c]`` that are not standardised."""
    standard = generator.known.standardise(latents)
    packed = sum_patches(standard, generator.model.patch, np.ones(len(latents), np.float32))
    return FeatureSums.unpack(np.asarray(packed, np.float64))


def _sum_held_out(generator: Generator, seed: int) -> FeatureSums:
    """Of the clips that no arm has learned from."""
    total: FeatureSums | None = None
    for batch in load_held_out(generator.config, generator.known.spec.lengths, seed):
        sums = _sum_latents(generator, batch["latent"][batch["mask"] > 0])
        if total is None:
            total = sums
        else:
            total.merge(sums)
    if total is None:
        raise VidlatentError("no clip is held out: raise config.data.validation_share.")
    return total


def draw(figure: Any, summary: Mapping[str, Any]) -> None:
    """Labels and distance of every arm against the evaluations."""
    rows = select_chosen(summary)
    for axes, metric in zip(figure.subplots(1, 2), ("labels", "distance"), strict=True):
        for row in rows:
            found = {n: row["metrics"].get(f"{metric}_{n}") for n in EVALUATIONS}
            points = [(n, v["mean"], v["sd"]) for n, v in found.items() if v]
            if points:
                axes.errorbar(*zip(*points, strict=True), marker="o", capsize=3, label=row["label"])
        axes.set_xscale("log", base=2)
        axes.set_xticks(EVALUATIONS, map(str, EVALUATIONS))
        axes.set_xlabel("evaluations of the network for a video")
        axes.set_ylabel({"labels": "share of videos as asked", "distance": "distance"}[metric])
        axes.grid(alpha=0.3)
        if axes.has_data():
            axes.legend(fontsize=8)
    figure.axes[1].set_yscale("log")


def find_data(path: str, folder: Path) -> Data:
    """The data in the folder ``--data``, such as a run of ``fsvideo_demo``; '' for what is made."""
    if not path:
        return Data(folder / "data" / "tokenizer", folder / "data" / "latents")
    found = Data(Path(path) / "tokenizer", Path(path) / "small")
    for part in found:
        if not part.is_dir():
            raise VidlatentError(f"--data={path} holds no {part.name}: name a finished demo's run.")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--workdir")
    parser.add_argument("--size", choices=SIZES, default=SIZES[0])
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--data", default="")
    known, _ = parser.parse_known_args(words)
    words = [word for word in words if not word.startswith("--data=")]
    folder = Path(known.workdir or f"runs/few_steps-{known.size}")
    try:
        data = find_data(known.data, folder)
        if not (known.report or known.help or known.data):
            cli.prepare()
            if status := prepare_latents(make_demo(known.size, folder), {}):
                return status
    except VidlatentError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return cli.main(lambda size: build(size, data), SIZES, __doc__, words)


if __name__ == "__main__":
    sys.exit(main())
