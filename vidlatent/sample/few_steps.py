"""Sampling a distilled generator as it was distilled: its own steps, and no guidance on top.

Each is refused otherwise, in one sentence; ``config.sampler.force`` samples it all the same.
"""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from vidlatent import config as configs
from vidlatent.errors import VidlatentError
from vidlatent.latents.distilled import BuiltInGuidance, Distilled, StepGrid, effective_scales

__all__ = ["follow_distilled", "settle_sampler"]

# Keys of ``config.sampler`` that a grid of steps decides, and where it holds them.
_OF_GRID = {
    "name": "solver",
    "steps": "steps",
    "spacing": "spacing",
    "shift": "shift",
    "eta": "eta",
}
# Keys of ``config.sampler.guidance`` that say how two evaluations are combined, and their values
# when they say nothing.
_OF_TWO = {"interval": (), "rescale": 0.0, "negative": ""}


def follow_distilled(config: ConfigDict, workdir: Path, step: int) -> ConfigDict:
    """The config with the sampler that the checkpoint of ``step`` was distilled for.

    Keys that the caller has set, so that they differ from those of the run, stay as they are;
    ``settle_sampler`` looks at them.

    Args:
      config: of the run in ``workdir``, with overrides.
    """
    known = Distilled.load(workdir)
    grid = known and known.grid_at(step)
    if not grid:
        return config
    stored, config = configs.read(workdir), config.copy_and_resolve_references()
    with config.unlocked():
        for key, field in _OF_GRID.items():
            if config.sampler[key] == stored.sampler[key]:
                config.sampler[key] = getattr(grid, field)
    return config


def settle_sampler(config: ConfigDict, known: Distilled | None, step: int) -> ConfigDict:
    """The config for the sampling of a generator into which ``known`` is built.

    Asking for the scale that is built in is asking for no more guidance.

    Args:
      config: of the run, with overrides.
      known: of its workdir; None for a generator that was not distilled.
      step: of the checkpoint.

    Raises:
      VidlatentError: other steps, or other guidance.
    """
    if known is None or config.sampler.force:
        return config
    if grid := known.grid_at(step):
        _check_grid(config, grid)
    if known.guidance is not None:
        return _settle_guidance(config, known.guidance)
    if grid:
        _check_unguided(config)
    return config


def _check_grid(config: ConfigDict, grid: StepGrid) -> None:
    pairs = {
        f"config.sampler.{key}": (config.sampler[key], getattr(grid, field))
        for key, field in _OF_GRID.items()
        if key != "eta" or config.sampler.name == "ddim"  # others do not read it
    }
    for name, value in config.diffusion.schedule.items():
        value = list(value) if isinstance(value, tuple) else value
        pairs[f"config.diffusion.schedule.{name}"] = value, grid.schedule.get(name)
    for key, (asked, learned) in pairs.items():
        if asked != learned:
            raise VidlatentError(
                f"{key}={asked!r}, but this generator was distilled to {grid.steps} steps with "
                f"{learned!r} and knows no other noise levels: leave it out, or set "
                "config.sampler.force=True."
            )


def _check_unguided(config: ConfigDict) -> None:
    """A student of a teacher without guidance: its steps lead to unguided samples."""
    if asked := tuple(map(float, config.sampler.guidance.scales)):
        raise VidlatentError(
            f"config.sampler.guidance.scales={asked}, but this generator learned its steps without "
            "guidance: set it to (), build guidance into the teacher first (the task "
            "distill_guidance), or set config.sampler.force=True."
        )


def _settle_guidance(config: ConfigDict, guidance: BuiltInGuidance) -> ConfigDict:
    for name, nothing in _OF_TWO.items():
        value = config.sampler.guidance[name]
        if (tuple(value) if name == "interval" else value) != nothing:
            raise VidlatentError(
                f"config.sampler.guidance.{name}={value!r} says how two evaluations are combined, "
                f"but this generator has its guidance built in and is evaluated once: set it to "
                f"{nothing!r}, or set config.sampler.force=True."
            )
    asked = tuple(map(float, config.sampler.guidance.scales))
    if guidance.scale_range:
        low, high = guidance.told
        if len(asked) != 1 or not low <= asked[0] <= high:
            raise VidlatentError(
                f"config.sampler.guidance.scales={asked}: this generator takes one scale from "
                f"{low:g} to {high:g} as an input: give such a one, or set "
                "config.sampler.force=True for one beyond."
            )
        return config
    if not asked:
        return config
    if asked != effective_scales(guidance.scales, guidance.convention):
        raise VidlatentError(
            f"config.sampler.guidance.scales={asked}, but this generator has {guidance} built in, "
            "and cannot be guided otherwise: leave it out, or set config.sampler.force=True to "
            "guide it twice."
        )
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.sampler.guidance.scales = ()
    return config
