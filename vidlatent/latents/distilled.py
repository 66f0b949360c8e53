"""What distillation has built into a generator; stored in its workdir as ``distilled.json``.

Sampling reads it, because it cannot be seen in the weights: a generator with built-in guidance
must not be guided again, and one that has learned few steps knows no noise levels but its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vidlatent.errors import VidlatentError
from vidlatent.files import read_json, write_json
from vidlatent.parallel.multihost import is_main
from vidlatent.paths import as_path

__all__ = [
    "CONVENTIONS",
    "FILE",
    "BuiltInGuidance",
    "Distilled",
    "StepGrid",
    "describe_grid",
    "effective_scales",
]

FILE = "distilled.json"
# What a guidance scale w means, with the velocities c under the condition and u without it.
CONVENTIONS = {"null": "u + w (c - u)", "condition": "c + w (c - u)"}


def effective_scales(scales: Sequence[float], convention: str) -> tuple[float, ...]:
    """Scales of ``convention`` as those of ``'null'``, which all code here uses.

    ``c + w (c - u)`` is ``u + (1 + w) (c - u)``.
    """
    return tuple(float(scale) + (convention == "condition") for scale in scales)


@dataclasses.dataclass(frozen=True)
class BuiltInGuidance:
    """Guidance that a generator computes by itself, in one evaluation.

    Attributes:
      scales: one for each link of conditions (``config.sampler.guidance``); () if it is an input.
      scale_range: (least, greatest) scale that may be its input; () if it is fixed.
      convention: what the scales mean, a key of ``CONVENTIONS``.
      drops: conditions that the less conditioned side of each link went without.
    """

    scales: tuple[float, ...]
    scale_range: tuple[float, ...] = ()
    convention: str = "null"
    drops: tuple[tuple[str, ...], ...] = ()

    @property
    def told(self) -> tuple[float, ...]:
        """``scale_range`` as scales that the generator is told, those of ``'null'``."""
        return effective_scales(self.scale_range, self.convention)

    def __str__(self) -> str:
        form = CONVENTIONS[self.convention]
        if self.scale_range:
            low, high = self.scale_range
            return f"any guidance scale w from {low:g} to {high:g} of {form}"
        return f"the guidance scale w = {', '.join(f'{w:g}' for w in self.scales)} of {form}"


@dataclasses.dataclass(frozen=True)
class StepGrid:
    """The steps that a generator has learned to take.

    Attributes:
      solver: name of the sampler.
      steps: their number.
      spacing: of the noise levels, ``config.sampler.spacing``.
      shift: ``config.sampler.shift``; 0: that of the schedule.
      schedule: ``config.diffusion.schedule``.
      levels: the noise levels ``[steps + 1]`` of clips of the last bucket, for people.
      eta: share of fresh noise in the steps of ``ddim``.
    """

    solver: str
    steps: int
    spacing: str
    shift: float
    schedule: dict[str, Any]
    levels: tuple[float, ...] = dataclasses.field(default=(), compare=False)
    eta: float = 0.0


@dataclasses.dataclass(frozen=True)
class Distilled:
    """What distillation has built into the generator of a workdir.

    Attributes:
      guidance: None: none.
      grids: (number of training steps, grid) pairs, rising: what is learned after so many.
      teacher: workdir and checkpoint that it learned from.
    """

    guidance: BuiltInGuidance | None = None
    grids: tuple[tuple[int, StepGrid], ...] = ()
    teacher: dict[str, Any] = dataclasses.field(default_factory=dict, compare=False)

    def grid_at(self, step: int) -> StepGrid | None:
        """The grid of the checkpoint of ``step``; None: any number of steps will do."""
        found = None
        for begun, grid in self.grids:
            if begun < step or found is None:
                found = grid
        return found

    def write_or_check(self, workdir: Path, step: int) -> None:
        """Store it in the workdir of a run that is at ``step``.

        Raises:
          VidlatentError: the run is resumed, and it has learned something else.
        """
        stored = Distilled.load(workdir) if step else None
        if stored is not None and stored != self:
            raise VidlatentError(
                f"the run in {workdir} distils {stored}, this config {self}: go on with the same "
                "config.distill, config.sampler and config.train.steps, or use another --workdir."
            )
        if stored is not None and stored.teacher != self.teacher:
            places = stored.teacher, self.teacher
            then, now = (f"step {place['step']} of {place['workdir']}" for place in places)
            raise VidlatentError(
                f"the run in {workdir} learned from {then}, and this config names {now}: set "
                "config.distill.teacher and config.distill.teacher_step to what it learned from."
            )
        if is_main():
            self.save(workdir)

    def __str__(self) -> str:
        parts = [str(self.guidance)] if self.guidance else []
        parts += [f"{grid.steps} steps from step {begun} on" for begun, grid in self.grids]
        return " and ".join(parts) or "nothing"

    def save(self, workdir: Path) -> None:
        write_json(workdir / FILE, dataclasses.asdict(self))

    @classmethod
    def load(cls, workdir: str | Path) -> Distilled | None:
        """Read what ``save`` wrote; None for a generator that was not distilled.

        Raises:
          VidlatentError: the file is damaged.
        """
        path = as_path(workdir) / FILE
        if not path.is_file():
            return None
        remedy = "copy it from a backup, or distil anew in another --workdir"
        stored = read_json(path, remedy)
        try:
            guidance = stored["guidance"]
            grids = tuple((int(at), _read_grid(grid)) for at, grid in stored["grids"])
            teacher = {key: stored["teacher"][key] for key in ("workdir", "step")}
            return cls(guidance and _read_guidance(guidance), grids, teacher)
        except (KeyError, TypeError, ValueError) as error:
            raise VidlatentError(
                f"{path} is damaged ({type(error).__name__}: {error}): {remedy}."
            ) from error


def describe_grid(config: ConfigDict, steps: int, levels: Sequence[float] = ()) -> StepGrid:
    """The grid of ``config.sampler`` with this many steps."""
    sampler = config.sampler
    return StepGrid(
        sampler.name,
        int(steps),
        sampler.spacing,
        float(sampler.shift),
        # As JSON gives it back.
        {k: list(v) if isinstance(v, tuple) else v for k, v in config.diffusion.schedule.items()},
        tuple(map(float, levels)),
        float(sampler.eta) if sampler.name == "ddim" else 0.0,
    )


def _read_grid(stored: dict[str, Any]) -> StepGrid:
    return StepGrid(**{**stored, "levels": tuple(stored["levels"])})


def _read_guidance(stored: dict[str, Any]) -> BuiltInGuidance:
    scales, between = (tuple(stored[name]) for name in ("scales", "scale_range"))
    if stored["convention"] not in CONVENTIONS:
        raise ValueError(f"convention {stored['convention']!r}")
    return BuiltInGuidance(
        scales, between, stored["convention"], tuple(map(tuple, stored["drops"]))
    )
