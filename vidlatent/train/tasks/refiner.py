"""Training a refiner (FSVideo 2.4.2): the generator's step with other inputs.

What differs from training the base model is what the refiner is given, see
``latents.refiner_inputs`` and ``diffusion.refiner_given``.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from vidlatent.latents.refiner_inputs import Parts, RefinerInputs, read_part
from vidlatent.latents.space import Latents
from vidlatent.train.tasks.generator import GeneratorTask

__all__ = ["RefinerTask"]


class RefinerTask(GeneratorTask):
    """Trains ``config.generator`` to refine what base model and upsampler make.

    Batches hold latents of both sizes (``config.encode.low=2``), or videos. The frozen networks
    ``base`` and ``upsampler`` are those of ``config.refiner``; neither gets a gradient.

    Args:
      config, model, latents: as ``GeneratorTask``.
      parts: base model and upsampler; None reads those that the config names.
    """

    def __init__(
        self,
        config: ConfigDict,
        model: Any = None,
        latents: Latents | None = None,
        parts: Parts | None = None,
    ):
        if parts is None:
            for name in ("base", "upsampler"):
                read_part(config, name)  # first of all: the commonest slip
        self._parts = parts
        super().__init__(config, model, latents)

    def make_inputs(self, *, augment: bool) -> RefinerInputs:
        return RefinerInputs(
            self.config, self.model, self.latents, augment=augment, parts=self._parts
        )
