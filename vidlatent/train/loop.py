"""THE loop. Every system trains here; what differs is the step it is given."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from vidlatent import config as configs
from vidlatent.checkpoint.manager import Checkpointer
from vidlatent.data.loaders import Loaders
from vidlatent.errors import VidlatentError
from vidlatent.models.load import open_checkpoints
from vidlatent.parallel.compilation import quick_options
from vidlatent.parallel.mesh import mesh_for_batches
from vidlatent.parallel.multihost import is_main, to_global
from vidlatent.parallel.sharding import batch_sharding, replicated
from vidlatent.report.writers import make_writers
from vidlatent.spec import LatentSpec
from vidlatent.train.hooks import Evaluate, Log, Profile, Run, Save
from vidlatent.train.init_from import check_init_from, initialize_state
from vidlatent.train.interrupt import Interruption
from vidlatent.train.program import abstract_state, jit_train_step
from vidlatent.train.progress import Progress
from vidlatent.train.state import random_key
from vidlatent.train.subjects import subject_of
from vidlatent.train.tasks.base import Step

__all__ = ["INTERRUPTED", "train"]

INTERRUPTED = 130  # exit status of a run that was asked to stop, saved and left


def train(config: ConfigDict, workdir: Path) -> int:
    """Train (or go on training) to ``config.train.steps``, then score and show the result.

    Returns the exit status: 0 when finished, ``INTERRUPTED`` when stopped by a signal after saving.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    subject = subject_of(config)
    spec = subject.spec
    mesh = mesh_for_batches(config.mesh, config.data.buckets)
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(mesh))
        step_fns = subject.make_step()
        # What is missing is told before clips are looked at and a large model is made.
        networks = step_fns.load_networks()
        loaders = Loaders(config, spec, workdir)
        checkpointer = open_checkpoints(config, workdir)
        stack.callback(checkpointer.close)
        state, start = _restore_or_init(config, step_fns, checkpointer, mesh, spec)
        loader = stack.enter_context(contextlib.closing(loaders.train(start.step)))
        subject.begin(workdir, start.step, loader.labels)
        if start.iterator:
            loader.check_state(start.iterator)
        # Only now: a start that is refused leaves the workdir's config, or the lack of one, alone.
        if is_main():
            for change in configs.write(config, workdir):
                logging.warning("config differs from the one this workdir had: %s", change)
        writer = make_writers(workdir, tensorboard=config.train.tensorboard)
        stack.callback(writer.close)
        progress = Progress(config.train.steps, start.step, config.name)
        stack.callback(progress.close)
        run = Run(
            config=config,
            workdir=workdir,
            state=state,
            step=start.step,
            loader=loader,
            checkpointer=checkpointer,
            writer=writer,
            progress=progress,
            hash=configs.config_hash(config),
            spec=spec,
            learns=step_fns.arrays[0],
        )
        evaluate = Evaluate(run, subject.exam(run, step_fns, mesh, loaders.validation))
        stopped = _steps(run, step_fns, networks, mesh, evaluate)
        return _finish(run, evaluate, stopped)


class _Start:
    """Where a run begins: its step and, when resumed, the data position stored with it."""

    def __init__(self, step: int = 0, iterator: dict | None = None):
        self.step, self.iterator = step, iterator


def _restore_or_init(
    config: ConfigDict, step_fns: Step, checkpointer: Checkpointer, mesh: Any, spec: LatentSpec
) -> tuple[Any, _Start]:
    target = abstract_state(step_fns, config.seed, mesh)
    restored = checkpointer.restore(target)
    if restored is None:
        check_init_from(config)
        # Parameters are born on their devices: the whole model never exists in one place.
        placed = jax.tree.map(lambda leaf: leaf.sharding, target)
        init = jax.jit(step_fns.init, out_shardings=placed, compiler_options=quick_options())
        state = init(random_key(config.seed, "params"))
        state = initialize_state(config, state, target)
        return state, _Start()
    if restored.spec is not None and restored.spec.hash != spec.hash:
        raise VidlatentError(
            f"the checkpoint of step {restored.step} is of latents {restored.spec}, this config "
            f"is of {spec}: use another --workdir."
        )
    logging.info("resuming at step %d of %d", restored.step, config.train.steps)
    return restored.state, _Start(restored.step, restored.iterator)


def _steps(run: Run, step_fns: Step, networks: Any, mesh: Any, evaluate: Evaluate) -> str:
    """Step until done or asked to stop; returns the reason for stopping early or ''."""
    rows = batch_sharding(mesh)
    networks = jax.device_put(networks, replicated(mesh))
    train_step = jit_train_step(step_fns, run.state, mesh)
    log, save, profile = Log(run), Save(), Profile(run)
    with Interruption() as interruption, contextlib.closing(profile):
        while run.step < run.config.train.steps:
            begin = time.perf_counter()
            batch = next(run.loader)
            waited = time.perf_counter() - begin
            # An array that the data lacks is the step's to name.
            arrays = {name: batch[name] for name in step_fns.arrays if name in batch}
            arrays = to_global(arrays, rows)
            run.state, metrics = train_step(run.state, arrays, networks)
            called = time.perf_counter() - begin - waited
            run.step += 1
            run.progress.advance()
            # Numbers first: nothing is evaluated or saved on top of a run that has diverged.
            # Evaluation precedes saving so that its scores are stored with the step.
            log(run, metrics, batch, waited=waited, called=called)
            evaluate(run)
            save(run)
            profile(run)
            if reason := _stop_reason(run, interruption):
                log.flush(run)
                save(run, force=True)
                run.checkpointer.wait()
                return reason
    return ""


def _stop_reason(run: Run, interruption: Interruption) -> str:
    if interruption.requested:
        return interruption.requested
    if run.checkpointer.reached_preemption(run.step):
        return "preemption"
    if run.step == run.config.train.stop_at:
        return "config.train.stop_at"
    return ""


def _finish(run: Run, evaluate: Evaluate, stopped: str) -> int:
    if stopped:
        run.progress.say(
            f"{stopped}: saved step {run.step} in {run.workdir}; "
            "the same command goes on from there"
        )
        return INTERRUPTED
    result = evaluate.evaluate(run)
    if run.checkpointer.latest() != run.step:
        Save()(run, force=True)
    run.checkpointer.wait()
    run.writer.flush()
    if run.loader.report.clips:
        run.progress.say(run.loader.report.table())
    if is_main():
        folder = run.workdir / "eval" / f"step_{run.step}"
        for name in evaluate.exam.write(run, result, folder):
            run.progress.say(f"look at {folder / name}")
    return 0
