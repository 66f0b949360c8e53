"""What all distillations share: a student that starts from its teacher, and what it is told of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from vidlatent.errors import VidlatentError
from vidlatent.latents.distilled import Distilled
from vidlatent.latents.refiner_inputs import Parts, make_inputs
from vidlatent.latents.space import Latents
from vidlatent.latents.teacher import Teacher, describe_teacher, follow_teacher
from vidlatent.paths import same_place
from vidlatent.train.adapters import BASE
from vidlatent.train.tasks.generator import GeneratorTask, open_generator

__all__ = ["DistillTask"]


class DistillTask(GeneratorTask):
    """Trains a generator or a refiner on what a trained one shows it (FSVideo 2.4.3).

    Batches, conditions and their dropout are those of the teacher's own training.

    Args:
      config: config of the run.
      model, latents: as ``GeneratorTask``.
      teacher: None: the one that the config names.
      parts: of a refiner, as ``RefinerTask``.

    Attributes:
      teacher: the trained generator.
      told: (least, greatest) guidance scale of those that are an input of the student; () for none.
    """

    told: tuple[float, ...] = ()

    def __init__(
        self,
        config: ConfigDict,
        model: Any = None,
        latents: Latents | None = None,
        teacher: Teacher | None = None,
        parts: Parts | None = None,
    ):
        if teacher is None:
            config = follow_teacher(config)  # first of all: the commonest slip
        if latents is None:
            config, model, latents = open_generator(config, model)
        self.teacher = describe_teacher(config, model, latents) if teacher is None else teacher
        self._parts = parts
        self.prepare(config, model)
        if (scales := tuple(config.sampler.guidance.scales)) and not self.told:
            raise VidlatentError(
                f"config.sampler.guidance.scales={scales} guides the student, which learns to do "
                "without or has its guidance built in: set it to (), and build guidance into the "
                "teacher first if it has none (task distill_guidance)."
            )
        super().__init__(config, model, latents)
        self._share_weights()
        if model.guidance_embed != bool(self.told):
            has = "has no" if self.told else "has a"
            raise VidlatentError(
                f"this student {has} guidance scale as an input, and what it learns from "
                f"{'needs one' if self.told else 'gives none'}: set "
                f"config.generator.guidance_embed={bool(self.told)}."
            )
        if self.told and (len(scales) != 1 or not self.told[0] <= scales[0] <= self.told[1]):
            raise VidlatentError(
                f"config.sampler.guidance.scales={scales}: the samples of this training are drawn "
                f"with a scale as input: give one from {self.told[0]:g} to {self.told[1]:g}."
            )

    def _share_weights(self) -> None:
        """Let adapters of the teacher's own weights adapt the frozen teacher, held once."""
        if self.adapters.lora is None or "teacher" in self.players:  # which the run replaces
            return
        train, place = self.config.train, self.teacher.place
        same = place and train.init_from and same_place(train.init_from, place["workdir"])
        # Adapters start from the newest checkpoint, and from weights that need no conversion.
        same = same and self.config.distill.teacher_step < 0 and not train.init_kind
        if same and self.teacher.network.abstract == self.adapters.frozen[BASE].abstract:
            self.adapters.borrow("teacher", place["step"])

    def make_inputs(self, *, augment: bool) -> Any:
        return make_inputs(
            self.config, self.model, self.latents, augment=augment, parts=self._parts
        )

    def prepare(self, config: ConfigDict, model: Any) -> None:
        """Check the teacher, and make what the losses need; the task is not complete yet."""
        raise NotImplementedError

    def describe(self) -> Distilled:
        """What the run builds into the student."""
        raise NotImplementedError

    def begin(self, workdir: Path, step: int, labels: Sequence[str]) -> None:
        """As ``GeneratorTask.begin``; also store what is built into the student."""
        if not step:
            self.check_classes(labels, self.config.distill.teacher)
        super().begin(workdir, step, labels)
        self.describe().write_or_check(workdir, step)

    def tell_guidance(self, conditions: Any, key: jax.Array, batch: int) -> Any:
        """The conditions with a random guidance scale for each sample, if it is an input."""
        if not self.told:
            return conditions
        low, high = self.told
        scale = jax.random.uniform(key, (batch,), minval=low, maxval=high)
        return {**conditions, "guidance": scale}
