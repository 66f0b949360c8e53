"""The noise levels that a sampler steps through, computed on the host in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vidlatent.errors import VidlatentError
from vidlatent.registry import did_you_mean

__all__ = [
    "FLOW_SPACINGS",
    "NoiseGrid",
    "flow_grid",
    "make_grid",
    "shift_for_tokens",
    "shift_levels",
]

FLOW_SPACINGS = ("clean", "diffusers_unipc", "wan_unipc", "diffusers_euler")


class NoiseGrid(NamedTuple):
    """``N`` steps through ``N + 1`` noise levels.

    Attributes:
      times: ``[N]``, the network's time input at each step.
      alphas, sigmas: ``[N + 1]``, the factors of signal and noise; sigmas are decreasing.
    """

    times: np.ndarray
    alphas: np.ndarray
    sigmas: np.ndarray

    @property
    def steps(self) -> int:
        return len(self.times)


def make_grid(times: Sequence, alphas: Sequence, sigmas: Sequence) -> NoiseGrid:
    """A checked ``NoiseGrid`` in float64.

    Raises:
      VidlatentError: lengths that do not fit, or noise levels that do not fall to at least 0.
    """
    grid = NoiseGrid(*(np.asarray(x, np.float64) for x in (times, alphas, sigmas)))
    if grid.steps < 1 or not len(grid.alphas) == len(grid.sigmas) == grid.steps + 1:
        raise VidlatentError(
            f"a sampler needs N >= 1 times and N + 1 noise levels, got {grid.steps} times, "
            f"{len(grid.sigmas)} levels: set config.sampler.steps or config.sampler.sigmas."
        )
    if not (np.all(np.diff(grid.sigmas) < 0) and grid.sigmas[-1] >= 0):
        raise VidlatentError(
            "noise levels must fall at every step and end at 0 or above: set fewer "
            "config.sampler.steps or another config.sampler.spacing."
        )
    return grid


def shift_levels(level, shift: float):
    """``a u / (1 + (a - 1) u)``: moves levels in [0, 1] towards noise for ``a > 1``.

    Esser et al. 2024, eq. 23. The odds ``u / (1 - u)`` are multiplied by ``a``; so 0 and 1 stay,
    and shifts by ``a`` and ``b`` one after the other are one by ``a b``.

    Args:
      level: a number or an array of any shape; the result has it too.
    """
    return shift * level / (1.0 + (shift - 1.0) * level)


def shift_for_tokens(
    tokens: int, base_tokens: int = 1984, base_shift: float = 5.0, least: float = 1.0
) -> float:
    """A shift that grows with the root of the number of tokens.

    The larger a sample, the less of it noise of a given level hides: the mean over ``n`` tokens has
    ``sqrt(n)`` times less noise than one token (Esser et al. 2024, 5.3.2). The defaults give 5 for
    a clip of 121x512x512 at FSVideo's compression and 1 for small images. FSVideo does not state
    its training shift.
    """
    return max(least, base_shift * math.sqrt(tokens / base_tokens))


def flow_grid(
    steps: int,
    shift: float = 1.0,
    spacing: str = "clean",
    sigmas: Sequence[float] | None = None,
) -> NoiseGrid:
    """Levels of the flow-matching path, from pure noise to 0; the time input is ``1000 sigma``.

    Args:
      steps: N.
      shift: ``a`` of ``shift_levels``.
      spacing: ``'clean'`` (evenly from 1 to 0, then shifted: the one to use), or a grid of public
        code, for parity: ``'diffusers_unipc'`` and ``'wan_unipc'``, which truncate times to whole
        numbers, and ``'diffusers_euler'``, which shifts its smallest level twice and whose last
        step goes only from about 0.001 to 0.
      sigmas: the levels before shifting and without the last 0, instead of a spacing.

    Raises:
      VidlatentError: unknown spacing, a shift that is not positive, levels that do not fall.
    """
    if not shift > 0:
        raise VidlatentError(f"config.sampler.shift must be above 0, got {shift}.")
    if spacing not in FLOW_SPACINGS:
        hint = did_you_mean(spacing, FLOW_SPACINGS)
        raise VidlatentError(f"unknown config.sampler.spacing {spacing!r}: {hint}")
    if steps < 1:
        raise VidlatentError(f"config.sampler.steps must be at least 1, got {steps}.")
    if sigmas is not None:
        if len(sigmas) != steps:
            raise VidlatentError(
                f"config.sampler.sigmas has {len(sigmas)} levels for {steps} steps: give one for "
                "each."
            )
        levels = shift_levels(np.asarray(sigmas, np.float64), shift)
    elif spacing == "clean":
        levels = shift_levels(1.0 - np.arange(steps) / steps, shift)
    elif spacing == "diffusers_unipc":
        levels = shift_levels(np.linspace(1.0, 1e-3, steps + 1)[:-1], shift)
        # Diffusers avoids lambda = -inf at pure noise in this way.
        levels[0] = min(levels[0], 1.0 - 1e-6)
    elif spacing == "wan_unipc":
        levels = shift_levels(np.linspace(1.0 - 1e-3, 0.0, steps + 1)[:-1], shift)
    else:
        levels = shift_levels(np.linspace(1.0, shift_levels(1e-3, shift), steps), shift)
    times = 1000.0 * levels
    if sigmas is None and spacing in ("diffusers_unipc", "wan_unipc"):
        times = np.trunc(times)  # their schedulers cast times to int64
    # A sampler of N steps has N + 1 levels; the last is clean data.
    levels = np.append(levels, 0.0)
    return make_grid(times, 1.0 - levels, levels)
