"""What an experiment is: arms, seeds, settings to choose from, and what is measured.

An experiment is fixed before its first run. It is data: ``runner`` carries it out, ``report`` makes
its table and plot.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vidlatent import config as configs
from vidlatent.config import get_defaults, get_generator_defaults, is_generator
from vidlatent.errors import VidlatentError

__all__ = ["FIXED", "Arm", "Difference", "Experiment", "Run", "Setting"]

Setting = Mapping[str, str]  # config key -> text, as on the command line
FIXED: Setting = {}


@dataclasses.dataclass(frozen=True)
class Arm:
    """One kind of run.

    Attributes:
      name: short and unique; a folder is called so.
      config: file and argument, such as ``configs/promag.py:line,k=16``.
      steps: at which the run ends, counted from its own start.
      label: what the table says; empty: the name.
      overrides: keys of the config that differ.
      settings: what is tried; the one with the best mean over the seeds counts.
      follows: an arm whose chosen setting this one takes, instead of ``settings``.
      starts_from: an arm whose weights, at the same seed, this one starts from.
      continues: an arm whose runs, at its chosen setting, go on to more steps.
      more_steps: what the arms before it cost, for the account of all steps.
    """

    name: str
    config: str
    steps: int
    label: str = ""
    overrides: Setting = dataclasses.field(default_factory=dict)
    settings: tuple[Setting, ...] = (FIXED,)
    follows: str = ""
    starts_from: str = ""
    continues: str = ""
    more_steps: int = 0

    @property
    def leader(self) -> str:
        """The arm that decides this one's setting; empty: itself."""
        return self.continues or self.follows


@dataclasses.dataclass(frozen=True)
class Difference:
    """``first - second`` of a metric, taken seed by seed.

    Attributes:
      least: what the mean must exceed, in size, to count: with every seed on one side the first is
        then ``'higher'`` or ``'lower'``, else it is a ``'tie'``. None: nothing is concluded.
    """

    first: str
    second: str
    metric: str = "psnr"
    least: float | None = None


@dataclasses.dataclass(frozen=True)
class Run:
    """One arm at one setting and seed."""

    arm: Arm
    setting: Setting
    seed: int

    @property
    def place(self) -> str:
        """``arm/setting``, fit for a path."""
        setting = ",".join(f"{key}={text}" for key, text in sorted(self.setting.items()))
        return f"{self.arm.name}/{setting or 'fixed'}"

    def __str__(self) -> str:
        return f"{self.place}, seed {self.seed}"


# (config, workdir, seed, scores) -> further metrics
Measure = Callable[[ConfigDict, Path, int, Mapping[str, Any]], Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A design.

    Attributes:
      name: names the default workdir.
      title: heads the table.
      arms: in the order in which they run; an arm comes after those it needs.
      seeds: of parameters, data and data order.
      metric: decides between settings; larger is better.
      columns: metrics of the table, with their headings.
      differences: pairs of arms to compare.
      measure: further metrics of a finished run.
      draw: ``(figure, summary) -> None``, fills a matplotlib figure; None: bars of ``metric``.
      notes: printed under the table, whatever it shows.
      gate: ``(arm, least mean of metric)``: below it the experiment says so and says nothing else.
      gate_metric: that the gate looks at; empty: ``metric``.
      decimals: of metrics that are not shown with two.
      tried_metrics: further metrics listed for every setting that was tried.
    """

    name: str
    title: str
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    metric: str = "psnr"
    columns: Mapping[str, str] = dataclasses.field(default_factory=lambda: {"psnr": "PSNR, dB"})
    differences: tuple[Difference, ...] = ()
    measure: Measure | None = None
    draw: Callable[[Any, Mapping[str, Any]], None] | None = None
    notes: tuple[str, ...] = ()
    gate: tuple[str, float] | None = None
    gate_metric: str = ""
    decimals: Mapping[str, int] = dataclasses.field(default_factory=dict)
    tried_metrics: tuple[str, ...] = ()

    def __post_init__(self):
        seen: dict[str, Arm] = {}
        for arm in self.arms:
            for needed in filter(None, (arm.follows, arm.starts_from, arm.continues)):
                if needed not in seen:
                    raise VidlatentError(f"arm {arm.name} needs {needed}, which must come first.")
            if arm.continues and arm.steps <= seen[arm.continues].steps:
                raise VidlatentError(f"arm {arm.name} must have more steps than {arm.continues}.")
            if arm.name in seen:
                raise VidlatentError(f"two arms are called {arm.name}.")
            seen[arm.name] = arm
        continued = {arm.continues for arm in self.arms}
        for arm in self.arms:
            if arm.starts_from in continued - {""}:
                raise VidlatentError(f"{arm.name} starts from {arm.starts_from}, which goes on.")

    def arm(self, name: str) -> Arm:
        for arm in self.arms:
            if arm.name == name:
                return arm
        known = ", ".join(arm.name for arm in self.arms)
        raise VidlatentError(f"there is no arm {name!r}: take one of {known}.")

    def settings_of(self, arm: Arm) -> tuple[Setting, ...]:
        """What the arm, or the one that decides for it, tries."""
        return self.settings_of(self.arm(arm.leader)) if arm.leader else arm.settings

    def runs(self, chosen: Mapping[str, Setting]) -> list[Run]:
        """Every run; an arm that follows another has runs once that one's setting is chosen."""
        return [
            Run(arm, setting, seed)
            for arm in self.arms
            for setting, seed in itertools.product(self.tried(arm, chosen), self.seeds)
        ]

    def tried(self, arm: Arm, chosen: Mapping[str, Setting]) -> tuple[Setting, ...]:
        """Settings at which the arm runs, as far as is known."""
        if not arm.leader:
            return arm.settings
        leader = self.decider(arm).name
        return (chosen[leader],) if leader in chosen else ()

    def decider(self, arm: Arm) -> Arm:
        """The arm whose sweep settles this one's setting: itself, or the first it goes back to."""
        while arm.leader:
            arm = self.arm(arm.leader)
        return arm

    def origin(self, arm: Arm) -> Arm:
        """The arm in whose workdir the runs are kept."""
        while arm.continues:
            arm = self.arm(arm.continues)
        return arm


def resolve(run: Run, init_from: str) -> ConfigDict:
    """The config of a run."""
    config = configs.load(
        run.arm.config,
        {
            **run.arm.overrides,
            **run.setting,
            "seed": str(run.seed),
            "train.steps": str(run.arm.steps),
        },
    )
    with config.unlocked():
        config.train.init_from = init_from
    return config


def identity(config: ConfigDict) -> str:
    """Hash of what a run does, wherever it lies on the disc.

    Of the keys that differ from their defaults, so that a key added later changes nothing.
    """
    copy = ConfigDict(config.to_dict())
    copy.train.init_from = ""
    usual = get_defaults(config.name, config.preset)
    if is_generator(config):
        copy.tokenizer.path = ""
        checkpoint = usual.checkpoint
        usual = get_generator_defaults(config.name, config.preset)
        usual.checkpoint = checkpoint  # as when the first results were stored
    if copy.data.source == "latents":
        copy.data.path = ""
    changed = configs.differences(configs.to_json(usual), configs.to_json(copy))
    return hashlib.sha256("\n".join(changed).encode()).hexdigest()[:16]
