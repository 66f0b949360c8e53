"""Validation of training by rewards: held-out rewards, samples, and an end before it goes wrong."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vidlatent.evaluate.held_out_rewards import (
    RewardScores,
    compile_reward_step,
    measure_rewards,
    write_reward_report,
)
from vidlatent.files import read_json, write_json
from vidlatent.parallel.multihost import is_main
from vidlatent.sample.grid import SampleGrid

__all__ = ["FILE", "RewardValidation", "find_hacking"]

FILE = "rewards.json"


class RewardValidation:
    """Rewards of the EMA weights' samples (``tasks.base.Validation``).

    Every evaluation goes into ``rewards.json``; the first is that of the start. A run ends early
    when the trained reward is above its start while a watched score has fallen
    (``config.rl.stop_fall``).

    Args:
      task: as ``make_reward_step`` takes it.
      run: ``train.hooks.Run``.
      frozen, mesh, make_loader: as ``Task.make_validation``.
    """

    def __init__(
        self,
        task: Any,
        run: Any,
        frozen: Mapping[str, Any],
        mesh: Mesh,
        make_loader: Callable[[], Any],
    ):
        self._task, self._make_loader = task, make_loader
        self._merge = functools.partial(task.adapters.merge_for_evaluation, frozen=frozen)
        self._step = compile_reward_step(task, frozen, mesh, self._merge(run.state["ema"]))
        self._grid = SampleGrid(task.config, task.latents, frozen, mesh, task.inputs)
        self._sheet = b""
        self._file = run.workdir / FILE
        self._history = _read_history(self._file, run.step)
        if run.step == 0:
            # What all later evaluations are compared with.
            with run.aside():
                self._note(run, self._measure(run))
        run.ended = find_hacking(self._history, task.config.rl, run.step)

    def _measure(self, run: Any) -> RewardScores:
        judge, params = self._task.watch, self._merge(run.state["ema"])
        weights = self._task.judge.rewards.weights
        with contextlib.closing(self._make_loader()) as loader:
            result = measure_rewards(self._step, params, loader, judge.names, weights)
            self._sheet = self._grid(params, loader)
        label = judge.rewards.label
        result.scores, result.spreads = label(result.scores), label(result.spreads)
        if self._sheet and is_main():
            file = run.workdir / "samples" / f"step_{run.step}.png"
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(self._sheet)
        return result

    def _note(self, run: Any, result: RewardScores) -> None:
        row = {"step": run.step, "scores": result.scores, "spreads": result.spreads}
        self._history = [*(r for r in self._history if r["step"] < run.step), row]
        if is_main():
            write_json(self._file, {"evaluations": self._history})

    def __call__(self, run: Any) -> RewardScores:
        result = self._measure(run)
        self._note(run, result)
        run.ended = find_hacking(self._history, self._task.config.rl, run.step)
        return result

    def pictures(self, result: RewardScores) -> dict[str, bytes]:
        del result
        return {"val/samples": self._sheet} if self._sheet else {}

    def videos(self, result: RewardScores) -> dict[str, np.ndarray]:
        del result
        return {f"val/samples/{n}": video for n, video in enumerate(self._grid.videos)}

    def write(self, run: Any, result: RewardScores, folder: Path) -> list[str]:
        return write_reward_report(
            result,
            folder,
            config=run.config,
            step=run.step,
            workdir=run.workdir,
            history=self._history,
            sheet=self._sheet,
        )


def _read_history(file: Path, step: int) -> list[dict[str, Any]]:
    """The evaluations up to ``step``: those of a run that went further count no more."""
    if step == 0 or not file.is_file():
        return []
    stored = read_json(file, "delete it: the curves then begin anew")
    return [row for row in stored["evaluations"] if row["step"] <= step]


def find_hacking(history: Sequence[Mapping[str, Any]], rl: ConfigDict, step: int) -> str:
    """Why a run should end, or '': the reward was bought with something else.

    In each of the last ``rl.stop_after`` evaluations the trained reward is above that of the first
    one, and some other score is below its first by more than ``rl.stop_fall`` deviations over the
    prompts.

    Args:
      history: evaluations as ``rewards.json`` holds them, the first before any update.
      rl: ``config.rl``.
      step: of the run; a run that went on after the last evaluation is not ended by it.
    """
    recent = list(history[1:])[-rl.stop_after :]
    if not rl.stop_fall or len(recent) < rl.stop_after or recent[-1]["step"] != step:
        return ""
    begun = history[0]
    for name, value in begun["scores"].items():
        if name in ("reward", "clips"):
            continue
        least = value - rl.stop_fall * begun["spreads"][name]
        risen = all(row["scores"]["reward"] > begun["scores"]["reward"] for row in recent)
        if risen and all(row["scores"][name] < least for row in recent):
            return (
                f"step {step}: the run ends here, since the reward has risen from "
                f"{begun['scores']['reward']:.4g} to {recent[-1]['scores']['reward']:.4g} while "
                f"{name} fell from {value:.4g} to {recent[-1]['scores'][name]:.4g} "
                "(config.rl.stop_fall); an earlier checkpoint may be the better one."
            )
    return ""
