"""The mode ``eval``: from a workdir to scores, and to a report for people to read."""

from __future__ import annotations

from pathlib import Path

import jax
from absl import logging
from ml_collections import ConfigDict

from vidlatent.config import is_generator
from vidlatent.data.loaders import Loaders
from vidlatent.errors import VidlatentError
from vidlatent.evaluate.compare.run import compare_folders, compares_sets
from vidlatent.evaluate.folders import default_folder
from vidlatent.evaluate.generator import evaluate_generator
from vidlatent.evaluate.latent_statistics import LatentStatistics
from vidlatent.evaluate.protocols.definitions import PROTOCOLS
from vidlatent.evaluate.protocols.generation import GENERATION_PROTOCOLS
from vidlatent.evaluate.protocols.run import evaluate_protocol
from vidlatent.evaluate.rewards.pairs import evaluate_pairs
from vidlatent.evaluate.rewards.run import judge_folders
from vidlatent.evaluate.running_scores import log_scores
from vidlatent.evaluate.tokenizer import (
    choose_eval_coder,
    compile_eval_step,
    evaluate,
    tokenizer_eval_step,
)
from vidlatent.evaluate.tokenizer_report import write_evaluation
from vidlatent.evaluate.upsampler import evaluate_upsampler
from vidlatent.metrics import make_metrics
from vidlatent.models.load import model_of, restore_tokenizer
from vidlatent.parallel.mesh import mesh_for_batches
from vidlatent.parallel.multihost import is_main
from vidlatent.paths import as_path
from vidlatent.registry import did_you_mean

__all__ = ["evaluate_workdir"]


def evaluate_workdir(config: ConfigDict, workdir: Path, step: int, output: str) -> int:
    """Score the checkpoint of ``workdir`` on the validation clips of ``config.data``.

    With ``config.eval.protocol``: on all clips of it, as a paper did. With ``config.eval.samples``,
    or a protocol of generated videos: a set of those against the clips of ``config.data``. With
    ``config.eval.rewards``: each video of these folders by itself. Writes
    into ``output`` (default ``<workdir>/eval/step_<n>``, with the protocol's name); returns the
    exit status.

    Raises:
      VidlatentError: an unknown protocol, or one of reconstructions for a generator.
    """
    _check_protocol(config)
    if config.eval.rewards:
        return judge_folders(config, workdir, output)
    if compares_sets(config):
        return compare_folders(config, workdir, step, output)
    if config.task == "reward":
        return evaluate_pairs(config, workdir, step, output)
    if config.task == "upsampler":
        return evaluate_upsampler(config, workdir, step, output)
    if is_generator(config):
        return evaluate_generator(config, workdir, step, output)
    if config.eval.protocol:
        return evaluate_protocol(config, workdir, step, output)
    model = model_of(config)
    mesh = mesh_for_batches(config.mesh, config.data.buckets)
    # Before anything is decoded, so that missing weights are reported at once.
    metrics = make_metrics(
        config.eval.metrics,
        config.networks,
        random_networks=config.eval.random_networks,
        is_splits=config.eval.is_splits,
    )
    with jax.set_mesh(mesh):
        restored = restore_tokenizer(config, workdir, model, mesh, step)
        eval_step = tokenizer_eval_step(
            model,
            preservation=config.eval.preservation,
            latent=True,
            coder=choose_eval_coder(config, model),
        )
        with Loaders(config, model.latent_spec, workdir).validation() as loader:
            result = evaluate(
                compile_eval_step(eval_step, mesh, restored.state, metrics),
                restored.state,
                loader,
                config.eval.pictures,
                spec=model.latent_spec,
                latents=LatentStatistics(model.latent_spec, config.eval.gride_clips),
                metrics=metrics,
            )
    if is_main():
        folder = as_path(output) if output else default_folder(config, workdir, restored.step)
        # First, so that they are known even if a page cannot be written.
        log_scores(result.scores)
        write_evaluation(result, folder, config=config, step=restored.step, workdir=workdir)
        logging.info("report in %s", folder / "report.html")
    return 0


def _check_protocol(config: ConfigDict) -> None:
    name, ours = config.eval.protocol, GENERATION_PROTOCOLS.names()
    if not name or name in ours:
        return
    if name not in PROTOCOLS.names():
        hint = did_you_mean(name, [*ours, *PROTOCOLS.names()])
        raise VidlatentError(f"config.eval.protocol: unknown protocol {name!r}: {hint}")
    if is_generator(config) or config.eval.samples:
        raise VidlatentError(
            f"config.eval.protocol={name} scores reconstructions of a tokenizer; those of "
            f"generated videos are {', '.join(ours)}."
        )
