"""The mathematics of diffusion: schedules, training targets, samplers, guidance, step caching.

A schedule and a sampler come from plain dicts, as in a config::

    schedule = make_schedule({"name": "flow", "shift": 5.0})
    plan = make_sampler(schedule, {"name": "unipc", "steps": 30, "order": 2})
    x = sample(plan, denoise, starting_noise(key, shape)).x
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from vidlatent.diffusion.ddpm import Diffusion
from vidlatent.diffusion.flow import Flow
from vidlatent.diffusion.grids import NoiseGrid
from vidlatent.diffusion.samplers import (
    Carry,
    Result,
    SamplerPlan,
    advance,
    draw_starting_noise,
    sample,
    start,
)
from vidlatent.errors import VidlatentError
from vidlatent.registry import Registry, did_you_mean

__all__ = [
    "SAMPLERS",
    "SCHEDULES",
    "Carry",
    "Diffusion",
    "Flow",
    "NoiseGrid",
    "Result",
    "SamplerPlan",
    "advance",
    "draw_starting_noise",
    "make_sampler",
    "make_schedule",
    "sample",
    "sampler_options",
    "start",
]

SCHEDULES = Registry("noise schedule")
SCHEDULES.register("flow", "vidlatent.diffusion.flow:Flow")
SCHEDULES.register("linear", "vidlatent.diffusion.ddpm:linear")
SCHEDULES.register("scaled_linear", "vidlatent.diffusion.ddpm:scaled_linear")
SCHEDULES.register("cosine", "vidlatent.diffusion.ddpm:cosine")

# name -> factory(grid, ...) -> Plan
SAMPLERS = Registry("sampler")
SAMPLERS.register("euler", "vidlatent.diffusion.samplers:euler")
SAMPLERS.register("fresh", "vidlatent.diffusion.samplers:fresh")
SAMPLERS.register("fixed", "vidlatent.diffusion.samplers:fixed")
SAMPLERS.register("ddim", "vidlatent.diffusion.samplers:ddim")
SAMPLERS.register("ancestral", "vidlatent.diffusion.samplers:ancestral")
SAMPLERS.register("unipc", "vidlatent.diffusion.multistep:unipc")
SAMPLERS.register("dpmpp_2m", "vidlatent.diffusion.multistep:dpmpp_2m")


def make_schedule(config: Mapping[str, Any]) -> Flow | Diffusion:
    """The schedule ``config['name']`` with the other entries as its options.

    Raises:
      VidlatentError: no name, unknown name or option, or a value out of range.
    """
    options = dict(config)
    factory = SCHEDULES.get(_pop(options, "name", "config.diffusion.schedule"))
    _check("config.diffusion.schedule", options, inspect.signature(factory).parameters)
    return factory(**options)


def make_sampler(schedule: Flow | Diffusion, config: Mapping[str, Any]) -> SamplerPlan:
    """The sampler ``config['name']`` with ``config['steps']`` steps on a schedule.

    Other entries are options of ``schedule.grid`` (``shift``, ``spacing``, ...) or of the sampler
    (``order``, ``eta``, ...). Prediction and variance are the schedule's.

    Raises:
      VidlatentError: no name or steps, unknown name or option, or a value out of range.
    """
    options = dict(config)
    factory = SAMPLERS.get(_pop(options, "name", "config.sampler"))
    of_grid = inspect.signature(schedule.grid).parameters
    of_solver = dict(inspect.signature(factory).parameters)
    del of_solver["grid"]
    # What the network predicts is settled by its training. The variance may be chosen anew.
    own = {k: getattr(schedule, k) for k in ("prediction", "variance") if k in of_solver}
    open_to_config = [k for k in of_solver if k != "prediction"]
    _check("config.sampler", options, (*of_grid, *open_to_config))
    if "steps" not in options:
        raise VidlatentError("the sampler has no number of steps: set config.sampler.steps.")
    grid = schedule.grid(**{k: v for k, v in options.items() if k in of_grid})
    return factory(grid, **{**own, **{k: v for k, v in options.items() if k in of_solver}})


def sampler_options(
    schedule: Flow | Diffusion, config: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Select from the options of all samplers those of the sampler ``config['name']``.

    Left out are options of other samplers and grids, and unset ones: an empty ``spacing`` and a
    ``shift`` of 0.

    Returns:
      The options for ``make_sampler``, and the names of options that were left out although they
      differ from their defaults.

    Raises:
      VidlatentError: no name, or an unknown one.
    """
    named = _pop(dict(config), "name", "config.sampler")
    SAMPLERS.get(named)
    unset = {"spacing": "", "shift": 0.0}
    grids = (schedule.grid, Flow.grid, Diffusion.grid)
    factories = [SAMPLERS.get(name) for name in (named, *SAMPLERS.names())]
    own, found, odd = (*_options_of(grids[0]), *_options_of(factories[0])), {}, []
    # Reversed, so that the named sampler's own default wins where names are shared.
    others = {k: v for f in reversed((*grids, *factories)) for k, v in _options_of(f).items()}
    for option, value in config.items():
        if option in unset and value == unset[option]:
            continue
        if option in own or option not in others:
            found[option] = value
        elif value != others[option].default:
            odd.append(option)
    return found, odd


def _options_of(function: Any) -> dict[str, inspect.Parameter]:
    """Parameters of a grid or a sampler that a config may set."""
    # The caller gives these itself.
    closed = ("self", "grid", "prediction", "steps")
    known = inspect.signature(function).parameters
    return {name: about for name, about in known.items() if name not in closed}


def _pop(options: dict[str, Any], key: str, section: str) -> Any:
    if key not in options:
        raise VidlatentError(f"{section} has no {key}: set {section}.{key}.")
    return options.pop(key)


def _check(section: str, options: Mapping[str, Any], known) -> None:
    for option in options:
        if option not in known:
            hint = did_you_mean(option, known)
            raise VidlatentError(f"unknown option {section}.{option}: {hint}")
