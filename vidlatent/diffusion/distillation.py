"""Targets and losses of step distillation: generators that need fewer steps.

Used by the tasks that train few-step generators. FSVideo (2.4.3) distils its refiner from guidance,
then to half the steps (progressive distillation, Salimans & Ho 2022) and to eight (adversarial
score identity distillation, Zhou et al. 2025). The paper states no formulas; here they are written
for flow matching, where networks predict velocities and ``x0 = x - sigma v``. Arrays are
``[B, ...]``, sigma is ``[B]``, and losses are per sample, ``[B]``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from vidlatent.diffusion.flow import interpolate, velocity, x0_from_velocity
from vidlatent.diffusion.prediction import per_sample
from vidlatent.errors import VidlatentError
from vidlatent.registry import did_you_mean

__all__ = [
    "WEIGHTINGS",
    "HalvedSteps",
    "ScoreIdentity",
    "fake_score_loss",
    "halve_steps",
    "score_identity_loss",
]

# ``(x [B, ...], sigma [B]) -> velocity [B, ...]``
Network = Callable[[jax.Array, jax.Array], jax.Array]

WEIGHTINGS = ("one_minus_sigma", "inverse_error")


class HalvedSteps(NamedTuple):
    """Two steps of a teacher, and the velocity with which one step leads to the same place.

    Attributes:
      middle, end: the teacher's samples after its first and its second step, ``[B, ...]``.
      target: what the student is to predict at the start, ``[B, ...]``; no gradient flows to it.
    """

    middle: jax.Array
    end: jax.Array
    target: jax.Array


def halve_steps(teacher: Network, z: jax.Array, sigmas: Sequence[Any]) -> HalvedSteps:
    """Progressive distillation's target: ``(end - z) / (s2 - s0)`` after two Euler steps.

    One Euler step of a student that predicts it ends where two of the teacher's do. The student's
    noise levels are every second one of the teacher's (``flow_grid``).

    Args:
      teacher: frozen.
      z: noisy samples at level ``s0``.
      sigmas: ``s0 > s1 > s2 >= 0``, each ``[B]`` or a scalar.
    """
    first, second, last = (_broadcast_level(sigma, z) for sigma in sigmas)
    # Euler on the flow: z' = z + (s' - s) v.
    middle = z + per_sample(second - first, z) * teacher(z, first)
    end = middle + per_sample(last - second, z) * teacher(middle, second)
    target = (end - z) / per_sample(last - first, z)  # the slope of the straight line to the end
    return HalvedSteps(*(lax.stop_gradient(x) for x in (middle, end, target)))


class ScoreIdentity(NamedTuple):
    """The generator's loss and its parts.

    Attributes:
      loss: ``[B]``.
      teacher, fake: clean samples that the two networks predict from the same noisy ones.
    """

    loss: jax.Array
    teacher: jax.Array
    fake: jax.Array


def score_identity_loss(
    teacher: Network,
    fake: Network,
    x: jax.Array,
    eps: jax.Array,
    sigma: jax.Array,
    alpha: float = 1.0,
    weighting: str = "one_minus_sigma",
) -> ScoreIdentity:
    """Score identity distillation's loss of a generator (Zhou et al. 2024, in flow form).

    ``sum w (y - f) ((y - x) - alpha (y - f))`` over a sample's values, where ``y`` and ``f`` are
    the clean samples that teacher and fake score predict from ``x`` with noise of level ``sigma``.
    It is 0 where the two agree. The gradient to ``x`` flows through both networks; differentiate
    with respect to the generator's parameters only, so that theirs stay constant.

    Args:
      teacher: has seen the data.
      fake: has seen the generator's samples (``fake_score_loss``).
      x: samples of the generator.
      eps: noise of their shape.
      sigma: ``[B]``.
      alpha: 1 leaves ``w (y - f) (f - x)``; the published range is 0.5 to 1.2.
      weighting: ``'one_minus_sigma'``, or ``'inverse_error'``: one over the mean of ``|x - y|``, at
        least 1e-5, a constant to differentiation (the first publication's).

    Raises:
      VidlatentError: unknown weighting.
    """
    if weighting not in WEIGHTINGS:
        hint = did_you_mean(weighting, WEIGHTINGS)
        raise VidlatentError(f"unknown weighting of score identity {weighting!r}: {hint}")
    noisy = interpolate(x, eps, sigma)
    y, f = (x0_from_velocity(noisy, network(noisy, sigma), sigma) for network in (teacher, fake))
    if weighting == "one_minus_sigma":
        weight = 1.0 - sigma
    else:
        # The error grows with the noise level; dividing by it balances the levels.
        error = jnp.abs(x - y).mean(axis=tuple(range(1, x.ndim)))
        weight = lax.stop_gradient(1.0 / jnp.maximum(error, 1e-5))
    apart = y - f
    return ScoreIdentity(weight * _sum_values(apart * ((y - x) - alpha * apart)), y, f)


def fake_score_loss(fake: Network, x: jax.Array, eps: jax.Array, sigma: jax.Array) -> jax.Array:
    """``|fake(x_sigma) - (eps - x)|^2``: flow matching on the generator's samples, constants here.

    Arguments as of ``score_identity_loss``; a sum over a sample's values, as its counterpart is.
    """
    x = lax.stop_gradient(x)
    noisy = interpolate(x, eps, sigma)
    return _sum_values(jnp.square(fake(noisy, sigma) - velocity(x, eps)))


def _broadcast_level(sigma: Any, z: jax.Array) -> jax.Array:
    return jnp.broadcast_to(jnp.asarray(sigma, z.dtype), z.shape[:1])


def _sum_values(values: jax.Array) -> jax.Array:
    return values.sum(axis=tuple(range(1, values.ndim)))
