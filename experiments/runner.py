"""Runs an experiment: the training loop for one run after another, in one process.

A finished run leaves ``results/<arm>/<setting>/seed_<n>.json`` and is not run again. One that was
interrupted resumes from its last checkpoint, with the same result bit for bit.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from experiments.design import Arm, Experiment, Run, Setting, hash_design, resolve
from vidlatent.errors import VidlatentError
from vidlatent.report.writers import read_metrics
from vidlatent.train.freeze import mark_frozen
from vidlatent.train.loop import train
from vidlatent.train.tasks.base import TASKS

__all__ = ["Results", "choose", "run_all"]


class Results:
    """Results of finished runs, one JSON file each."""

    def __init__(self, folder: Path):
        self.folder = folder

    def _file(self, run: Run) -> Path:
        return self.folder / run.place / f"seed_{run.seed}.json"

    def read(self, run: Run) -> dict[str, Any] | None:
        """The result of a run, None while there is none."""
        file = self._file(run)
        return json.loads(file.read_text()) if file.is_file() else None

    def write(self, run: Run, result: Mapping[str, Any]) -> None:
        file = self._file(run)
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        part.write_text(json.dumps(result, indent=1) + "\n")
        os.replace(part, file)  # a reader never sees half a file


def choose(experiment: Experiment, results: Results) -> dict[str, Setting]:
    """``{arm: best setting}`` for the arms all of whose runs have finished."""
    chosen: dict[str, Setting] = {}
    for arm in experiment.arms:
        if arm.leader:
            continue
        means = []
        for setting in arm.settings:
            found = [results.read(Run(arm, setting, seed)) for seed in experiment.seeds]
            if all(found):
                means.append(statistics.fmean(f["metrics"][experiment.metric] for f in found))
        if len(means) == len(arm.settings):
            chosen[arm.name] = arm.settings[means.index(max(means))]
    return chosen


def find_workdir(experiment: Experiment, folder: Path, run: Run) -> Path:
    """Workdir of a run; an arm that continues another uses the same one."""
    kept = Run(experiment.origin(run.arm), run.setting, run.seed)
    return folder / "runs" / kept.place / f"seed_{kept.trained_seed}"


def run_all(experiment: Experiment, folder: Path, only: Sequence[str] = ()) -> int:
    """Run what has not finished; returns the exit status of the last run, 0 if all is done.

    Args:
      folder: of results and workdirs.
      only: names of arms to run; empty: all.

    Raises:
      VidlatentError: an arm needs another that has not finished, or a result comes from another
        design.
    """
    results = Results(folder / "results")
    for name in only:
        experiment.arm(name)
    clock = _Clock(experiment, results, only)
    for arm in experiment.arms:
        if only and arm.name not in only:
            continue
        chosen = choose(experiment, results)
        settings = experiment.tried(arm, chosen)
        if not settings:
            raise VidlatentError(
                f"arm {arm.name} takes the setting of {experiment.decider(arm).name}, "
                "which has not finished: run that first."
            )
        for setting in settings:
            for seed in experiment.seeds:
                run = Run(arm, setting, seed)
                status = _run_one(experiment, folder, results, run, chosen, clock)
                if status:
                    return status
    return 0


def _run_one(experiment, folder, results, run: Run, chosen, clock: _Clock) -> int:
    start = _find_start(experiment, folder, results, run, chosen)
    used = {
        key: str(_find_finished(experiment, folder, results, run, name, chosen))
        for key, name in run.arm.uses.items()
    }
    config = resolve(run, start, used)
    known = results.read(run)
    if known is not None:
        if known["identity"] != hash_design(config):
            raise VidlatentError(
                f"the result of {run} in {results.folder} comes from another design: "
                "use another --workdir."
            )
        return 0
    logging.info("%s: %s", clock.say(), run)
    workdir = find_workdir(experiment, folder, run)
    began = time.perf_counter()
    status = train(config, workdir)
    if status:
        return status
    results.write(run, _result(experiment, run, config, workdir, time.perf_counter() - began))
    clock.advance(run)
    return 0


def _find_start(experiment, folder, results, run: Run, chosen) -> str:
    """The workdir that a run starts from, or ''; raises if an arm that it needs is missing."""
    for name in (run.arm.starts_from, run.arm.continues):
        if not name:
            continue
        workdir = _find_finished(experiment, folder, results, run, name, chosen)
        if name == run.arm.starts_from:
            return str(workdir)
    origin = experiment.origin(run.arm)
    if origin is not run.arm and origin.starts_from:
        return _find_start(experiment, folder, results, Run(origin, run.setting, run.seed), chosen)
    return ""


def _find_finished(experiment, folder, results, run: Run, name: str, chosen) -> Path:
    """Workdir of the arm ``name`` at the seed of ``run``; raises if that has not finished."""
    arm = experiment.arm(name)
    decider = experiment.decider(arm).name
    if decider not in chosen:
        raise VidlatentError(f"{run} needs all runs of {decider} first.")
    before = Run(arm, chosen[decider], run.seed)
    if results.read(before) is None:
        raise VidlatentError(f"{run} needs {before}, which has not finished: run that first.")
    return find_workdir(experiment, folder, before)


def _result(experiment, run: Run, config: ConfigDict, workdir: Path, seconds: float) -> dict:
    scored = json.loads((workdir / "eval" / f"step_{run.arm.steps}" / "scores.json").read_text())
    metrics = {k: v for k, v in scored["scores"].items() if math.isfinite(v)}  # NaN: undefined
    if "by_frame_position" in scored:  # of tokenizers
        by_frame = scored["by_frame_position"]["psnr"]
        metrics |= {
            "psnr_frame_0": by_frame[0],
            "psnr_without_frame_0": statistics.fmean(by_frame[1:] or by_frame),
            "psnr_by_frame": by_frame,
        }
    if experiment.measure is not None:
        metrics |= experiment.measure(config, workdir, run.seed, scored)
    rates = read_metrics(workdir / "metrics.jsonl").get("train/steps_per_second", ([], []))[1]
    return {
        "arm": run.arm.name,
        "setting": dict(run.setting),
        "seed": run.seed,
        "steps": run.arm.steps,
        "identity": hash_design(config),
        "metrics": metrics,
        "clips_seen": run.arm.steps * sum(bucket[3] for bucket in config.data.buckets),
        "parameters": _count_parameters(config),
        "seconds": round(seconds, 1),
        "steps_per_second": statistics.median(rates) if rates else None,
        "machine": _describe_machine(),
    }


def _count_parameters(config: ConfigDict) -> dict[str, int]:
    shapes = TASKS.get(config.task).abstract_params(config)
    frozen = mark_frozen(shapes, config.optim.freeze) if config.optim.freeze else None
    sizes = jax.tree.leaves(jax.tree.map(lambda leaf: leaf.size, shapes))
    stays = jax.tree.leaves(frozen) if frozen is not None else [False] * len(sizes)
    trained = sum(size for size, still in zip(sizes, stays, strict=True) if not still)
    return {"all": sum(sizes), "trained": trained}


def _describe_machine() -> dict[str, str]:
    device = jax.devices()[0]
    return {
        "device": f"{jax.device_count()} x {device.device_kind}",
        "processor": platform.processor() or platform.machine(),
        "jax": jax.__version__,
    }


class _Clock:
    """Steps that are left and, after the first run, the time that they will take."""

    def __init__(self, experiment: Experiment, results: Results, only: Sequence[str]):
        chosen = choose(experiment, results)
        self._before = {arm.name: arm for arm in experiment.arms}
        self._total = self._done = 0
        for arm in experiment.arms:
            if only and arm.name not in only:
                continue
            settings = experiment.tried(arm, chosen) or (None,)  # one, not yet known
            for setting in settings:
                for seed in experiment.seeds:
                    self._total += self._steps(arm)
                    if setting is not None and results.read(Run(arm, setting, seed)):
                        self._done += self._steps(arm)
        self._began, self._first = time.monotonic(), self._done

    def _steps(self, arm: Arm) -> int:
        return arm.steps - (self._before[arm.continues].steps if arm.continues else 0)

    def advance(self, run: Run) -> None:
        self._done += self._steps(run.arm)

    def say(self) -> str:
        text = f"{self._done} of {self._total} steps done"
        if made := self._done - self._first:
            left = (time.monotonic() - self._began) / made * (self._total - self._done)
            text += f", about {left / 60:.0f} min left"
        return text
