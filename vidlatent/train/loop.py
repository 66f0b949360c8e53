"""The training loop, shared by all models; what differs between them is in ``train.tasks``."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from vidlatent import config as configs
from vidlatent.checkpoint.lock import lock_folder
from vidlatent.checkpoint.manager import Checkpointer
from vidlatent.data.loaders import Loaders
from vidlatent.errors import VidlatentError
from vidlatent.latents.channels import follow_latents
from vidlatent.latents.space import keep_tokenizer_step
from vidlatent.latents.teacher import follow_teacher
from vidlatent.models.frozen import load_frozen
from vidlatent.models.load import open_checkpoints
from vidlatent.parallel.compilation import quick_options
from vidlatent.parallel.mesh import mesh_for_batches
from vidlatent.parallel.multihost import is_main, to_global
from vidlatent.parallel.sharding import batch_sharding
from vidlatent.parallel.together import compare, watch
from vidlatent.report.log_file import write_log
from vidlatent.report.writers import describe_curves, make_writers
from vidlatent.train.goodput import Goodput
from vidlatent.train.histograms import Histograms
from vidlatent.train.hooks import Evaluate, Log, Profile, Run, Save
from vidlatent.train.identity import check_data, describe_run, explain_data_error
from vidlatent.train.init_from import check_init_from, initialize_state
from vidlatent.train.interrupt import Interruption, Stop
from vidlatent.train.program import describe_state, jit_train_step
from vidlatent.train.progress import Progress
from vidlatent.train.state import random_key
from vidlatent.train.tasks.base import Task, make_task
from vidlatent.train.watchdog import Watchdog
from vidlatent.train.workdir import check_not_lost

__all__ = ["INTERRUPTED", "train"]

# 128 + SIGINT, as shells report a program that Ctrl-C ended.
INTERRUPTED = 130  # exit status of a run that was asked to stop, saved and left


def train(config: ConfigDict, workdir: Path) -> int:
    """Train, or resume training, up to ``config.train.steps``; then evaluate and write a report.

    Returns the exit status: 0 when finished, ``INTERRUPTED`` if the run stopped early after saving.
    """
    began = time.monotonic()
    config = keep_tokenizer_step(follow_latents(follow_teacher(config)), workdir)
    task = make_task(config)
    mesh = mesh_for_batches(config.mesh, config.data.buckets)
    watch()
    compare(describe_run(config), "start all processes from the same code and config")
    with contextlib.ExitStack() as stack:
        interruption = stack.enter_context(Interruption())
        stack.enter_context(jax.set_mesh(mesh))
        # Load these first, to report missing weights before reading clips and making a large model.
        frozen = load_frozen(task.frozen, mesh)
        loaders = Loaders(config, task.spec, workdir)
        checkpointer = open_checkpoints(config, workdir)
        stack.callback(checkpointer.close)
        adapters = task.adapters.describe(frozen)
        state, start = _restore_or_init(config, task, checkpointer, mesh, adapters)
        if not start.step:
            check_not_lost(workdir, checkpointer.directory)
        loader = stack.enter_context(contextlib.closing(loaders.train(start.step)))
        compare(
            {"data": {"fingerprint": loader.fingerprint, "clips": len(loader.index)}},
            "config.data.path must show the same files to all processes",
        )
        finished = start.step == config.train.steps
        if start.step:
            check_data(config, workdir, start.step, start.iterator, loader.fingerprint)
        # Only now, so that a start that is refused leaves no empty folder.
        lock = stack.enter_context(lock_folder(workdir, "--workdir")) if is_main() else None
        write_log(workdir)
        task.begin(workdir, start.step, loader.labels)
        if start.iterator:
            # Positions are those of the data at the start; it warns if that has changed since.
            loader.check_state(start.iterator)
        # Write the config only after all checks, so that a refused start leaves the workdir as it
        # was. A start that takes no step trains nothing by it.
        if is_main() and not (finished and configs.is_readable(workdir)):
            for change in configs.write(config, workdir):
                logging.warning("config differs from the one this workdir had: %s", change)
        run = _make_run(stack, config, workdir, task, state, start, loader, checkpointer)
        run.adapters = adapters
        watchdog = Watchdog(config.train.hang_timeout)
        # Now and not at the first evaluation, so that missing networks show at once.
        validation = task.make_validation(
            run, frozen, mesh, _make_stoppable(loaders.validation, interruption, watchdog)
        )
        evaluate, save = Evaluate(run, validation), Save(task.players, lock)
        goodput = Goodput(workdir, start.step, began)
        stack.enter_context(watchdog.watching())
        steps = _Steps(run, task, interruption, evaluate, save, goodput, watchdog)
        return steps.run_all(frozen, mesh)


def _make_run(stack, config, workdir, task, state, start, loader, checkpointer) -> Run:
    """What the hooks may read; ``stack`` closes its writers."""
    writer = make_writers(workdir, tensorboard=config.train.tensorboard)
    stack.callback(writer.close)
    progress = Progress(config.train.steps, start.step, config.name)
    stack.callback(progress.close)
    return Run(
        config=config,
        workdir=workdir,
        state=state,
        step=start.step,
        loader=loader,
        checkpointer=checkpointer,
        writer=writer,
        progress=progress,
        hash=configs.config_hash(config),
        spec=task.spec,
        learns=task.arrays[0],
    )


def _make_stoppable(
    make_loader: Callable[[], Any], interruption: Interruption, watchdog: Watchdog
) -> Callable:
    """Loaders that raise ``Stop`` between two batches once the run should stop."""

    def before_batch() -> None:
        watchdog.alive(compiles=True)
        interruption.check()

    def make() -> Any:
        loader = make_loader()
        loader.before_batch = before_batch
        return loader

    return make


class _Start:
    """The step a run starts at and, if it is resumed, the stored position in the data."""

    def __init__(self, step: int = 0, iterator: dict | None = None):
        self.step, self.iterator = step, iterator


def _restore_or_init(
    config: ConfigDict, task: Task, checkpointer: Checkpointer, mesh: Any, adapters: Any
) -> tuple[Any, _Start]:
    target = describe_state(task, config.seed, mesh)
    # Checkpoints come before ``init_from``: a run that is resumed must keep what it learned.
    restored = checkpointer.restore(target)
    if restored is None:
        check_init_from(config)
        # Initialise each parameter on its own devices, so that no device holds the whole model.
        where = jax.tree.map(lambda leaf: leaf.sharding, target)
        init = jax.jit(task.init, out_shardings=where, compiler_options=quick_options())
        state = init(random_key(config.seed, "params"))
        return initialize_state(task, config, state, target), _Start()
    if restored.spec is not None and restored.spec.hash != task.spec.hash:
        raise VidlatentError(
            f"the checkpoint of step {restored.step} is of latents {restored.spec}, this config "
            f"is of {task.spec}: use another --workdir."
        )
    task.adapters.check_resumed(adapters, restored.adapters)
    if restored.step > config.train.steps:
        raise VidlatentError(
            f"{checkpointer.directory} is at step {restored.step} already, beyond "
            f"config.train.steps={config.train.steps}: give more steps, or another --workdir."
        )
    logging.info("resuming at step %d of %d", restored.step, config.train.steps)
    return restored.state, _Start(restored.step, restored.iterator)


class _Steps:
    """The steps of a run, and its end."""

    def __init__(
        self,
        run: Run,
        task: Task,
        interruption: Interruption,
        evaluate: Evaluate,
        save: Save,
        goodput: Goodput,
        watchdog: Watchdog,
    ):
        self.run, self.task, self.interruption = run, task, interruption
        self.evaluate, self.save, self.goodput = evaluate, save, goodput
        self.watchdog = watchdog

    def run_all(self, frozen: Any, mesh: Any) -> int:
        """Run the steps that are left, save, evaluate; returns the exit status."""
        if reason := self._run_steps(frozen, mesh):
            return self._report_stop(reason)
        # Saved before it is evaluated: an evaluation takes long, and may fail. The last step need
        # not be a multiple of the save interval.
        self._save_last()
        try:
            with self.goodput.part("evaluation"):
                result = self.evaluate.evaluate(self.run)
        except Stop:
            return self._report_stop(self.interruption.poll())
        with self.goodput.part("saves"):
            self.run.checkpointer.wait()  # with the scores
        self._report(result)
        return 0

    def _save_last(self) -> None:
        with self.goodput.part("saves"):
            self.save.last(self.run)
        self.goodput.write(self.run.step)

    def _run_steps(self, frozen: Any, mesh: Any) -> str:
        """Run steps until done or asked to stop; returns why it stopped early, or ''."""
        run, rows = self.run, batch_sharding(mesh)
        steps = run.config.train.steps
        train_step = jit_train_step(self.task, run.state, frozen, mesh, steps)
        log, profile = Log(run), Profile(run)
        histograms = Histograms(run.config, run.state, mesh)
        with contextlib.closing(profile):
            self.interruption.begin()
            while run.step < steps and not run.ended:
                begin = time.perf_counter()
                with self.goodput.part("data"):
                    batch = self._read_batch(log)
                waited = time.perf_counter() - begin
                arrays = to_global(self.task.read_batch(batch), rows)
                histograms.before(run.step, run.state)
                run.state, metrics = train_step(run.state, arrays, frozen, np.float32(steps))
                # The call only queues the step, except on the first one of a shape, which compiles.
                called = time.perf_counter() - begin - waited
                run.step += 1
                run.progress.advance()
                # Log first, since it stops a diverged run before anything is evaluated or saved.
                shapes = log.shapes
                due = log(run, metrics, batch, waited=waited, called=called)
                if log.shapes > shapes:
                    self.goodput.move("compilation", called)
                self.watchdog.alive(compiles=log.shapes < len(run.config.data.buckets))
                with self.goodput.part("saves"):
                    if due:
                        self.save.check(run)
                    self.save(run)
                with self.goodput.part("evaluation"), contextlib.suppress(Stop):
                    self.evaluate(run)  # the reason is asked for below
                if due:
                    self.goodput.write(run.step)
                profile(run)
                with run.aside():
                    histograms.after(run.step, run.state, run.writer)
                if reason := self._find_stop_reason():
                    # Metrics not yet logged would be lost, and so would a save in the background.
                    log.flush(run)
                    self._save_last()
                    return reason
        if run.ended:
            run.progress.say(run.ended)
        return ""

    def _read_batch(self, log: Log) -> dict[str, Any]:
        """The next batch; if there is none, the work so far is saved before the error goes on."""
        run = self.run
        try:
            return next(run.loader)
        except Exception as error:
            reason = explain_data_error(error, run.config.data.num_workers)
            saved = ""
            # Saving takes all processes, and the others are waiting for this one's batch.
            if jax.process_count() == 1 and run.step:
                log.flush(run)
                self.save.last(run)
                saved = f" Step {run.step} is saved; the same command goes on from there."
            raise VidlatentError(f"{reason}{saved}") from error

    def _find_stop_reason(self) -> str:
        if reason := self.interruption.poll():
            return reason
        # Unlike train.steps, this leaves the learning rate schedule as it is.
        if self.run.step == self.run.config.train.stop_at:
            return "config.train.stop_at"
        return ""

    def _report_stop(self, reason: str) -> int:
        run = self.run
        run.progress.say(self.goodput.describe())
        run.progress.say(
            f"{reason}: saved step {run.step} in {run.workdir}; the same command goes on from there"
        )
        return INTERRUPTED

    def _report(self, result: Any) -> None:
        run = self.run
        self.goodput.write(run.step)
        run.progress.say(self.goodput.describe())
        run.writer.flush()
        if run.loader.report.clips:
            run.progress.say(run.loader.report.table())
        if is_main():
            folder = run.workdir / "eval" / f"step_{run.step}"
            for name in self.evaluate.validation.write(run, result, folder):
                run.progress.say(f"look at {folder / name}")
            run.progress.say(describe_curves(run.workdir, run.config.train.tensorboard))
