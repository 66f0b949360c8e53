"""``--mode=eval`` of a generator's workdir: its loss on validation latents, and samples."""

from __future__ import annotations

from pathlib import Path

import jax
from absl import logging
from ml_collections import ConfigDict

from vidlatent import config as configs
from vidlatent.data.loaders import Loaders
from vidlatent.evaluate.distillation_loss import examine_student
from vidlatent.evaluate.folders import default_folder
from vidlatent.evaluate.generator_loss import compile_loss_step, evaluate_loss, make_loss_step
from vidlatent.evaluate.generator_report import write_generator_report
from vidlatent.evaluate.given_sheet import draw_given_sheet
from vidlatent.evaluate.layer_memory import check_memory, measure_layer_memory
from vidlatent.latents.contract import require_same
from vidlatent.latents.distilled import Distilled
from vidlatent.latents.refiner_inputs import make_inputs
from vidlatent.latents.space import Latents, describe_latents, generator_of, restore_generator
from vidlatent.models.frozen import load_frozen
from vidlatent.parallel.mesh import mesh_for_batches
from vidlatent.parallel.multihost import is_main
from vidlatent.paths import as_path
from vidlatent.sample.few_steps import follow_distilled, settle_sampler
from vidlatent.sample.grid import SampleGrid

__all__ = ["evaluate_generator"]


def evaluate_generator(config: ConfigDict, workdir: Path, step: int, output: str) -> int:
    """Score the checkpoint of ``workdir`` on the validation part of ``config.data``.

    Latents are standardised as in the run's training, whatever set they come from. Writes into
    ``output`` (default ``<workdir>/eval/step_<n>``); returns the exit status.

    Raises:
      VidlatentError: the data holds another tokenizer's latents.
    """
    # The latents of training, and those that the data holds now.
    model, known = generator_of(config), Latents.load(workdir)
    found = describe_latents(config)
    require_same(
        known.space,
        found.space,
        str(workdir),
        "config.data",
        "name a set of the same tokenizer by --config.data.path=...",
        moments=False,
    )
    if config.eval.layer_memory:
        # Now, so that the mistake shows before anything is decoded and compiled.
        check_memory(model)
    inputs = make_inputs(config, model, known)
    mesh = mesh_for_batches(config.mesh, config.data.buckets)
    with jax.set_mesh(mesh):
        examination = examine_student(config, workdir, model, known, mesh)
        frozen = load_frozen({**inputs.frozen, **examination.networks}, mesh)
        restored = restore_generator(config, workdir, model, mesh, step)
        examined = examination.complete(restored.state, restored.step)
        loss_step = make_loss_step(config, model, inputs, examination.loss)
        measure = compile_loss_step(loss_step, inputs.arrays, frozen, mesh, examined)
        with Loaders(config, known.spec, workdir).validation() as loader:
            result = evaluate_loss(measure, examined, loader)
            drawn = follow_distilled(config, workdir, restored.step)
            drawn = settle_sampler(drawn, Distilled.load(workdir), restored.step)
            sheet = SampleGrid(drawn, known, frozen, mesh)(restored.state, loader)
            given, memory = b"", None
            if configs.role_of(config) == "refiner":
                shown = make_inputs(config, model, known, augment=True)
                given = draw_given_sheet(shown, frozen, mesh, loader, config, known)
            if config.eval.layer_memory:
                parts = inputs, model, frozen, mesh, restored.state
                memory = measure_layer_memory(config, *parts, next(iter(loader)))
    if is_main():
        folder = as_path(output) if output else default_folder(config, workdir, restored.step)
        logging.info("loss %.4g over %d clips", result.scores["loss"], result.scores["clips"])
        write_generator_report(
            result,
            folder,
            config=config,
            step=restored.step,
            workdir=workdir,
            sheet=sheet,
            memory=memory,
            given=given,
        )
        logging.info("report in %s", folder / "report.html")
    return 0
