"""Targets and losses of step distillation: generators that need fewer steps.

Used by the tasks that train few-step generators, whose samples while they learn are
``few_steps.py``'s. FSVideo (2.4.3) distils its refiner from guidance,
then to half the steps (progressive distillation, Salimans & Ho 2022) and to eight (adversarial
score identity distillation, Zhou et al. 2025). The paper states no formulas; here they are written
for flow matching, where networks predict velocities and ``x0 = x - sigma v``. Arrays are
``[B, ...]``, sigma is ``[B]``, and losses are per sample, ``[B]``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vidlatent.diffusion.flow import interpolate, velocity, x0_from_velocity
from vidlatent.diffusion.grids import NoiseGrid
from vidlatent.diffusion.prediction import data_weights, per_sample
from vidlatent.errors import VidlatentError
from vidlatent.registry import did_you_mean

__all__ = [
    "WEIGHTINGS",
    "HalvedSteps",
    "Interval",
    "ScoreMatch",
    "check_nested",
    "distribution_matching_loss",
    "draw_interval",
    "fake_score_loss",
    "halve_ddim_steps",
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
      target: what the student is to predict at the start, a velocity (``halve_steps``) or a clean
        sample (``halve_ddim_steps``), ``[B, ...]``; no gradient flows to it.
    """

    middle: jax.Array
    end: jax.Array
    target: jax.Array


def halve_steps(teacher: Network, z: jax.Array, sigmas: Any) -> HalvedSteps:
    """Progressive distillation's target: ``(end - z) / (s2 - s0)`` after two Euler steps.

    One Euler step of a student that predicts it ends where two of the teacher's do. The student's
    noise levels are every second one of the teacher's (``flow_grid``).

    Args:
      teacher: frozen.
      z: noisy samples at level ``s0``.
      sigmas: ``s0 > s1 > s2 >= 0``, each ``[B]`` or a scalar; a sequence or ``[3, B]``.
    """
    first, second, last = (_broadcast_level(sigma, z) for sigma in sigmas)
    # Euler on the flow: z' = z + (s' - s) v.
    middle = z + per_sample(second - first, z) * teacher(z, first)
    end = middle + per_sample(last - second, z) * teacher(middle, second)
    target = (end - z) / per_sample(last - first, z)  # the slope of the straight line to the end
    return HalvedSteps(*(lax.stop_gradient(x) for x in (middle, end, target)))


class Interval(NamedTuple):
    """A step of the student and the two of its teacher, for each sample.

    Attributes:
      times: ``[2, B]``, the networks' time input at the start and in the middle.
      alphas, sigmas: ``[3, B]``, the factors of signal and noise at start, middle and end.
    """

    times: jax.Array
    alphas: jax.Array
    sigmas: jax.Array


def draw_interval(grid: NoiseGrid, stride: Any, index: jax.Array) -> Interval:
    """The student's steps ``index`` ``[B]`` on a grid of which it takes every ``stride``-th level.

    Args:
      grid: of a teacher whose steps, or a power of two of them, the student's steps replace.
      stride: steps of ``grid`` in one of the student's: 2 for twice as few; may be traced.
      index: from 0 (the noisiest) to ``grid.steps // stride - 1``.
    """
    times, alphas, sigmas = (jnp.asarray(x, jnp.float32) for x in grid)
    first = index * stride
    places = jnp.stack([first, first + stride // 2, first + stride])
    return Interval(times[places[:2]], alphas[places], sigmas[places])


def check_nested(student: NoiseGrid, teacher: NoiseGrid) -> None:
    """Raise ``VidlatentError`` unless every second level of the teacher is one of the student's.

    Exactly so, since what a network has learned at a level says nothing about its neighbours.
    """
    every_second = [x[::2] for x in teacher]
    if 2 * student.steps != teacher.steps or any(
        not np.array_equal(ours, theirs) for ours, theirs in zip(student, every_second, strict=True)
    ):
        raise VidlatentError(
            f"the noise levels of {student.steps} steps are not every second one of those of "
            f"{teacher.steps}: set config.sampler.spacing to 'clean' (flow matching) or 'trailing' "
            "(DDPM, with config.distill.stages that divide its number of training steps)."
        )


def halve_ddim_steps(
    teacher: Network, z: jax.Array, interval: Interval, prediction: str
) -> HalvedSteps:
    """Progressive distillation for any noise schedule (Salimans & Ho 2022, alg. 2).

    The target is the clean sample with which one DDIM step from ``z`` ends where two of the teacher
    do: ``(end - r z) / (alpha'' - r alpha)`` with ``r = sigma'' / sigma``.

    Args:
      teacher: ``(z, time [B]) -> output`` of the kind ``prediction``.
      z: noisy samples at the start of the interval.
      prediction: see ``prediction.data_weights``.
    """
    times, alphas, sigmas = interval
    states = [z]
    for k in (0, 1):
        x, alpha, sigma = states[-1], per_sample(alphas[k], z), per_sample(sigmas[k], z)
        of_x, of_output = data_weights(prediction, alpha, sigma)
        clean = of_x * x + of_output * teacher(x, times[k])
        kept = per_sample(sigmas[k + 1], z) / sigma
        states.append(per_sample(alphas[k + 1], z) * clean + kept * (x - alpha * clean))
    ratio = per_sample(sigmas[2] / sigmas[0], z)
    span = per_sample(alphas[2], z) - ratio * per_sample(alphas[0], z)
    target = (states[2] - ratio * z) / span
    return HalvedSteps(*(lax.stop_gradient(x) for x in (*states[1:], target)))


class ScoreMatch(NamedTuple):
    """The generator's loss and its parts.

    Attributes:
      loss: ``[B]``.
      teacher, fake: clean samples that the two networks predict from the same noisy ones,
        ``[B, ...]``.
      weight: ``[B]``, the weight of the sample in ``loss``; no gradient flows to it.
    """

    loss: jax.Array
    teacher: jax.Array
    fake: jax.Array
    weight: jax.Array


def score_identity_loss(
    teacher: Network,
    fake: Network,
    x: jax.Array,
    eps: jax.Array,
    sigma: jax.Array,
    alpha: float = 1.0,
    weighting: str = "one_minus_sigma",
) -> ScoreMatch:
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
    y, f = _predict_clean(teacher, fake, x, eps, sigma)
    if weighting == "one_minus_sigma":
        weight = 1.0 - sigma
    else:
        # The error grows with the noise level; dividing by it balances the levels.
        weight = 1.0 / _mean_error(x, y)
    weight = lax.stop_gradient(weight)
    apart = y - f
    return ScoreMatch(weight * _sum_values(apart * ((y - x) - alpha * apart)), y, f, weight)


def distribution_matching_loss(
    teacher: Network, fake: Network, x: jax.Array, eps: jax.Array, sigma: jax.Array
) -> ScoreMatch:
    """Distribution matching distillation's loss of a generator (Yin et al. 2024, DMD2).

    ``1/2 sum |x - constant|^2``, whose gradient to ``x`` is ``w (f - y)`` with ``w`` one over the
    mean of ``|x - y|`` (at least 1e-5, where the publication has no limit). No gradient flows
    through the two networks, which is what tells it from ``score_identity_loss``; arguments are as
    there. A sum over a sample's values: the publication takes the mean.
    """
    y, f = lax.stop_gradient(_predict_clean(teacher, fake, x, eps, sigma))
    weight = lax.stop_gradient(1.0 / _mean_error(x, y))
    wanted = lax.stop_gradient(x - per_sample(weight, x) * (f - y))
    return ScoreMatch(0.5 * _sum_values(jnp.square(x - wanted)), y, f, weight)


def fake_score_loss(fake: Network, x: jax.Array, eps: jax.Array, sigma: jax.Array) -> jax.Array:
    """``|fake(x_sigma) - (eps - x)|^2``: flow matching on the generator's samples, constants here.

    Arguments as of ``score_identity_loss``; a sum over a sample's values, as its counterpart is.
    """
    x = lax.stop_gradient(x)
    noisy = interpolate(x, eps, sigma)
    return _sum_values(jnp.square(fake(noisy, sigma) - velocity(x, eps)))


def _predict_clean(
    teacher: Network, fake: Network, x: jax.Array, eps: jax.Array, sigma: jax.Array
) -> tuple[jax.Array, jax.Array]:
    noisy = interpolate(x, eps, sigma)
    y, f = (x0_from_velocity(noisy, network(noisy, sigma), sigma) for network in (teacher, fake))
    return y, f


def _mean_error(x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean of ``|x - y|`` of each sample, ``[B]``, at least 1e-5."""
    return jnp.maximum(jnp.abs(x - y).mean(axis=tuple(range(1, x.ndim))), 1e-5)


def _broadcast_level(sigma: Any, z: jax.Array) -> jax.Array:
    return jnp.broadcast_to(jnp.asarray(sigma, z.dtype), z.shape[:1])


def _sum_values(values: jax.Array) -> jax.Array:
    return values.sum(axis=tuple(range(1, values.ndim)))
