"""Distilling guidance into a generator: one evaluation in place of one for each branch.

FSVideo 2.4.3 names it as the first stage of its refiner's distillation; Meng et al. 2023, 3.1.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
from ml_collections import ConfigDict

from vidlatent.diffusion.objective import draw
from vidlatent.errors import VidlatentError
from vidlatent.evaluate.distillation_loss import make_guided_loss
from vidlatent.evaluate.generator_loss import LossAt
from vidlatent.latents.distilled import Distilled
from vidlatent.latents.space import make_noise_schedule
from vidlatent.latents.targets import GuidedTarget, compare_outputs
from vidlatent.models.frozen import FrozenNetwork
from vidlatent.train.tasks.distill import DistillTask

__all__ = ["GuidanceTask"]


class GuidanceTask(DistillTask):
    """The student predicts what its teacher predicts under guidance, at the levels of training.

    Samples whose guided condition is dropped (``config.conditions.drop``) learn the teacher's
    prediction without it: all branches are then the same.
    """

    def prepare(self, config: ConfigDict, model: Any) -> None:
        teacher, named = self.teacher, f"config.distill.teacher={config.distill.teacher}"
        if teacher.guidance is not None:
            raise VidlatentError(
                f"{named} has {teacher.guidance} built in, and would be guided twice: name a "
                "teacher without, or halve its steps by the task distill_progressive."
            )
        if teacher.grid is not None:
            raise VidlatentError(
                f"{named} knows the noise levels of its {teacher.grid.steps} steps alone: distil "
                "guidance first, from the run that it was distilled from."
            )
        self._target = GuidedTarget(config, teacher.model)
        self.told = self._target.guidance.told

    @functools.cached_property
    def frozen(self) -> dict[str, FrozenNetwork]:
        """Those of the generator's training, and the teacher."""
        return {**self.inputs.frozen, **self.adapters.frozen, "teacher": self.teacher.network}

    def describe(self) -> Distilled:
        return Distilled(self._target.guidance, (), self.teacher.place)

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
        del step
        of_noise, of_scale = jax.random.split(key)
        schedule = make_noise_schedule(self.config, self.model, x0.shape[1:4])
        drawn = draw(schedule, of_noise, x0)
        conditions = self.tell_guidance(conditions, of_scale, len(x0))
        given = drawn.x, drawn.time, conditions
        target = self._target(frozen["teacher"], *given, drop)
        output = self.model.apply({"params": params}, *given, drop=drop, method="denoise")
        return compare_outputs(self.config, schedule, output, target)

    def make_eval_loss(self) -> LossAt:
        return make_guided_loss(self.config, self.model, self._target)
