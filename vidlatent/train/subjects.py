"""What a config trains: a tokenizer or a generator. The loop asks here and nowhere else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from vidlatent.config import is_generator
from vidlatent.latents.space import check_generator, generator_of, latents_of
from vidlatent.models.load import model_of
from vidlatent.spec import LatentSpec
from vidlatent.train.exams import Exam, GeneratorExam, TokenizerExam
from vidlatent.train.tasks import generator as diffusion
from vidlatent.train.tasks import tokenizer
from vidlatent.train.tasks.base import Step

__all__ = ["Subject", "subject_of"]


class Subject(NamedTuple):
    """What differs between one kind of training and another.

    Attributes:
      spec: of the latents that are made or learned from.
      make_step: builds the step; called with the mesh set.
      exam: ``(run, step, mesh, make_validation) -> Exam``.
      begin: ``(workdir, step, names of classes)``: checks the data, and writes what later modes
        need besides config and checkpoints.
    """

    spec: LatentSpec
    make_step: Callable[[], Step]
    exam: Callable[..., Exam]
    begin: Callable[[Path, int, Sequence[str]], Any]


def subject_of(config: ConfigDict) -> Subject:
    """The generator or the tokenizer that a config trains.

    Raises:
      VidlatentError: model, latents and data do not go together.
    """
    if is_generator(config):
        latents, model = latents_of(config), generator_of(config)
        check_generator(model, latents)

        def begin(workdir, step, labels):
            named = dataclasses.replace(latents, label_names=tuple(labels))
            check_generator(model, named)
            named.settle(workdir, step)

        return Subject(
            latents.spec, lambda: diffusion.make_step(config, model, latents), GeneratorExam, begin
        )
    model = model_of(config)
    return Subject(
        model.latent_spec,
        lambda: tokenizer.make_step(config, model),
        TokenizerExam,
        lambda *_: None,
    )
