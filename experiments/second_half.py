"""Do FSVideo's latent upsampler and refiner do what they are for? Four small proofs.

    python -m experiments.second_half                  one CPU core pair
    python -m experiments.second_half --size=gpu       a larger network for longer, for one GPU
    python -m experiments.second_half --report         table and plot of finished runs
    python -m experiments.second_half --data=runs/fsvideo_demo-demo     the demo's tokenizer

The upsampler against repetition of latents; the refiner with its condition against itself without,
and against the base model's network, trained as long at that size; its result against what it was
given; and true frames that are marked against true frames that are not (sections 2.4.1, 2.4.2).
Tokenizer and pairs of labelled shapes are made once, first; all else for each seed. Design and
result: docs/experiments/second_half.md.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # if run as a file, not with -m

from experiments.cli import main_with_data
from experiments.design import Arm, Experiment, Ratio
from experiments.fsvideo_demo import CHANNELS, FRAMES, HIGH, LOW, Demo, make_pairs
from experiments.fsvideo_demo import SIZES as DEMOS
from experiments.proofs import SIZES, plot_lists, select_chosen
from experiments.refining import (
    KINDS,
    draw_results,
    leave_out,
    measure_distances,
    measure_loss,
    measure_pixels,
    open_trained,
)

__all__ = ["build", "main", "make_data", "measure"]

_DATA = {
    "cpu": DEMOS["demo"],
    "gpu": dataclasses.replace(
        DEMOS["demo"], clips=16_384, steps={**DEMOS["demo"].steps, "tokenizer": 8000}
    ),
    "smoke": DEMOS["tiny"],
}
_STEPS = {
    "cpu": {"base": 800, "upsampler": 300, "refiner": 400},
    "gpu": {"base": 10_000, "upsampler": 4000, "refiner": 10_000},
    "smoke": {"base": 2, "upsampler": 2, "refiner": 2},
}
# Held out and scored: of these a half is refined in 8 steps, and a third is decoded.
_CLIPS = {"cpu": 96, "gpu": 512, "smoke": 4}
_BATCH = {"cpu": 16, "gpu": 64, "smoke": 4}  # of large clips; twice as many small ones
_DIT: dict[str, Mapping[str, str]] = {
    "cpu": {"generator.width": "64", "generator.hidden": "256", "optim.lr": "2e-3"},
    "gpu": {
        "generator.width": "256",
        "generator.depth": "12",
        "generator.hidden": "1024",
        "generator.heads": "8",
        "optim.lr": "5e-4",
        "optim.ema_decay": "0.999",
    },
    "smoke": {**DEMOS["tiny"].keys["dit"], "optim.lr": "1e-3"},
}
_UPSAMPLER: dict[str, Mapping[str, str]] = {
    "cpu": {"generator.width": "32"},
    "gpu": {"generator.width": "128", "generator.blocks": "8", "optim.ema_decay": "0.999"},
    "smoke": DEMOS["tiny"].keys["upsampler"],
}
_SHOWN = 3  # clips in the picture
_TIE = 0.01  # of ratios; fixed before the first run, see the page
# Numbered as on the page; what has no limit is shown beside.
_RATIOS = (
    Ratio("1 upsampled / repeated", "upsampler latent_l1", "upsampler nearest", 2 / 3),
    Ratio("bicubic / repeated", "upsampler bicubic", "upsampler nearest"),
    Ratio("2a with / without", "refiner flow_loss", "refiner flow_loss_without", 1.0, _TIE),
    Ratio("2b refiner / base there", "refiner flow_loss", "control flow_loss", 1.0, _TIE),
    Ratio(
        "2c the same, trained 1.5 times as long",
        "refiner flow_loss",
        "control_longer flow_loss",
        1.0,
        _TIE,
    ),
    Ratio("3a result / given, moved", "refiner moved_result", "refiner moved_given", 1.0, _TIE),
    Ratio("3b result / given, own", "refiner own_result", "refiner own_given", 1.0, _TIE),
    Ratio(
        "3c result / given, cascade", "refiner cascade_result", "refiner cascade_given", 1.0, _TIE
    ),
    Ratio("4a mask 1 / 0.5, true frames", "refiner marked", "refiner unmarked", 1.0, _TIE),
    Ratio("4b true, 1 / upsampled, 0.5", "refiner marked", "refiner plain", 1.0, _TIE),
    *(
        Ratio(
            f"pixels: result / given, {kind}",
            f"refiner {kind}_result_pixels",
            f"refiner {kind}_given_pixels",
        )
        for kind in KINDS
    ),
)
# The sampler of the refiner's config, so that the arms differ in nothing else.
_LARGE = {
    "conditions.drop.first": "0.05",
    "sampler.name": "euler",
    "sampler.steps": "8",
    "sampler.guidance.scales": "()",
    "sampler.guidance.drops": "()",
    "sample.size": f"({FRAMES}, {HIGH}, {HIGH})",
}
_NOTES = (
    "Flow loss: pseudo-Huber of the velocity at eight fixed noise levels on held-out clips of "
    "64x64, with the same noise for every run. The base model was not trained at that size.",
    "Distances are mean absolute differences of standardised latents from the clip's own, without "
    "frame 0, which is given.",
    "Tokenizer and pairs are the same for all seeds, held-out clips, too.",
    "Equal steps, never convergence; rendered clips of three latent frames.",
)


def build(size: str, folder: Path) -> Experiment:
    """The experiment at ``'cpu'``, ``'gpu'`` or ``'smoke'`` size.

    Args:
      folder: of the tokenizer and the latents.
    """
    steps, keys = _STEPS[size], _common_keys(size, folder)
    base = "configs/fsvideo_dit.py:demo,first=true"
    low = {"data.path": str(folder / "small"), "data.buckets": _bucket(LOW, 2 * _BATCH[size])}
    dit = {**keys, **_DIT[size], "generator.condition_channels": str(CHANNELS)}
    parts = {"refiner.base": "base", "refiner.upsampler": "upsampler"}

    def large(name: str, config: str, label: str, **more: Any) -> Arm:
        given = {"steps": steps["refiner"], "overrides": {**dit, **_LARGE}, "more_steps": 0}
        return Arm(name, config, label=label, **{**given, **more})

    return Experiment(
        name="second_half",
        title=f"FSVideo's upsampler and refiner ({size} size)",
        arms=(
            Arm("base", base, steps["base"], "base, of small clips", {**dit, **low}),
            Arm(
                "upsampler",
                "configs/fsvideo_upsampler.py",
                steps["upsampler"],
                "upsampler",
                {**keys, **_UPSAMPLER[size]},
            ),
            large(
                "refiner",
                "configs/fsvideo_refiner.py",
                "refiner",
                starts_from="base",
                uses=parts,
                more_steps=steps["base"],
            ),
            large(
                "control", base, "base at that size", starts_from="base", more_steps=steps["base"]
            ),
            large(
                "control_longer",
                base,
                "base at that size, 1.5 times the steps",
                steps=steps["refiner"] * 3 // 2,
                continues="control",
                more_steps=steps["base"],
            ),
        ),
        seeds=(0,) if size == "smoke" else (0, 1, 2),
        metric="minus_loss",
        columns={"flow_loss": "flow loss", "latent_l1": "L1 of latents"},
        ratios=_RATIOS,
        measure=measure,
        draw=draw,
        notes=_NOTES,
        decimals={"flow_loss": 4, "latent_l1": 4},
    )


def _common_keys(size: str, folder: Path) -> dict[str, str]:
    """Config keys of all arms: data, and no evaluation but the last."""
    return {
        "data.path": str(folder / "pairs"),
        "data.buckets": _bucket(HIGH, _BATCH[size]),
        "data.validation_clips": str(_CLIPS[size]),
        "tokenizer.path": str(folder / "tokenizer"),
        "generator.latent_channels": str(CHANNELS),
        "train.log_every": "50",
        "train.tensorboard": "False",
        "checkpoint.every": "200",
        "checkpoint.keep_latest": "1",
        "eval.every": "0",
        "sample.grid": "0",
    }


def _bucket(side: int, batch: int) -> str:
    return f"(({FRAMES}, {side}, {side}, {batch}),)"


def make_data(size: str, folder: Path) -> int:
    """Train the tokenizer and encode both sets unless done; returns the exit status."""
    return make_pairs(Demo(folder, _DATA[size]))


def measure(config: ConfigDict, workdir: Path, seed: int, scores: Mapping) -> dict[str, Any]:
    """What the comparisons need beside the scores of the training loop, by kind of run."""
    del seed
    loss = scores["scores"]["loss"]
    common = {"minus_loss": -loss}  # larger is better
    if config.task == "upsampler":
        return common | {"latent_l1": loss}
    if config.task == "refiner":
        return common | _measure_refiner(config, workdir)
    if config.data.path.endswith("small"):
        return common | {"small_loss": loss} | _measure_base(config, workdir)
    return common | _flow(loss, [row["loss"] for row in scores["by_level"]])


def _flow(loss: float, by_level: Sequence[float]) -> dict[str, Any]:
    return {"flow_loss": loss, "flow_loss_by_level": list(by_level)}


def _measure_base(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """The loss of the base model, trained on small clips, on large ones."""
    batch = config.data.buckets[-1][3] // 2
    pairs = {"data.path": str(Path(config.data.path).parent / "pairs")}
    with open_trained(workdir, {**pairs, "data.buckets": _bucket(HIGH, batch)}) as trained:
        found = measure_loss(trained)
    return _flow(found["loss"], found["by_level"])


def _measure_refiner(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    clips = config.data.validation_clips
    with open_trained(workdir) as trained:
        found = measure_loss(trained)
        without = measure_loss(trained, leave_out(trained.inputs))
        drawn = draw_results(trained, clips // 2)
        pixels, sheet = measure_pixels(trained, drawn, max(2, clips // 3), _SHOWN)
    (workdir / "results.png").write_bytes(sheet)
    return {
        **_flow(found["loss"], found["by_level"]),
        "flow_loss_without": without["loss"],
        "without_by_level": without["by_level"],
        **measure_distances(drawn),
        **pixels,
    }


def draw(figure: Any, summary: Mapping[str, Any]) -> None:
    """Flow loss of the arms at that size, by noise level, and the ratios with their limits."""
    left, right = figure.subplots(1, 2)
    rows = [row for row in select_chosen(summary) if "flow_loss" in row["metrics"]]
    plot_lists(left, rows, "flow_loss_by_level", range(8), "flow loss, from clean to noise")
    found = [ratio for ratio in summary["ratios"] if ratio["n"]][::-1]
    places = range(len(found))
    right.errorbar(
        [ratio["mean"] for ratio in found], places, xerr=[ratio["sd"] for ratio in found], fmt="o"
    )
    limits = {place: ratio["below"] for place, ratio in enumerate(found) if ratio["below"]}
    right.plot(
        list(limits.values()), list(limits), "|", color="C3", markersize=14, label="to be below"
    )
    right.set_yticks(places, [ratio["text"] for ratio in found], fontsize=7)
    right.grid(axis="x", alpha=0.3)
    right.legend(fontsize=8)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return main_with_data("second_half", build, make_data, SIZES, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
