"""Hooks that the training loop calls after each step: logging, evaluation, saving, profiling."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict
from PIL import Image

from vidlatent.checkpoint.layout import find_players
from vidlatent.checkpoint.lock import FolderLock
from vidlatent.checkpoint.storage import SaveError, agree_on_all_processes
from vidlatent.errors import VidlatentError
from vidlatent.parallel.multihost import is_main
from vidlatent.train.progress import Progress
from vidlatent.train.state import State
from vidlatent.train.tasks.base import MUST_BE_ZERO, SHARE, Player, Validation
from vidlatent.train.workdir import note_saved

__all__ = ["Evaluate", "Log", "Profile", "Run", "Save", "mean_metrics"]

_RETRY_SECONDS = 5.0  # before a save that failed is tried again


@dataclasses.dataclass
class Run:
    """What hooks may read of a running training; ``step`` counts finished steps."""

    config: ConfigDict
    workdir: Path
    state: State
    step: int
    loader: Any
    checkpointer: Any
    writer: Any
    progress: Progress
    hash: str
    spec: Any
    learns: str = "video"  # the array of a batch that the model learns from, [B, T, ...]
    adapters: Any = None  # what checkpoints say about the adapters that are trained, if they are
    aside_seconds: float = 0.0
    evaluation: tuple[int, Any] | None = None  # (step, result) of the last validation
    ended: str = ""  # why the validation ends the run before its last step

    @contextlib.contextmanager
    def aside(self):
        """Exclude the time spent inside from the measured training time."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.aside_seconds += time.perf_counter() - begin


class Log:
    """Logs means over the last ``log_every`` steps; stops a run whose losses stay non-finite.

    Metrics stay on the device until they are logged, so the device never waits for the host.
    """

    def __init__(self, run: Run):
        self.every = run.config.train.log_every
        self.limit = run.config.train.max_bad_steps
        self._unit = "" if run.learns == "video" else f"{run.learns}_"
        self._pending: list[tuple[int, Any, list[str]]] = []
        self._compiled: set[tuple[int, ...]] = set()
        self._restart(run)

    @property
    def shapes(self) -> int:
        """Shapes of batches met so far, each of which was compiled."""
        return len(self._compiled)

    def _restart(self, run: Run) -> None:
        self._steps, self._frames, self._waited = 0, 0, 0.0
        self._since, run.aside_seconds = time.perf_counter(), 0.0

    def __call__(
        self, run: Run, metrics: dict, batch: dict, *, waited: float, called: float
    ) -> bool:
        """Record a step; log if it is due, and return whether it was.

        Args:
          waited: seconds spent waiting for the batch.
          called: seconds until the call of the step returned (it may still be running).
        """
        # Kept with the step: if its loss is not finite, these are the clips to look at.
        names = [run.loader.index[int(clip)].path for clip in batch["clip"]]
        self._pending.append((run.step, metrics, names))
        shape = batch[run.learns].shape
        if shape not in self._compiled:
            self._note_compilation(run, metrics, shape, called)
        else:
            self._steps += 1
            # The batch here holds the rows of this process; all processes have as many.
            self._frames += shape[0] * shape[1] * jax.process_count()
            self._waited += waited
        due = run.step % self.every == 0 or run.step == run.config.train.steps
        if due:
            self.flush(run)
        return due

    def _note_compilation(
        self, run: Run, metrics: dict, shape: tuple[int, ...], called: float
    ) -> None:
        """Keep compilation, on the first step of each shape, out of the reported speed."""
        begin = time.perf_counter()
        jax.block_until_ready(metrics)
        if not self._compiled:
            seconds = time.perf_counter() - self._since
            run.progress.say(f"first step ready after {seconds:.1f} s (compilation included)")
        self._compiled.add(shape)
        # With nothing else to measure yet, start the clock anew; else only take this time out.
        if len(self._pending) == 1:
            self._restart(run)
        else:
            run.aside_seconds += called + time.perf_counter() - begin

    def flush(self, run: Run) -> None:
        """Fetch the pending metrics from the device, log them, and check that they are finite."""
        if not self._pending:
            return
        rows = [(step, jax.device_get(m), names) for step, m, names in self._pending]
        self._pending = []
        # No time is left if every step of the window was a first one, which compiles.
        elapsed = max(time.perf_counter() - self._since - run.aside_seconds, 1e-9)
        # One NaN would make the whole mean NaN, so steps that were skipped do not count.
        good = [m for _, m, _ in rows if m["bad_streak"] == 0]
        values = mean_metrics([m for _, m, _ in rows], good)
        # Counted since the start of the run, so take the last value and no mean.
        values["bad_steps"] = int(rows[-1][1]["bad_steps"])
        values["steps_per_second"] = self._steps / elapsed
        # For runs on latents these are latent frames.
        values[f"{self._unit}frames_per_second"] = self._frames / elapsed
        values["data_wait_share"] = self._waited / elapsed
        values["bad_clips"] = len(run.loader.report.clips)
        run.writer.write_scalars(run.step, {f"train/{key}": v for key, v in values.items()})
        line = {
            "loss": values["loss"],
            "lr": values["lr"],
            f"{self._unit.replace('_', ' ')}frames/s": round(self._frames / elapsed, 1),
            "data wait": f"{values['data_wait_share']:.0%}",
        }
        line |= {name: values[name] for name in ("bad_steps", "bad_clips") if values[name]}
        run.progress.report(run.step, line, elapsed / max(self._steps, 1))
        self._restart(run)
        # Last, because it may raise: the values that led there should be logged.
        self._check(rows, run)

    def _check(self, rows: list, run: Run) -> None:
        for step, metrics, names in rows:
            if metrics["bad_streak"]:
                run.progress.say(
                    f"step {step}: loss or gradient is not finite, update skipped; clips: "
                    + ", ".join(names)
                )
            if metrics["bad_streak"] >= self.limit:
                run.writer.flush()
                raise VidlatentError(
                    f"step {step}: loss or gradient was not finite for {self.limit} steps in a row "
                    f"(config.train.max_bad_steps); the last batch held {', '.join(names)}. "
                    "Lower config.optim.lr or look at these clips; the last checkpoint is older."
                )
            for name in metrics:
                if name.endswith(MUST_BE_ZERO) and metrics[name] != 0:
                    run.writer.flush()
                    raise VidlatentError(
                        f"step {step}: {name.removesuffix(MUST_BE_ZERO)} is {metrics[name]:.3g}, "
                        "and it is exactly 0 where everything is right, so the run is stopped: the "
                        "last checkpoint is older, and troubleshooting.md says what to do."
                    )


def mean_metrics(rows: list[dict], good: list[dict]) -> dict[str, float]:
    """Mean of each metric over the good steps that report it; some buckets lack some losses.

    A metric with an indicator (``tasks.base.SHARE``) is averaged over the steps that computed it,
    and left out if no good step did. A metric without any good step is NaN.

    Args:
      rows: metrics of every step.
      good: metrics of the steps whose update was applied (not skipped as non-finite).
    """
    counters = ("bad_streak", "bad_steps")
    # A dict in place of a set keeps the metrics in their order.
    names = {n: None for row in rows for n in row if n not in counters and not n.endswith(SHARE)}
    means = {}
    for name in names:
        found = [row[name] for row in good if name in row]
        shares = [row[name + SHARE] for row in good if name + SHARE in row]
        count = sum(shares) if shares else len(found)
        if count:
            means[name] = float(sum(found) / count)
        elif not found:
            means[name] = float("nan")
    return means


class Evaluate:
    """Runs the task's validation every ``config.eval.every`` steps and reports its scores."""

    def __init__(self, run: Run, validation: Validation):
        self.every = run.config.eval.every
        self.validation = validation

    def __call__(self, run: Run) -> None:
        if self.every and run.step % self.every == 0:
            self.evaluate(run)

    def evaluate(self, run: Run) -> Any:
        """Evaluate now, or return the result if this step was evaluated already."""
        if run.evaluation and run.evaluation[0] == run.step:
            return run.evaluation[1]
        with run.aside():
            result = self.validation(run)
        run.evaluation = (run.step, result)
        # The step was saved before it was evaluated.
        run.checkpointer.add_metrics(run.step, result.scores)
        run.writer.write_scalars(run.step, {f"val/{k}": v for k, v in result.scores.items()})
        for name, png in self.validation.pictures(result).items():
            run.writer.write_images(run.step, {name: np.asarray(Image.open(io.BytesIO(png)))[None]})
        if hasattr(self.validation, "videos"):
            run.writer.write_videos(run.step, self.validation.videos(result))
        scores = ", ".join(
            f"{name} {result.scores[name]:.4g}" for name in result.scores if name != "clips"
        )
        run.progress.say(f"step {run.step}: validation {scores} ({result.scores['clips']} clips)")
        return result


@jax.jit
def _check_finite(parts: dict[str, Any]) -> dict[str, jax.Array]:
    """For each tree, whether all its numbers are finite.

    It is one compiled program over the global arrays, so all processes get the same answer.
    """
    return {
        name: jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()
        for name, tree in parts.items()
    }


class Save:
    """Saves checkpoints: state, data position, latent spec, config hash and scores.

    Never overwrite a good checkpoint with a bad one: raise if any parameter is NaN or infinite, and
    skip scheduled saves while recent steps were non-finite, since the parameters may be the cause.

    Args:
      players: the task's players by name; if one diverges, the error names its learning rate.
      lock: of the workdir, held by this process; None on the others.
    """

    def __init__(self, players: Mapping[str, Player], lock: FolderLock | None = None):
        self._players, self._lock = players, lock
        self._retry_at: float | None = None  # when a save that failed is tried again
        self._noted: int | None = None  # the newest step that is noted as saved

    def __call__(self, run: Run, force: bool = False) -> None:
        if not (force or run.checkpointer.should_save(run.step)):
            return
        if self._lock is not None:
            self._lock.check()
        with run.aside():
            # Both read from the device, and so wait for the steps that are still running.
            self._check(run)
            streak = int(run.state["extra"]["bad_streak"])
        # A forced save is the last chance to keep the work, and the weights have passed the check.
        if streak:
            run.progress.say(
                f"step {run.step}: {'saved although' if force else 'not saved, as'} the last "
                f"{streak} steps were not finite"
            )
            if not force:
                return
        self._retry_at = None
        # Scores of an earlier step would make ``keep_best`` keep the wrong checkpoint.
        fresh = run.evaluation is not None and run.evaluation[0] == run.step
        scores = run.evaluation[1].scores if fresh else None
        with run.aside():
            run.checkpointer.save(
                run.step,
                run.state,
                iterator=run.loader.state(),
                spec=run.spec,
                config_hash=run.hash,
                metrics=scores,
                adapters=run.adapters,
                force=force,
            )

    def check(self, run: Run) -> None:
        """Look whether the last save has failed, and save again if so; a second failure raises.

        It is tried again at the first log line a few seconds later, if no save was due before:
        a storage that failed just now would fail again.
        """
        with run.aside():
            if run.checkpointer.find_failure():
                self._retry_at = time.monotonic() + _RETRY_SECONDS
            # Processes look at different clocks, so all must find that it is time.
            elif self._retry_at is not None:
                if agree_on_all_processes(time.monotonic() >= self._retry_at):
                    self(run, force=True)
        self._note(run)

    def last(self, run: Run) -> None:
        """Save and wait until it is on disk; tried again once.

        Raises:
          VidlatentError: the step is not on disk; nothing may say that it was saved.
        """
        try:
            self._save_now(run)
        except SaveError as error:
            logging.warning("%s It is tried again.", error)
            time.sleep(_RETRY_SECONDS)
            self._save_now(run)
        self._note(run)

    def _save_now(self, run: Run) -> None:
        self(run, force=True)
        run.checkpointer.confirm(run.step)

    def _note(self, run: Run) -> None:
        step = run.checkpointer.last_complete
        if step is not None and step != self._noted and is_main():
            note_saved(run.workdir, step)
            self._noted = step

    def _check(self, run: Run) -> None:
        """Raise ``VidlatentError`` if any parameter is NaN or infinite."""
        parts = {"config.optim.lr": [run.state["params"]]}
        for name in find_players(run.state):
            key = self._players[name].lr_key
            # Players may share a learning rate: loss helpers have the model's.
            parts.setdefault(key, []).append(run.state[name]["params"])
        found = jax.device_get(_check_finite(parts))
        rates = [key for key, finite in found.items() if not finite]
        if rates:
            latest = run.checkpointer.latest()
            then = "begins anew" if latest is None else f"goes on from step {latest}"
            raise VidlatentError(
                f"step {run.step}: the weights are not finite, so the step is not saved: lower "
                f"{' and '.join(rates)}; the same command then {then}."
            )


class Profile:
    """Writes a profiler trace of a few steps to ``<workdir>/profile`` (TensorBoard, Perfetto).

    Several processes write to a folder each, ``profile/process_3``: JAX names files by host, and
    two processes of one would write the same.
    """

    def __init__(self, run: Run):
        self.first = run.config.train.profile_at
        self.last = self.first + run.config.train.profile_steps
        self.folder = run.workdir / "profile"
        if jax.process_count() > 1:
            self.folder = self.folder / f"process_{jax.process_index()}"
        self._active = False

    def __call__(self, run: Run) -> None:
        if self.first and run.step == self.first:
            jax.profiler.start_trace(str(self.folder))
            self._active = True
        elif self._active and run.step >= self.last:
            # Steps are only queued when they return: wait, or the trace ends before they ran.
            jax.block_until_ready(run.state["step"])
            self.close()
            logging.info("profile written to %s", self.folder)

    def close(self) -> None:
        if self._active:
            jax.profiler.stop_trace()
            self._active = False
