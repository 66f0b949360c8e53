"""The frozen teacher of a distillation: a trained generator, by the workdir of its run."""

from __future__ import annotations

from typing import Any, NamedTuple

from ml_collections import ConfigDict

from vidlatent import config as configs
from vidlatent.errors import VidlatentError
from vidlatent.latents.contract import require_same
from vidlatent.latents.distilled import BuiltInGuidance, Distilled, StepGrid
from vidlatent.latents.space import Latents, abstract_at_rest, generator_of
from vidlatent.models.frozen import FrozenNetwork, freeze_run
from vidlatent.models.load import find_step, resolve_dtype
from vidlatent.paths import as_path
from vidlatent.weights.files import is_workdir

# Fields of a generator that change how it is computed, but not what.
_FREE_FIELDS = ("stack", "remat", "residual_dtype", "guidance_embed")
# Where noise levels are drawn in training is the student's own choice; what they are is not.
_FREE_LEVELS = ("mean", "std", "shift", "least", "base_tokens")

__all__ = ["Teacher", "describe_teacher", "follow_teacher", "read_teacher"]


class Teacher(NamedTuple):
    """A trained generator that another one learns from.

    Attributes:
      config: of its run.
      model: the generator, computing in the student's dtype.
      network: its parameters, to be placed by ``models.frozen.load_frozen``.
      guidance, grid: what distillation has built into it; None: nothing.
      place: workdir and step of its checkpoint.
    """

    config: ConfigDict
    model: Any
    network: FrozenNetwork
    guidance: BuiltInGuidance | None
    grid: StepGrid | None
    place: dict[str, Any]


def follow_teacher(config: ConfigDict) -> ConfigDict:
    """The config with what its keys leave open taken from the teacher; others are returned as is.

    The student of a distillation starts from its teacher, so that one of ``config.distill.teacher``
    and ``config.train.init_from`` stands for both. The student of a refiner has its teacher's base
    model and upsampler. A run stores the result.

    So do the policy updates of a refiner, with the refiner that they start from.

    Raises:
      VidlatentError: no teacher is named, or it is no generator.
    """
    if config.task == "grpo":
        return _take_parts(config, config.train.init_from)
    if not config.task.startswith("distill_"):
        return config
    config = config.copy_and_resolve_references()
    with config.unlocked():
        distill, train = config.distill, config.train
        distill.teacher = distill.teacher or train.init_from
        train.init_from = train.init_from or distill.teacher
    read_teacher(config)
    return _take_parts(config, config.distill.teacher)


def _take_parts(config: ConfigDict, source: str) -> ConfigDict:
    """The config with base model and upsampler, where it names none, of the run in ``source``."""
    if not source or not is_workdir(source):
        return config
    taught = configs.read(as_path(source)).get("refiner")
    config = config.copy_and_resolve_references()
    with config.unlocked():
        refiner = config.refiner
        for name in ("base", "upsampler") if taught is not None else ():
            if not refiner[name]:
                refiner[name], refiner[f"{name}_step"] = taught[name], taught[f"{name}_step"]
    return config


def read_teacher(config: ConfigDict) -> ConfigDict:
    """The config of the run ``config.distill.teacher``.

    Raises:
      VidlatentError: no run is named, or one that trains no generator.
    """
    path = config.distill.teacher
    if not path or not is_workdir(path):
        about = " is empty" if not path else f"={path} is no run with checkpoints"
        raise VidlatentError(
            f"config.distill.teacher{about}: name the workdir of the trained generator or refiner "
            "to distil."
        )
    found = configs.read(as_path(path))
    if configs.role_of(found) not in ("generator", "refiner"):
        raise VidlatentError(
            f"config.distill.teacher={path} is a run of the task {found.task!r}: name one of a "
            "generator or refiner."
        )
    return found


def describe_teacher(config: ConfigDict, model: Any, latents: Latents) -> Teacher:
    """The teacher that ``config.distill`` names, checked against its student.

    It is held as inference holds it: large kernels in the compute dtype.

    Args:
      config: of the student's run, as ``follow_teacher`` returns it.
      model: the student.
      latents: that the student learns on.

    Raises:
      VidlatentError: there is no such run, or it learned another latent space, another schedule of
        noise, or conditions that the student does not read.
    """
    found, path = read_teacher(config), config.distill.teacher
    named = f"config.distill.teacher={path}"
    require_same(
        latents.space,
        Latents.load(as_path(path)).space,
        "config.data",
        named,
        "name the tokenizer and the data that the teacher has learned from",
    )
    teacher = generator_of(found, resolve_dtype(config, None))
    _check_student(config, model, found, teacher)
    step = find_step(found, as_path(path), config.distill.teacher_step)
    facts = Distilled.load(path) or Distilled()
    network = freeze_run(path, abstract_at_rest(teacher), found.generator.name, step)
    place = {"workdir": path, "step": step}
    return Teacher(found, teacher, network, facts.guidance, facts.grid_at(step), place)


def _check_student(config: ConfigDict, model: Any, found: ConfigDict, teacher: Any) -> None:
    named = f"config.distill.teacher={config.distill.teacher}"
    unknown = [name for name in teacher.reads if name not in model.reads]
    if unknown:
        raise VidlatentError(
            f"{named} reads {', '.join(unknown)}, and this student does not: give both the same "
            "conditions."
        )
    roles = [configs.role_of(c) for c in (config, found)]
    if roles[0] != roles[1]:
        raise VidlatentError(
            f"{named} is a {roles[1]}, and this config trains a {roles[0]}: use the config of the "
            f"{roles[1]} with this stage."
        )
    for section, free in (("generator", _FREE_FIELDS), ("diffusion.schedule", _FREE_LEVELS)):
        ours, theirs = (c[section].to_dict() for c in (config, found))
        for key in sorted(set(ours) & set(theirs) - set(free)):
            if ours[key] != theirs[key]:
                raise VidlatentError(
                    f"{named} was trained with config.{section}.{key}={theirs[key]!r}, and its "
                    f"student would be with {ours[key]!r}: give both the same."
                )
