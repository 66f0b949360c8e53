"""The inputs of a refiner's step: large latents, and what the refiner is given (FSVideo 2.4.2).

The frozen base model, by one evaluation on the clip at half size, and the frozen upsampler make the
condition that in sampling comes from the base model's sample (``diffusion.refiner_given``).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from vidlatent import config as configs
from vidlatent.diffusion import Flow, make_schedule
from vidlatent.diffusion.flow import network_time
from vidlatent.diffusion.refiner_given import Given, GivenOptions, give_for_training
from vidlatent.errors import VidlatentError
from vidlatent.latents.contract import require_same
from vidlatent.latents.inputs import Inputs, missing_condition_masks
from vidlatent.latents.space import (
    Latents,
    abstract_at_rest,
    generator_of,
)
from vidlatent.models.frozen import FrozenNetwork, freeze_run
from vidlatent.models.generators import FOLLOW, UPSAMPLERS, build_upsampler
from vidlatent.models.load import resolve_dtype
from vidlatent.paths import as_path
from vidlatent.weights.files import is_workdir

__all__ = [
    "Parts",
    "RefinerInputs",
    "abstract_upsampler",
    "make_inputs",
    "read_given_options",
    "read_part",
    "upsampler_of",
]


class Parts(NamedTuple):
    """The frozen models of a refiner's step.

    Attributes:
      base, upsampler: their configs.
      frozen: their parameters, by these names.
    """

    base: ConfigDict
    upsampler: ConfigDict
    frozen: Mapping[str, FrozenNetwork]


def make_inputs(
    config: ConfigDict,
    model: Any,
    latents: Latents,
    *,
    augment: bool = False,
    parts: Parts | None = None,
) -> Inputs | RefinerInputs:
    """What makes latents and conditions of a batch, for a generator or a refiner.

    Args:
      augment: for a refiner, shuffle, replace and drop what it is given, as in training.
      parts: a refiner's base model and upsampler; None reads those that the config names.
    """
    if parts is not None or configs.role_of(config) == "refiner":
        return RefinerInputs(config, model, latents, augment=augment, parts=parts)
    return Inputs(config, model, latents)


class RefinerInputs:
    """``(batch, frozen, key) -> (standardised latent [B, t, h, w, c], conditions)``.

    As ``Inputs``, with ``'given'`` among the conditions: mask and condition latent of every frame.
    Single frames have none, since the picture is the answer.

    Args:
      config: of the run; ``config.refiner`` names base model and upsampler.
      model: the refiner.
      latents: facts about the latents.
      augment: shuffle, replace and drop, as in training.
      parts: base model and upsampler; None reads those that the config names, and checks that the
        data hold pairs.
    """

    def __init__(
        self,
        config: ConfigDict,
        model: Any,
        latents: Latents,
        *,
        augment: bool,
        parts: Parts | None = None,
    ):
        self._plain = Inputs(config, model, latents)
        self.reader, self.reads = self._plain.reader, self._plain.reads
        self._augment, self._options = augment, read_given_options(config, model)
        if parts is None:
            self.reader.check_low()
            parts = _describe_parts(config, latents)
        self._parts = parts
        self._base = generator_of(parts.base, model.dtype)
        self._upsampler = upsampler_of(parts.upsampler, model.dtype)
        self.arrays = (*self._plain.arrays, *self.reader.low_arrays)
        unknown = [name for name in self._base.reads if name not in self.reads]
        if unknown:
            raise VidlatentError(
                f"the base model config.refiner.base={config.refiner.base} reads "
                f"{', '.join(unknown)}, and this refiner does not: give both the same conditions."
            )

    @property
    def frozen(self) -> dict[str, FrozenNetwork]:
        return {**self._plain.frozen, **self._parts.frozen}

    def __call__(
        self, batch: Mapping[str, jax.Array], frozen: Mapping[str, Any], key: jax.Array
    ) -> tuple[jax.Array, dict[str, Any]]:
        high, conditions, given = self.give(batch, frozen, key)
        return high, conditions if given is None else {**conditions, "given": given.join()}

    def give(
        self, batch: Mapping[str, jax.Array], frozen: Mapping[str, Any], key: jax.Array
    ) -> tuple[jax.Array, dict[str, Any], Given | None]:
        """Latent, the other conditions, and what the refiner is given (None for single frames)."""
        of_latent, of_low, of_sigma, of_given = jax.random.split(key, 4)
        high, conditions = self._plain(batch, frozen, of_latent)
        if high.shape[1] == 1:
            return high, conditions, None
        low = self.reader.read_low(batch, frozen, of_low)
        given = give_for_training(
            of_given,
            low,
            high,
            self._schedule(low.shape[1:4]).sample_sigma(of_sigma, len(low)),
            self._evaluate_base(frozen["base"], low, conditions),
            self._upsample(frozen),
            self._options,
            augment=self._augment,
        )
        return high, conditions, given

    def _schedule(self, grid: tuple[int, ...]) -> Flow:
        """The base model's noise levels at its grid: tokens move the shift."""
        base = self._parts.base
        schedule = make_schedule(base.diffusion.schedule)
        if not isinstance(schedule, Flow):
            raise VidlatentError(
                f"the base model {base.name} was not trained by flow matching, which "
                "eqs. 10-13 of FSVideo need: name another config.refiner.base."
            )
        return schedule.for_tokens(math.prod(grid) // math.prod(self._base.patch))

    def _upsample(self, frozen: Mapping[str, Any]) -> Any:
        """``[B, t, h, w, c] -> [B, t, 2 h, 2 w, c]`` by the frozen upsampler."""
        return lambda latent: self._upsampler.apply({"params": frozen["upsampler"]}, latent)

    def _choose_base_conditions(
        self, low: jax.Array, conditions: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The conditions that the base model reads; its first frame is that of the small clip."""
        own = {name: conditions[name] for name in self._base.reads}
        if "first" in own:
            own["first"] = low[:, :1]
        if "null_text" in conditions:
            own["null_text"] = conditions["null_text"]
        return own

    def _evaluate_base(self, params: Any, low: jax.Array, conditions: Mapping[str, Any]) -> Any:
        """``(z, sigma) -> velocity`` of the base model under the conditions of the small clip."""
        own = self._choose_base_conditions(low, conditions)
        drop = missing_condition_masks(own, self._base.reads, low.shape[1])

        def evaluate(z, sigma):
            return self._base.apply(
                {"params": params}, z, network_time(sigma), own, drop=drop, method="denoise"
            )

        return evaluate


def read_given_options(config: ConfigDict, model: Any) -> GivenOptions:
    """``config.refiner`` for a refiner, whose mask decides the number of channels."""
    names = {field.name for field in dataclasses.fields(GivenOptions)} - {"mask_channels"}
    values = {name: config.refiner[name] for name in names}
    if not values["mask_low"] <= values["mask_high"] < 1:
        raise VidlatentError(
            f"config.refiner.mask_low={values['mask_low']} and mask_high={values['mask_high']}: "
            "the mask of upsampled frames is a range below 1, such as 0.2 to 0.8."
        )
    if not getattr(model, "condition_channels", 0) or not model.mask_channels:
        raise VidlatentError(
            "a refiner is given a mask and a latent: set config.generator.condition_channels=-1 "
            "and config.generator.mask_channels=4."
        )
    return GivenOptions(mask_channels=model.mask_channels, **values)


def read_part(config: ConfigDict, name: str) -> ConfigDict:
    """The config of the run that ``config.refiner.<name>`` names (``base`` or ``upsampler``).

    Raises:
      VidlatentError: no run is named, or one of another kind.
    """
    path, task = config.refiner[name], {"base": "generator", "upsampler": "upsampler"}[name]
    if not path or not is_workdir(path):
        about = " is empty" if not path else f"={path} is no run with checkpoints"
        raise VidlatentError(
            f"config.refiner.{name}{about}: name the workdir of the trained "
            f"{'base model' if name == 'base' else 'latent upsampler'}."
        )
    found = configs.read(as_path(path))
    if configs.role_of(found) != task:
        raise VidlatentError(
            f"config.refiner.{name}={path} is a run of the task {found.task!r}: name one of the "
            f"task {task!r}."
        )
    return found


def upsampler_of(config: ConfigDict, dtype: Any = None) -> Any:
    """The upsampler of ``config.generator``."""
    fields = dict(config.generator)
    if fields.get("name") not in UPSAMPLERS.names():
        raise VidlatentError(
            f"config.generator.name {fields.get('name')!r} is no latent upsampler: choose one of "
            f"{', '.join(UPSAMPLERS.names())}."
        )
    if fields.get("latent_channels") == FOLLOW:
        del fields["latent_channels"]
    return build_upsampler(fields, resolve_dtype(config, dtype))


def abstract_upsampler(model: Any) -> Any:
    """An upsampler's parameters as ShapeDtypeStructs."""
    latent = jax.ShapeDtypeStruct((1, 1, 2, 2, model.latent_channels), "float32")
    return jax.eval_shape(model.init, jax.random.key(0), latent)["params"]


def _describe_parts(config: ConfigDict, latents: Latents) -> Parts:
    base, upsampler = (read_part(config, name) for name in ("base", "upsampler"))
    for name in ("base", "upsampler"):
        _check_space(config, name, latents)
    model = generator_of(base, resolve_dtype(config, None))
    abstract = abstract_upsampler(upsampler_of(upsampler))
    frozen = {
        "base": _freeze(config, "base", abstract_at_rest(model), base.generator.name),
        "upsampler": _freeze(config, "upsampler", abstract, upsampler.generator.name),
    }
    return Parts(base, upsampler, frozen)


def _check_space(config: ConfigDict, name: str, latents: Latents) -> None:
    path = config.refiner[name]
    require_same(
        latents.space,
        Latents.load(as_path(path)).space,
        "this refiner",
        f"config.refiner.{name}={path}",
        "train all parts of a cascade in one latent space, each started from the tokenizer's own "
        "statistics",
    )


def _freeze(config: ConfigDict, name: str, abstract: Any, family: str) -> FrozenNetwork:
    return freeze_run(config.refiner[name], abstract, family, config.refiner[f"{name}_step"])
