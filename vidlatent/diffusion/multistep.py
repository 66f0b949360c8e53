"""Multistep exponential integrators on the clean sample: UniPC and DPM-Solver++ 2M.

In ``lambda = ln(alpha / sigma)`` the exact step is ``x' = (sigma'/sigma) x + alpha' int e^{..} m``
with the clean sample ``m`` (DPM-Solver++ eq. 8). The solvers integrate a polynomial through the
last few ``m`` instead. UniPC (Zhao et al. 2023) adds a corrector that also uses the new ``m``,
without a further evaluation of the network.
"""

from __future__ import annotations

import math

import numpy as np

from vidlatent.diffusion.grids import NoiseGrid
from vidlatent.diffusion.samplers import SamplerPlan, data_columns, make_plan
from vidlatent.errors import VidlatentError
from vidlatent.registry import did_you_mean

__all__ = ["SOLVER_TYPES", "dpmpp_2m", "unipc"]

SOLVER_TYPES = ("bh1", "bh2")
# Pure noise has lambda = -inf. The weights have converged long before alpha is this small.
_LEAST_ALPHA = 1e-6


def unipc(
    grid: NoiseGrid,
    prediction: str = "velocity",
    order: int = 2,
    solver_type: str = "bh2",
    disable_corrector: tuple[int, ...] = (),
    corrector: bool = True,
    lower_order_final: bool = True,
) -> SamplerPlan:
    """UniPC on the clean sample (Zhao et al. 2023, alg. 1-4).

    FSVideo takes 30 steps and does not name its solver; this is the default of Wan2.1, on which it
    builds.

    Args:
      order: 1 to 3, of the predictor; the corrector has one more.
      solver_type: ``'bh2'`` (``B(h) = e^{-h} - 1``) or ``'bh1'`` (``B(h) = -h``).
      disable_corrector: steps whose result is not corrected.
      corrector: False leaves the predictors alone.
      lower_order_final: the last steps fall back to order 1. A grid that ends at level 0 needs it,
        because lambda is infinite there.
    """
    if order not in (1, 2, 3):
        raise VidlatentError(f"config.sampler.order of unipc must be 1, 2 or 3, got {order}.")
    if solver_type not in SOLVER_TYPES:
        hint = did_you_mean(solver_type, SOLVER_TYPES)
        raise VidlatentError(f"unknown config.sampler.solver_type {solver_type!r}: {hint}")
    steps = grid.steps
    # A predictor of order p takes p - 1 earlier samples beside m. The corrector takes p, as the new
    # m comes on top.
    keep = order if corrector else order - 1
    predict = np.zeros((steps, 2 + keep))
    correct = np.zeros((steps, 3 + keep))
    # Where nothing is corrected, x stays as it is.
    correct[:, 0] = 1.0
    used = 0
    for i in range(steps):
        # The corrector of step i - 1 needs the network's output at its end, which step i computes.
        if corrector and i > 0 and i - 1 not in disable_corrector:
            correct[i] = 0.0
            # It repeats the last predictor's step, in the order that was used there.
            of_last, weights = _step(grid, i - 1, used, solver_type, corrects=True)
            correct[i, 1] = of_last
            correct[i, 2 : 2 + len(weights)] = weights
        # The first steps have too little history for the full order.
        used = min(order, i + 1, steps - i if lower_order_final else order)
        predict[i, 0], weights = _step(grid, i, used, solver_type, corrects=False)
        predict[i, 1 : 1 + len(weights)] = weights
    convert = data_columns(grid, prediction)
    return make_plan(grid, convert, predict, correct=correct if corrector else None)


def dpmpp_2m(
    grid: NoiseGrid, prediction: str = "epsilon", lower_order_final: bool | None = None
) -> SamplerPlan:
    """DPM-Solver++(2M) (Lu et al. 2022, alg. 2), the sampler of PixArt and Reducio-DiT.

    Args:
      lower_order_final: whether the last step has order 1; None: if there are fewer than 10 steps
        (as in the authors' code) or the grid ends at level 0, where order 2 is not defined.
    """
    steps = grid.steps
    if lower_order_final is None:
        lower_order_final = steps < 10 or grid.sigmas[-1] == 0
    predict = np.zeros((steps, 3))
    for i in range(steps):
        # The first step has no earlier sample.
        order = 1 if i == 0 or (lower_order_final and i == steps - 1) else 2
        predict[i, 0], weights = _step(grid, i, order, "bh2", corrects=False)
        predict[i, 1 : 1 + len(weights)] = weights
    return make_plan(grid, data_columns(grid, prediction), predict)


def _step(grid: NoiseGrid, s: int, order: int, solver_type: str, corrects: bool):
    """Weights of the step from level ``s`` to ``s + 1``.

    Returns:
      The weight of the state at ``s``, and those of the clean samples ``m_{s+1}`` (corrector
      only), ``m_s``, ``m_{s-1}``, ...
    """
    log_ratio = _log_ratio(grid)
    h = log_ratio[s + 1] - log_ratio[s]
    alpha = grid.alphas[s + 1]
    of_state = grid.sigmas[s + 1] / grid.sigmas[s]
    phi = np.expm1(-h)
    # Where earlier samples lie, in units of this step: below 0.
    points = [(log_ratio[s - j] - log_ratio[s]) / h for j in range(1, order)]
    scale = phi if solver_type == "bh2" else -h
    slopes = _slopes(points, h, phi, scale, order, corrects)
    of_data = np.zeros(order)
    of_data[0] = -alpha * phi
    new = 0.0
    if len(slopes) and not np.all(np.isfinite(slopes)):
        # The step ends at level 0 with too high an order: make_plan says so to the user.
        of_data[:] = np.nan
    elif len(slopes):
        # The divided difference at a point r is (m(r) - m_s) / r; the new m lies at r = 1.
        parts = -alpha * scale * slopes / np.array(points + [1.0])[: len(slopes)]
        of_data[0] -= parts.sum()
        of_data[1:] += parts[: order - 1]
        new = parts[-1]
    return of_state, ([new] if corrects else []) + list(of_data)


def _slopes(points, h, phi, scale, order, corrects):
    """The ``rho`` of UniPC eq. 5, for the earlier points (and the new one)."""
    # Orders 1 (corrector) and 2 (predictor) use the limit 1/2 instead of solving for it, as the
    # authors' code does.
    if corrects and order == 1:
        return np.array([0.5])
    if not corrects and order == 1:
        return np.zeros(0)
    if not corrects and order == 2:
        return np.array([0.5 if np.isfinite(h) else np.nan])
    if not np.isfinite(h):
        return np.full(order if corrects else order - 1, np.nan)
    # b_n = g_n n! / B(h), with the recursion of the authors' code for g_n.
    rights, g = [], phi / -h - 1.0
    for n in range(1, order + 1):
        rights.append(g * math.factorial(n) / scale)
        g = g / -h - 1.0 / math.factorial(n + 1)
    # A Vandermonde system; the new sample lies at 1. A predictor lacks it, and one row with it.
    powers = np.array([[r**n for r in (*points, 1.0)] for n in range(order)])
    if corrects:
        return np.linalg.solve(powers, rights)
    return np.linalg.solve(powers[:-1, :-1], rights[:-1])


def _log_ratio(grid: NoiseGrid) -> np.ndarray:
    # sigma 0 gives infinity, which the weights of order 1 bear.
    with np.errstate(divide="ignore"):
        return np.log(np.maximum(grid.alphas, _LEAST_ALPHA)) - np.log(grid.sigmas)
