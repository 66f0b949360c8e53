"""Scoring a student on validation clips: its distance from what the teacher shows it.

The loss against the data, by which other generators are scored, would count guidance and
straightened steps as mistakes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vidlatent.diffusion.distillation import draw_interval
from vidlatent.evaluate.generator_loss import LossAt, Question, noise_at_level
from vidlatent.latents.distilled import Distilled
from vidlatent.latents.space import Latents, abstract_at_rest, make_noise_schedule
from vidlatent.latents.targets import GuidedTarget, HalvedTarget, Stages, compare_outputs
from vidlatent.latents.teacher import describe_teacher
from vidlatent.models.frozen import FrozenNetwork
from vidlatent.models.load import open_checkpoints
from vidlatent.parallel.multihost import to_global
from vidlatent.parallel.sharding import replicated, shardings, with_shardings

__all__ = ["Examination", "examine_student", "make_guided_loss", "make_halved_loss"]


class Examination(NamedTuple):
    """How a finished student is scored.

    Attributes:
      loss: None: as any generator, by its loss against the data.
      networks: that the loss needs beside those of the inputs.
      complete: from the student's parameters and its training step to what the loss takes.
    """

    loss: LossAt | None = None
    networks: Mapping[str, FrozenNetwork] = {}
    complete: Callable[[Any, int], Any] = lambda params, step: params


def examine_student(
    config: ConfigDict, workdir: Path, model: Any, known: Latents, mesh: Mesh
) -> Examination:
    """How the checkpoints of ``workdir`` are scored; of any generator.

    The teacher of ``distill_guidance`` must still be there, that of ``distill_progressive`` is part
    of its checkpoints.
    """
    if config.task == "distill_guidance":
        teacher = describe_teacher(config, model, known)
        loss = make_guided_loss(config, model, GuidedTarget(config, teacher.model))
        return Examination(loss, {"teacher": teacher.network})
    if config.task != "distill_progressive":
        return Examination()
    stages = Stages.of(config)
    target = HalvedTarget(config, model, 2 * stages.steps[0])
    guidance = (Distilled.load(workdir) or Distilled()).guidance
    held = {"params": abstract_at_rest(model)}

    def complete(params, step):
        wanted = with_shardings(held, shardings(held, mesh))
        with contextlib.closing(open_checkpoints(config, workdir)) as checkpoints:
            found = checkpoints.restore_params(wanted, step=step, which="teacher").state
        return {"ema": params, "teacher": found["params"], "step": _place(step, mesh)}

    told = guidance.told if guidance else ()
    return Examination(make_halved_loss(config, target, stages, told), {}, complete)


def _place(step: int, mesh: Mesh) -> jax.Array:
    return to_global(np.int32(step), replicated(mesh))


def make_guided_loss(config: ConfigDict, model: Any, target: GuidedTarget) -> LossAt:
    """Distance of a student from its guided teacher, ``frozen['teacher']``, at fixed noise levels.

    A scale that is an input is drawn for each clip, the same at every evaluation.
    """

    def loss(params, frozen, asked):
        asked = _tell(asked, target.guidance.told)
        drawn = noise_at_level(config, model, asked)
        given = drawn.x, drawn.time, asked.conditions
        wanted = target(frozen["teacher"], *given, asked.drop)
        output = model.apply({"params": params}, *given, drop=asked.drop, method="denoise")
        schedule = make_noise_schedule(config, model, asked.x0.shape[1:4])
        return compare_outputs(config, schedule, output, wanted)

    return loss


def make_halved_loss(
    config: ConfigDict, target: HalvedTarget, stages: Stages, told: Sequence[float]
) -> LossAt:
    """Distance of a student's step from two of its teacher's, for evenly spread steps.

    Its parameters are ``{'ema', 'teacher', 'step'}``: of the student, of the teacher of its stage,
    and how many training steps are done.

    Args:
      config: of the run.
      target: of the first teacher's number of steps.
      stages: of the run.
      told: (least, greatest) guidance scale, if it is an input.
    """
    count = config.diffusion.eval_levels

    def loss(params, frozen, asked):
        del frozen
        asked = _tell(asked, told)
        grid = target.grids(asked.x0.shape[1:4], len(stages.steps))[0]
        stride = stages.stride_at(jnp.maximum(params["step"] - 1, 0))
        steps = grid.steps // stride
        # The cleanest first, as noise levels are numbered elsewhere.
        index = steps - 1 - ((2 * asked.number + 1) * steps) // (2 * count)
        interval = draw_interval(grid, stride, jnp.full(asked.x0.shape[:1], index))
        student, teacher = params["ema"], params["teacher"]
        given = asked.x0, asked.noise, interval, asked.conditions, asked.drop
        return target.loss(student, teacher, *given)

    return loss


def _tell(asked: Question, told: Sequence[float]) -> Question:
    """The question with a guidance scale for each clip, if it is an input."""
    if not told:
        return asked
    scale = jax.vmap(lambda key: jax.random.uniform(key, minval=told[0], maxval=told[1]))
    return asked._replace(conditions={**asked.conditions, "guidance": scale(asked.clips)})
