"""Progressive distillation: a student that takes half as many steps as its teacher, and again.

FSVideo 2.4.3 brings its refiner to 32 steps by it; the method is that of Salimans & Ho 2022. The
teacher is a part of the state: at the first step of a stage the averaged student takes its place,
inside the compiled step, so that a run resumes bitwise wherever it was cut.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from ml_collections import ConfigDict

from vidlatent.diffusion.distillation import draw_interval
from vidlatent.errors import VidlatentError
from vidlatent.evaluate.distillation_loss import make_halved_loss
from vidlatent.evaluate.generator_loss import LossAt
from vidlatent.latents.distilled import Distilled, StepGrid, describe_grid
from vidlatent.latents.space import abstract_at_rest
from vidlatent.latents.targets import HalvedTarget, Stages
from vidlatent.paths import same_place
from vidlatent.train.optim import find_length, make_learning_rate
from vidlatent.train.state import State
from vidlatent.train.tasks.base import Player
from vidlatent.train.tasks.distill import DistillTask

__all__ = ["ProgressiveTask"]


class ProgressiveTask(DistillTask):
    """One step of the student leads where two of its teacher lead, from noised real latents.

    Stages share ``config.train.steps`` evenly; each has the whole schedule of the learning rate.

    Attributes:
      stages: their numbers of steps.
    """

    # Its parameters are copies of the student's, so they can only diverge by the same rate.
    players: Mapping[str, Player] = {"teacher": Player("config.optim.lr")}

    def prepare(self, config: ConfigDict, model: Any) -> None:
        self.stages = Stages.of(config)
        if config.sampler.steps != self.stages.steps[-1]:
            raise VidlatentError(
                f"config.sampler.steps={config.sampler.steps}, but the student learns "
                f"{self.stages.steps[-1]} steps (config.distill.stages): set it to that."
            )
        self._target = HalvedTarget(config, model, 2 * self.stages.steps[0])
        self._check_teacher(config)
        if self.teacher.guidance is not None:
            self.told = self.teacher.guidance.told

    def __init__(self, config: ConfigDict, *parts: Any, **more: Any):
        super().__init__(config, *parts, **more)
        self.rate = make_learning_rate(self.config, self.config.train.steps, len(self.stages.steps))
        self._grids(self._last_grid())  # levels that do not nest are refused now

    def _check_teacher(self, config: ConfigDict) -> None:
        teacher, named = self.teacher, f"config.distill.teacher={config.distill.teacher}"
        if not same_place(config.train.init_from, config.distill.teacher):
            raise VidlatentError(
                f"{named} and config.train.init_from={config.train.init_from}: the student starts "
                "from its teacher, so name that in one of the two and leave the other empty."
            )
        if config.distill.teacher_step >= 0:
            raise VidlatentError(
                f"config.distill.teacher_step={config.distill.teacher_step}: the student starts "
                "from its teacher, and a run starts from the newest checkpoint: leave it out."
            )
        scales = ", ".join(f"{w:g}" for w in teacher.config.sampler.guidance.scales)
        if teacher.guidance is None and scales and not config.distill.unguided:
            raise VidlatentError(
                f"{named} is sampled with the guidance scale {scales}, which steps that are halved "
                "would not have: distil its guidance first (the task distill_guidance), or set "
                "config.distill.unguided=True."
            )
        if teacher.grid is not None:
            self._check_grid(config, teacher.grid, named)

    def _check_grid(self, config: ConfigDict, grid: StepGrid, named: str) -> None:
        """Raise unless the first student takes every second step that the teacher has learned."""
        first = self.stages.steps[0]
        if grid.steps != 2 * first:
            raise VidlatentError(
                f"{named} takes {grid.steps} steps, and config.distill.stages={self.stages.steps} "
                f"begins with {first}: let it begin with {grid.steps // 2}, half of them."
            )
        ours = describe_grid(config, grid.steps)
        keys = {"solver": "sampler.name", "spacing": "sampler.spacing", "shift": "sampler.shift"}
        for field, key in {**keys, "schedule": "diffusion.schedule"}.items():
            learned, asked = getattr(grid, field), getattr(ours, field)
            if learned != asked:
                raise VidlatentError(
                    f"{named} learned its steps with config.{key}={learned!r}, and this config has "
                    f"{asked!r}: give both the same, or their noise levels differ."
                )

    def _grids(self, grid: tuple[int, ...]) -> list[Any]:
        return self._target.grids(grid, len(self.stages.steps))

    def _last_grid(self) -> tuple[int, ...]:
        """Latent frames, rows and columns of the clips of the last bucket."""
        return self.spec.latent_shape(tuple(self.config.data.buckets[-1][:3]))[:3]

    def describe(self) -> Distilled:
        levels = [grid.sigmas for grid in self._grids(self._last_grid())[1:]]
        grids = tuple(
            (number * self.stages.length, describe_grid(self.config, steps, of_stage))
            for number, (steps, of_stage) in enumerate(zip(self.stages.steps, levels, strict=True))
        )
        return Distilled(self.teacher.guidance, grids, self.teacher.place)

    def init(self, key: jax.Array) -> State:
        # There is no teacher yet: the first step of a stage puts it there.
        teacher = jax.tree.map(lambda like: jnp.zeros(like.shape, like.dtype), self._at_rest)
        return {**super().init(key), "teacher": {"params": teacher}}

    @functools.cached_property
    def _at_rest(self) -> Any:
        return abstract_at_rest(self.model)

    def train_step(
        self, state: State, batch: Mapping[str, jax.Array], frozen: Mapping[str, Any]
    ) -> tuple[State, dict[str, jax.Array]]:
        first = state["step"] % self._traced_stages().length == 0
        begin = functools.partial(self._begin_stage, frozen=frozen)
        state = lax.cond(first, begin, lambda state: state, state)
        networks = {**frozen, "teacher": state["teacher"]["params"]}
        return super().train_step(state, batch, networks)

    def _traced_stages(self) -> Stages:
        """The stages, whose length may be an argument of the program (``find_length``)."""
        length = find_length(self.config.train.steps, len(self.stages.steps))
        return self.stages._replace(length=length)

    def _begin_stage(self, state: State, frozen: Mapping[str, Any]) -> State:
        """The averaged student is the new teacher, and starts anew as that.

        In the first stage it is what ``config.train.init_from`` has put there.
        """
        best = state["ema"]
        whole = self.adapters.merge(best, frozen)
        teacher = jax.tree.map(lambda x, like: x.astype(like.dtype), whole, self._at_rest)
        return {
            **state,
            "params": best,
            "opt": self.optimizer.init(best),
            "teacher": {"params": teacher},
        }

    def compute_losses(
        self,
        params: Any,
        frozen: Any,
        x0: jax.Array,
        conditions: Any,
        drop: Any,
        step: Any,
        key: Any,
    ) -> jax.Array:
        of_noise, of_step, of_scale = jax.random.split(key, 3)
        grid = self._grids(x0.shape[1:4])[0]
        stride = self._traced_stages().stride_at(step)
        index = jax.random.randint(of_step, (len(x0),), 0, grid.steps // stride)
        interval = draw_interval(grid, stride, index)
        noise = jax.random.normal(of_noise, x0.shape, jnp.float32)
        conditions = self.tell_guidance(conditions, of_scale, len(x0))
        return self._target.loss(params, frozen["teacher"], x0, noise, interval, conditions, drop)

    def make_eval_loss(self) -> LossAt:
        return make_halved_loss(self.config, self._target, self.stages, self.told)

    def pick_evaluated(self, state: State, params: Any) -> Any:
        return {"ema": params, "teacher": state["teacher"]["params"], "step": state["step"]}

    def sampling_config(self, step: int) -> ConfigDict:
        """Samples are drawn with the steps of the stage that the parameters have learned."""
        config = self.config.copy_and_resolve_references()
        with config.unlocked():
            config.sampler.steps = self.stages.steps[self.stages.stage_at(max(step - 1, 0))]
        return config
