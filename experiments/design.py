"""An experiment as data: arms, seeds, settings to choose from, and what is measured.

It is fixed before its first run. ``runner`` runs it, ``report`` makes its table and plot.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vidlatent import config as configs
from vidlatent.config import get_defaults, get_generator_defaults, is_generator
from vidlatent.errors import VidlatentError

__all__ = ["FIXED", "Arm", "Difference", "Experiment", "Ratio", "Run", "Setting", "compare_pairs"]

Setting = Mapping[str, str]  # config key -> text, as on the command line
FIXED: Setting = {}


@dataclasses.dataclass(frozen=True)
class Arm:
    """One kind of run.

    Attributes:
      name: short and unique; its folder has this name.
      config: file and argument, such as ``configs/promag.py:line,k=16``.
      steps: of its runs, without those of the arm it starts from.
      label: its name in the table; empty: ``name``.
      overrides: config keys of all its runs.
      settings: config keys to choose from: the setting with the best mean over the seeds is chosen.
      follows: an arm whose chosen setting this one uses, instead of ``settings``.
      starts_from: an arm whose weights, at the same seed, this one is initialised from.
      continues: an arm whose runs, at its chosen setting, this one continues to more steps.
      uses: config key -> an arm whose workdir, at the same seed, is the key's value.
      more_steps: steps of the arms that it builds on, for the column of all steps.
      shared: one run, of seed 0, which every seed measures and builds on.
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
    uses: Setting = dataclasses.field(default_factory=dict)
    more_steps: int = 0
    shared: bool = False

    @property
    def leader(self) -> str:
        """The arm whose setting this one uses; empty: it chooses its own."""
        return self.continues or self.follows


@dataclasses.dataclass(frozen=True)
class Difference:
    """``first - second`` of a metric, seed by seed.

    Attributes:
      least: the verdict is ``'higher'`` or ``'lower'`` if all seeds agree in sign and the mean is
        larger than this in size, else ``'tie'``. None: no verdict.
    """

    first: str
    second: str
    metric: str = "psnr"
    least: float | None = None


@dataclasses.dataclass(frozen=True)
class Ratio:
    """One metric over another, seed by seed.

    Attributes:
      text: what is compared, in words.
      first, second: ``'arm metric'`` each.
      below: a limit: the claim ``'holds'`` if all seeds are below it and the mean by more than
        ``least``, ``'fails'`` if all are above it and the mean by more than ``least``, else it is
        a ``'tie'``. None: no claim.
    """

    text: str
    first: str
    second: str
    below: float | None = None
    least: float = 0.0


def compare_pairs(
    metrics: Sequence[str], pairs: Sequence[str], least: float | None = None
) -> tuple[Difference, ...]:
    """Differences of every pair, ``"first second"``, in every metric."""
    return tuple(Difference(*pair.split(), metric, least) for metric in metrics for pair in pairs)


@dataclasses.dataclass(frozen=True)
class Run:
    """One arm at one setting and seed."""

    arm: Arm
    setting: Setting
    seed: int

    @property
    def place(self) -> str:
        """``arm/setting``, as a path."""
        setting = ",".join(f"{key}={text}" for key, text in sorted(self.setting.items()))
        return f"{self.arm.name}/{setting or 'fixed'}"

    @property
    def trained_seed(self) -> int:
        """Of the parameters and of the order of data: ``seed``, but 0 where runs share one."""
        return 0 if self.arm.shared else self.seed

    def __str__(self) -> str:
        return f"{self.place}, seed {self.seed}"


# (config, workdir, seed, scores) -> further metrics
Measure = Callable[[ConfigDict, Path, int, Mapping[str, Any]], Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The design of an experiment.

    Attributes:
      name: also of the default workdir.
      title: of the table.
      arms: in the order in which they run; an arm comes after those it needs.
      seeds: of parameters, data and data order.
      metric: that settings are chosen by; larger is better.
      columns: metrics in the table -> their headings.
      differences: pairs of arms to compare.
      ratios: pairs of metrics to compare.
      measure: gives further metrics of a finished run.
      draw: ``(figure, summary) -> None``, fills a matplotlib figure; None: bars of ``metric``.
      notes: printed under the table.
      gate: ``(arm, least mean)``: if the arm is worse, nothing was learned, and the table says only
        that.
      gate_metric: metric of the gate; empty: ``metric``.
      decimals: of metrics that are not shown with two.
      tried_metrics: further metrics in the list of all settings that were tried.
    """

    name: str
    title: str
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    metric: str = "psnr"
    columns: Mapping[str, str] = dataclasses.field(default_factory=lambda: {"psnr": "PSNR, dB"})
    differences: tuple[Difference, ...] = ()
    ratios: tuple[Ratio, ...] = ()
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
            named = (arm.follows, arm.starts_from, arm.continues, *arm.uses.values())
            for needed in filter(None, named):
                if needed not in seen:
                    raise VidlatentError(f"arm {arm.name} needs {needed}, which must come first.")
            if arm.continues and arm.steps <= seen[arm.continues].steps:
                raise VidlatentError(f"arm {arm.name} must have more steps than {arm.continues}.")
            if arm.name in seen:
                raise VidlatentError(f"two arms are called {arm.name}.")
            seen[arm.name] = arm
        continued = {arm.continues for arm in self.arms}
        for arm in self.arms:
            for before in {arm.starts_from, *arm.uses.values()} & (continued - {""}):
                raise VidlatentError(f"{arm.name} starts from {before}, which goes on.")

    def arm(self, name: str) -> Arm:
        for arm in self.arms:
            if arm.name == name:
                return arm
        known = ", ".join(arm.name for arm in self.arms)
        raise VidlatentError(f"there is no arm {name!r}: take one of {known}.")

    def settings_of(self, arm: Arm) -> tuple[Setting, ...]:
        """The settings that the arm, or the one whose setting it uses, chooses from."""
        return self.settings_of(self.arm(arm.leader)) if arm.leader else arm.settings

    def runs(self, chosen: Mapping[str, Setting]) -> list[Run]:
        """All runs; those of an arm that follows another only once that one's setting is chosen."""
        return [
            Run(arm, setting, seed)
            for arm in self.arms
            for setting, seed in itertools.product(self.tried(arm, chosen), self.seeds)
        ]

    def tried(self, arm: Arm, chosen: Mapping[str, Setting]) -> tuple[Setting, ...]:
        """Settings at which the arm runs; none while the arm it follows has not chosen."""
        if not arm.leader:
            return arm.settings
        leader = self.decider(arm).name
        return (chosen[leader],) if leader in chosen else ()

    def decider(self, arm: Arm) -> Arm:
        """The arm that chooses this one's setting: itself, or the one at the start of the chain."""
        while arm.leader:
            arm = self.arm(arm.leader)
        return arm

    def origin(self, arm: Arm) -> Arm:
        """The arm whose workdirs hold this one's runs: that of the first of continued arms."""
        while arm.continues:
            arm = self.arm(arm.continues)
        return arm


def resolve(run: Run, init_from: str, used: Setting = FIXED) -> ConfigDict:
    """The config of a run.

    Args:
      init_from: workdir that it starts from; '': what the arm's ``train.init_from`` says.
      used: workdirs by key, of ``run.arm.uses``.
    """
    config = configs.load(
        run.arm.config,
        {
            **run.arm.overrides,
            **run.setting,
            **used,
            "seed": str(run.trained_seed),
            "train.steps": str(run.arm.steps),
        },
    )
    if init_from:  # else the arm's own: weights that are the same for all seeds
        with config.unlocked():
            config.train.init_from = init_from
    return config


def hash_design(config: ConfigDict) -> str:
    """Hash of a run's config without paths, to recognise results of another design.

    Only keys that differ from their defaults count, so that a key added later changes nothing.
    """
    copy = ConfigDict(config.to_dict())
    copy.train.init_from = ""
    usual = get_defaults(config.name, config.preset)
    if is_generator(config):
        copy.tokenizer.path = copy.refiner.base = copy.refiner.upsampler = ""
        checkpoint = usual.checkpoint
        usual = get_generator_defaults(config.name, config.preset)
        usual.checkpoint = checkpoint  # as when the first results were stored
    if copy.data.source == "latents":
        copy.data.path = ""
    changed = configs.differences(configs.to_json(usual), configs.to_json(copy))
    return hashlib.sha256("\n".join(changed).encode()).hexdigest()[:16]
