"""Training steps of distillations (FSVideo 2.4.3) with abstract arguments: no run is read."""

from __future__ import annotations

from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from vidlatent import config as configs
from vidlatent.errors import VidlatentError
from vidlatent.latents.space import abstract_at_rest, generator_of
from vidlatent.latents.teacher import Teacher
from vidlatent.models.frozen import FrozenNetwork
from vidlatent.plan.generators import assume_latents, batch_shapes, make_step_program
from vidlatent.plan.program import Program
from vidlatent.plan.second_half import assume_parts, low_shape
from vidlatent.train.tasks.base import TASKS

__all__ = ["build_distill_train", "refuse_to_load"]

_TEACHER = "teacher"  # stands for the workdir of one that is not trained yet


def build_distill_train(config: ConfigDict, mesh: Mesh, bucket: tuple[int, ...]) -> Program:
    """The step with all its networks: student, teacher and whatever is trained beside them.

    The teacher is a copy of the student without built-in guidance, from which the student starts
    unless ``config.train.init_from`` names another run; so adapters share it. A refiner's step also
    has base model and upsampler, as ``second_half.build_refiner_train``; a config is a refiner's if
    it names its base model or is of pairs of latents (``config.encode.low``).
    """
    config, model, latents = assume_latents(config)
    known, parts = batch_shapes(model, latents, bucket), None
    if configs.role_of(config) == "refiner" or config.encode.low:
        parts = assume_parts(config, latents)
        known |= low_shape(latents, bucket)
    config = _assume_start(config)
    teacher = _assume_teacher(config)
    make: Any = TASKS.get(config.task)
    task = make(config, model, latents, teacher, parts)
    if config.data.source == "latents":
        # As for a generator: the states of an empty text are left out.
        networks = {**task.adapters.frozen, **({} if parts is None else parts.frozen)}
        if "teacher" not in task.players:
            networks["teacher"] = teacher.network
    else:
        networks = task.frozen
    return make_step_program(task, mesh, bucket, known, networks)


def _assume_start(config: ConfigDict) -> ConfigDict:
    """As ``latents.teacher.follow_teacher``, without reading a run."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        distill, train = config.distill, config.train
        distill.teacher = distill.teacher or train.init_from or _TEACHER
        train.init_from = train.init_from or distill.teacher
    return config


def _assume_teacher(config: ConfigDict) -> Teacher:
    place = {"workdir": config.distill.teacher, "step": 0}
    config = config.copy_and_resolve_references()
    with config.unlocked():
        if "guidance_embed" in config.generator:
            config.generator.guidance_embed = False
    model = generator_of(config)
    return Teacher(
        config, model, FrozenNetwork(abstract_at_rest(model), refuse_to_load), None, None, place
    )


def refuse_to_load(abstract: Any) -> Any:
    """``FrozenNetwork.load`` of a network that is no run's."""
    raise VidlatentError(
        "a plan has no weights of frozen networks: train by --mode=train with the runs named, such "
        "as config.distill.teacher."
    )
