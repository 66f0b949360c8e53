"""What small experiments share: rendered clips, learning rates to try, curves with error bars.

They are ``content_frame``, ``group_causal``, ``alignment`` and ``decoder_finetune``. All arms of an
experiment see the same clips in the same order and choose from the same learning rates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from experiments.design import Setting
from vidlatent.data.loader import make_loader
from vidlatent.spec import FrameRule

__all__ = [
    "GATE_METRIC",
    "SIZES",
    "SQUARED",
    "select_chosen",
    "clip_keys",
    "load_held_out",
    "compute_gate_metric",
    "plot_arms",
    "plot_lists",
    "list_rates",
]

SIZES = ("cpu", "gpu", "smoke")
GATE_METRIC = "psnr_over_mean_colour"
# With absolute error alone, networks trained from scratch long predict the mean colour only.
SQUARED = {"loss.l1": "0.1", "loss.l2": "4.0"}
_SIDES = {"cpu": 24, "gpu": 64, "smoke": 16}
_CLIPS = {"cpu": 2400, "gpu": 20_000, "smoke": 40}
_RATES = {"cpu": ("1e-3", "3e-3"), "gpu": ("3e-4", "1e-3"), "smoke": ("1e-3",)}


def list_rates(size: str, cpu: Sequence[str] = ()) -> tuple[Setting, ...]:
    """Learning rates that an arm chooses from; ``cpu`` replaces the usual ones at that size."""
    chosen = cpu if cpu and size == "cpu" else _RATES[size]
    return tuple({"optim.lr": rate} for rate in chosen)


def clip_keys(size: str, frames: int, batch: int, scored: int) -> dict[str, str]:
    """Config keys of the data and of the schedule, which are the same for all arms.

    Clips are rendered, square, and as long as a training window, so that each is seen whole.

    Args:
      size: ``'cpu'``, ``'gpu'`` or ``'smoke'``.
      frames: of a clip.
      batch: clips in a step.
      scored: held-out clips (``'smoke'``: 8).
    """
    side, number = _SIDES[size], _CLIPS[size]
    scored = 8 if size == "smoke" else scored
    return {
        "data.source": "synthetic",
        "data.synthetic.kind": "paths",
        "data.synthetic.clips": str(number),
        "data.synthetic.frames": str(frames),
        "data.synthetic.height": str(side),
        "data.synthetic.width": str(side),
        "data.synthetic.shapes": "3",
        "data.synthetic.speed": "0.4",
        "data.synthetic.turns": "0.08",
        "data.buckets": f"(({frames}, {side}, {side}, {batch}),)",
        # A little more than are scored, since the split by hashed names is only about this share.
        "data.validation_share": f"{1.3 * scored / number:.4f}",
        "data.validation_clips": str(scored),
        "data.read_threads": "1",
        "data.num_workers": "8" if size == "gpu" else "0",
        # Falls to zero at the end of the run, which makes scores vary less between seeds.
        "optim.schedule": "cosine",
        "optim.warmup_steps": "1" if size == "smoke" else "30",
        "optim.ema_decay": "0.999" if size == "gpu" else "0.99",
        "train.log_every": "50",
        "train.tensorboard": "False",
        "checkpoint.every": "2000",
        "checkpoint.keep_latest": "1",
        "eval.every": "0",
        "eval.pictures": "0",
        "eval.preservation": "False",
    }


def compute_gate_metric(scored: Mapping[str, Any]) -> dict[str, float]:
    """``{GATE_METRIC: dB}``: PSNR minus that of each clip's mean colour."""
    scores = scored["scores"]
    return {GATE_METRIC: scores["psnr"] - scores["psnr_constant_colour"]}


def load_held_out(config: ConfigDict, rule: FrameRule, seed: int) -> Iterator[dict[str, Any]]:
    """The batches that a run was scored on; rows with ``mask`` 0 are padding."""
    data = config.data.to_dict()
    with make_loader(data, split="validation", rule=rule, seed=seed) as loader:
        yield from loader


def plot_arms(axes: Any, rows: Sequence[Mapping[str, Any]], metric: str, heading: str) -> None:
    """Plot a metric of each arm: mean, standard deviation and the value of each seed."""
    rows = [row for row in rows if metric in row["metrics"]]
    for place, row in enumerate(rows):
        value = row["metrics"][metric]
        axes.errorbar(place, value["mean"], value["sd"], fmt="o", capsize=4, color="C0")
        axes.plot([place] * value["n"], value["values"], ".", color="C1", markersize=4)
    axes.set_xticks(range(len(rows)), [row["label"] for row in rows], rotation=20, ha="right")
    axes.set_ylabel(heading)
    axes.grid(axis="y", alpha=0.3)


def plot_lists(
    axes: Any, rows: Sequence[Mapping[str, Any]], metric: str, xs: Sequence[Any], title: str
) -> None:
    """Plot a metric that is a list, one curve with error bars for each arm, against ``xs``."""
    for row in rows:
        if metric not in row["metrics"]:
            continue
        values = row["metrics"][metric]
        means, sds = ([value[key] for value in values] for key in ("mean", "sd"))
        axes.errorbar(xs[: len(means)], means, sds, capsize=3, label=row["label"])
    axes.set_title(title)
    axes.grid(alpha=0.3)
    if axes.has_data():
        axes.legend(fontsize=8)


def select_chosen(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The rows of a summary in which an arm has its chosen setting."""
    return [row for row in summary["arms"] if row["chosen"]]
