"""Sampling steps with noise whose likelihood is known: a sampler as a policy.

A step is ``z' = a z + b f + std noise`` with ``f`` the network's output, so that ``z'`` given ``z``
is a Gaussian and its log-likelihood has a gradient with respect to the network (Flow-GRPO, Liu et
al. 2025; MixGRPO, Li et al. 2025). The weights of all steps are computed on the host in float64.
Flow-SDE keeps the marginals of the flow's ODE in continuous time; ``cps`` keeps the level of noise
in every step (coefficients-preserving sampling).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vidlatent.diffusion.grids import NoiseGrid
from vidlatent.diffusion.prediction import data_weights
from vidlatent.errors import VidlatentError
from vidlatent.registry import Registry

__all__ = [
    "NOISES",
    "RandomSteps",
    "cps",
    "flow_sde",
    "log_prob",
    "make_random_steps",
    "still",
    "take_mean",
]

# name -> factory(grid, prediction, eta) -> RandomSteps
NOISES = Registry("kind of noise (config.rl.noise)")


class RandomSteps(NamedTuple):
    """Weights of the steps, ``[N]`` float64 each; of one step after indexing.

    Attributes:
      state, output: factors of the state and of the network's output in the mean.
      std: standard deviation of the noise; 0 where there is none.
      spread: ``std / sqrt(sigma - sigma')``, the noise of a unit of time, by which Flow-GRPO's
        published KL divides.
    """

    state: Any
    output: Any
    std: Any
    spread: Any

    def at(self, index: Any, dtype: Any = jnp.float32) -> RandomSteps:
        """The weights of step ``index``, which may be traced."""
        return jax.tree.map(lambda values: jnp.asarray(values, dtype)[index], self)


def flow_sde(grid: NoiseGrid, prediction: str, eta: float) -> RandomSteps:
    """Flow-SDE: ``s = eta sqrt(sigma / (1 - sigma))``, ``dt = sigma' - sigma < 0``,

    ``mean = z (1 + s^2 / (2 sigma) dt) + v (1 + s^2 (1 - sigma) / (2 sigma)) dt``,
    ``std = s sqrt(-dt)``. At sigma 1 the second level stands for sigma in ``1 - sigma`` of ``s``
    alone, as published: the first step's deviation is then exactly eta.

    Raises:
      VidlatentError: the network predicts no velocity, or the grid has a single step from noise.
    """
    if prediction != "velocity":
        raise VidlatentError(
            f"config.rl.noise=flow_sde needs a network that predicts a velocity, not {prediction}: "
            "set config.rl.noise=cps."
        )
    sigma, ahead = grid.sigmas[:-1], np.diff(grid.sigmas)
    inside = np.where(sigma == 1.0, grid.sigmas[1], sigma)
    if eta and np.any(inside * (1.0 - inside) == 0.0):
        raise VidlatentError("a policy needs two steps or more: set config.sampler.steps.")
    spread = eta * np.sqrt(sigma / (1.0 - inside))
    push = spread**2 / (2.0 * sigma)
    return RandomSteps(
        state=1.0 + push * ahead,
        output=(1.0 + push * (1.0 - sigma)) * ahead,
        std=spread * np.sqrt(-ahead),
        spread=spread,
    )


def cps(grid: NoiseGrid, prediction: str, eta: float) -> RandomSteps:
    """``mean = alpha' x0 + sqrt(sigma'^2 - std^2) eps``, ``std = sigma' sin(eta pi / 2)``.

    ``x0`` and ``eps`` are those that the network's output stands for, so this serves any
    prediction and any schedule. The sum of old and fresh noise has the level ``sigma'``. It is for
    few steps: each replaces the same share of the noise, however many there are.

    Raises:
      VidlatentError: eta is above 1, or the prediction does not give ``x0`` at the first level.
    """
    if not 0.0 <= eta <= 1.0:
        raise VidlatentError(f"config.rl.eta={eta}: for noise=cps it is at most 1.")
    alpha, sigma = grid.alphas[:-1], grid.sigmas[:-1]
    std = grid.sigmas[1:] * math.sin(0.5 * math.pi * eta)
    kept = np.sqrt(np.maximum(grid.sigmas[1:] ** 2 - std**2, 0.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        of_state, of_output = data_weights(prediction, alpha, sigma)
        # x0 = p z + q f, and eps = (z - alpha x0) / sigma
        clean = grid.alphas[1:] - kept * alpha / sigma
        found = RandomSteps(
            state=kept / sigma + clean * of_state,
            output=clean * of_output,
            std=std,
            spread=std / np.sqrt(sigma - grid.sigmas[1:]),
        )
    if not all(np.isfinite(values).all() for values in found):
        raise VidlatentError(
            "the network's prediction gives no clean sample at the first noise level: begin below "
            "pure noise (config.sampler.spacing), or train with prediction v or x0."
        )
    return found


def still(grid: NoiseGrid, prediction: str) -> RandomSteps:
    """Steps without noise: Euler's on the flow, DDIM's elsewhere."""
    if prediction == "velocity":
        # The same as cps at eta 0, without its rounding: exactly z + (sigma' - sigma) v.
        return flow_sde(grid, prediction, 0.0)
    return cps(grid, prediction, 0.0)


NOISES.register("flow_sde", flow_sde)
NOISES.register("cps", cps)


def make_random_steps(grid: NoiseGrid, prediction: str, noise: str, eta: float) -> RandomSteps:
    """The steps of ``NOISES[noise]`` on a grid."""
    return NOISES.get(noise)(grid, prediction, eta)


def take_mean(step: RandomSteps, state: jax.Array, output: jax.Array) -> jax.Array:
    """The mean of the next state, of the shape of ``state`` ``[B, ...]``."""
    return step.state * state + step.output * output.astype(state.dtype)


def log_prob(target: jax.Array, mean: jax.Array, std: Any) -> jax.Array:
    """Log-likelihood of ``target`` under ``N(mean, std^2)``, the mean over a sample's elements.

    The mean and not the sum: a latent has so many elements that a sum's ratio of two policies
    would be 0 or infinite, and the published clip ranges are meant for the mean. At least float32.

    Args:
      target, mean: ``[B, ...]``; std: a number above 0.

    Returns:
      ``[B]``.
    """
    wide = jnp.promote_types(target.dtype, jnp.float32)
    distance = (target.astype(wide) - mean.astype(wide)) / std
    each = -0.5 * jnp.square(distance) - jnp.log(std) - 0.5 * math.log(2.0 * math.pi)
    return each.mean(axis=tuple(range(1, each.ndim)))
