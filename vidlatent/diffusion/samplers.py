"""Samplers as plans: the host computes the weights of every step, one ``lax.scan`` runs them.

All solvers here are linear in the states and in the network's outputs, so that a table of weights
describes any of them and one compiled step serves all. A step at ``x`` does

1. ``f = denoise(x, t, index)``, one evaluation of the network;
2. ``m = a x + b f``: what the solver stores, the clean sample or the velocity itself;
3. corrector: ``x <- w . (x, x of the last step, m, m of earlier steps)``;
4. predictor: ``x <- w . (x, m, m of earlier steps) + s noise``.

Weights are float64 on the host and enter the loop in float32, as the states do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vidlatent.diffusion.grids import NoiseGrid
from vidlatent.diffusion.prediction import data_weights
from vidlatent.errors import VidlatentError
from vidlatent.registry import did_you_mean

__all__ = [
    "VARIANCES",
    "Denoise",
    "Result",
    "Carry",
    "SamplerPlan",
    "StepWeights",
    "advance",
    "ancestral",
    "apply_step",
    "data_columns",
    "ddim",
    "draw_starting_noise",
    "euler",
    "fixed",
    "fresh",
    "make_plan",
    "posterior_weights",
    "sample",
    "start",
]

Denoise = Callable[..., Any]
VARIANCES = ("fixed_small", "fixed_large", "learned_range")


class StepWeights(NamedTuple):
    """The weights of a step; in a ``SamplerPlan`` each has a leading axis of ``N`` steps.

    Attributes:
      time: the network's time input.
      convert: ``[2]`` of (x, f).
      correct: ``[3 + K]`` of (x, last x, m, earlier m from the newest), or None.
      predict: ``[2 + K]`` of (x, m, earlier m from the newest).
      noise: standard deviation; with ``log_range`` 1 or 0.
      log_range: ``[2]``, least and greatest log-variance that the network chooses between
        (IDDPM eq. 15), or None.
    """

    time: Any
    convert: Any
    correct: Any
    predict: Any
    noise: Any
    log_range: Any = None


class SamplerPlan(NamedTuple):
    """A sampler with its steps: the grid and the weights.

    Attributes:
      grid: times and noise levels.
      rows: weights, float64, leading axis ``N``.
      history: how many earlier m the solver needs.
    """

    grid: NoiseGrid
    rows: StepWeights
    history: int = 0

    @property
    def nfe(self) -> int:
        """Evaluations of ``denoise``, one per step."""
        return self.grid.steps

    @property
    def levels(self) -> np.ndarray:
        """Noise level at which each step evaluates the network, ``[N]``."""
        return self.grid.sigmas[:-1]

    @property
    def random(self) -> bool:
        """Whether steps add noise."""
        return bool(np.any(self.rows.noise != 0))


class Result(NamedTuple):
    """What ``sample`` returns.

    Attributes:
      x: the sample, ``[B, ...]``.
      state: the denoiser's last state; None if it has none.
      trajectory: ``[N + 1, B, ...]`` if asked for: the start and the state after every step.
    """

    x: jax.Array
    state: Any = None
    trajectory: jax.Array | None = None


class Carry(NamedTuple):
    """What a step hands on to the next one.

    Attributes:
      x: the sample, ``[B, ...]``.
      last: the corrected sample of the step before; None without a corrector.
      past: earlier m, newest first.
      state: the denoiser's; None if it has none.
    """

    x: jax.Array
    last: jax.Array | None
    past: tuple[jax.Array, ...]
    state: Any = None


def sample(
    plan: SamplerPlan,
    denoise: Denoise,
    x: jax.Array,
    key: jax.Array | None = None,
    *,
    noise: jax.Array | None = None,
    state: Any = None,
    trajectory: bool = False,
) -> Result:
    """Run the plan on a batch of states; traceable, one compiled step whatever ``N`` is.

    Args:
      plan: from a factory in ``diffusion.SAMPLERS``.
      denoise: ``(x [B, ...], t [B], index) -> f``, with conditions and parameters in its closure
        and the step as a traced int32 ``index``. ``f`` has the shape of ``x``, or twice its last
        axis: the second half is then the learned variance, which only ``ancestral`` uses. With
        ``state`` it is ``(x, t, index, state) -> (f, state)``.
      x: ``[B, ..., C]``, at the first level of the grid. All grids here start at (almost) pure
        noise, so this is standard normal noise.
      key: of the noise that steps add; one key, or ``[B]`` of them, which make a sample independent
        of the batch that it is in. None for a sampler that adds none.
      noise: ``[N, B, ...]``, the noise itself instead of a key.
      state: the denoiser's first state, any pytree; None for a denoiser without one.
      trajectory: return all states.

    Raises:
      VidlatentError: a random plan without a key or noise.
    """
    if plan.random and key is None and noise is None:
        raise VidlatentError("this sampler adds noise: give it a key or the noise.")
    begun = start(plan, x, state)
    noise = noise if plan.random else None
    end, states = _scan(plan, denoise, begun, jnp.arange(plan.nfe), key, noise, trajectory)
    if trajectory:
        states = jnp.concatenate([begun.x[None], states])
    return Result(end.x, end.state, states)


def start(plan: SamplerPlan, x: jax.Array, state: Any = None) -> Carry:
    """What ``advance`` takes at the first step; arguments as of ``sample``."""
    # States stay float32 even for bfloat16 networks: steps add small differences.
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    past = tuple(jnp.zeros_like(x) for _ in range(plan.history))
    # Only a corrector needs the last sample; without one the carry has no place for it.
    return Carry(x, None if plan.rows.correct is None else x, past, state)


def advance(
    plan: SamplerPlan, denoise: Denoise, carry: Carry, index: Any, key: jax.Array | None
) -> Carry:
    """One step of the plan: all of them one after the other are ``sample``.

    For callers that want to look up between steps; ``index`` may be traced, so that one compiled
    program serves all steps. Arguments as of ``sample``.
    """
    return _scan(plan, denoise, carry, jnp.asarray(index)[None], key, None, False)[0]


def _scan(plan, denoise, carry, indices, key, noise, trajectory):
    """Steps ``indices`` of a plan: ``(Carry, states after each of them if asked for)``."""

    def body(carry, inputs):
        x, last, past, state = carry
        index, row, given = inputs
        drawn = given
        # Drawn inside the loop: the noise of all steps at once would take N times the memory of x.
        if plan.random and noise is None:
            drawn = _draw_noise(key, index, x)

        def evaluate(x, t, state):
            if state is None:
                return denoise(x, t, index), None
            return denoise(x, t, index, state)

        new, kept, past, state = apply_step(row, evaluate, x, last, past, state, drawn)
        return Carry(new, kept, past, state), (new if trajectory else None)

    rows = jax.tree.map(lambda a: jnp.asarray(a, carry.x.dtype)[indices], plan.rows)
    return lax.scan(body, carry, (indices, rows, noise))


def apply_step(
    row: StepWeights,
    evaluate: Callable[..., tuple[Any, Any]],
    x: Any,
    last: Any,
    past: tuple,
    state: Any = None,
    noise: Any = None,
) -> tuple[Any, Any, tuple, Any]:
    """One step of a plan. It is plain arithmetic, so that tests can run it in NumPy's float64.

    Args:
      row: the step's weights.
      evaluate: ``(x, t [B], state) -> (f, state)``.
      x: the sample ``[B, ...]``.
      last: corrected sample of the step before; None without a corrector.
      past: earlier m, newest first.
      state: of the denoiser.
      noise: standard normal ``[B, ...]``, or None.

    Returns:
      ``(next x, last, past, state)``.
    """
    # NumPy's ones, so that a step in NumPy stays in NumPy; a traced row makes a traced product.
    t = row.time * np.ones(x.shape[0], np.float32)
    output, state = evaluate(x, t, state)
    output = output.astype(x.dtype)
    channels = x.shape[-1]
    # A learned variance comes after the prediction: [B, ..., 2 C]
    f = output[..., :channels]
    m = row.convert[0] * x + row.convert[1] * f
    if row.correct is not None:
        x = _combine(row.correct, (x, last, m, *past))
        # The next corrector starts from the corrected sample, not from the predictor's.
        last = x
    new = _combine(row.predict, (x, m, *past))
    if noise is not None:
        scale = row.noise
        if row.log_range is not None:
            low, high = row.log_range[0], row.log_range[1]
            scale = scale * jnp.exp(0.5 * _between(output[..., channels:], low, high))
        new = new + scale * noise
    past = (m, *past)[: len(past)]  # the newest first; the oldest drops out
    return new, last, past, state


def draw_starting_noise(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal ``[B, ...]`` float32 from one key, or from ``[B]`` keys sample by sample."""
    if key.ndim == 0:
        return jax.random.normal(key, shape, jnp.float32)
    return jax.vmap(lambda k: jax.random.normal(k, shape[1:], jnp.float32))(key)


def make_plan(
    grid: NoiseGrid,
    convert: tuple[Any, Any],
    predict: Any,
    noise: Any = None,
    correct: Any = None,
    log_range: Any = None,
) -> SamplerPlan:
    """A ``SamplerPlan`` from columns of weights, see ``StepWeights``.

    Args:
      grid: times and noise levels.
      convert: two of ``[N]``.
      predict: ``[N, 2 + K]``.
      noise: ``[N]``, or None for a sampler without noise.
      correct: ``[N, 3 + K]`` or None.
      log_range: ``[N, 2]`` or None.

    Raises:
      VidlatentError: a weight is not finite.
    """
    steps = grid.steps
    convert = np.stack([np.broadcast_to(np.float64(c), (steps,)) for c in convert], axis=1)
    predict = np.asarray(predict, np.float64)
    noise = np.zeros(steps) if noise is None else np.asarray(noise, np.float64)
    rows = StepWeights(grid.times, convert, correct, predict, noise, log_range)
    for weights in rows:
        if weights is not None and not np.all(np.isfinite(weights)):
            raise VidlatentError(
                "the solver is not defined on these noise levels: a network that predicts noise "
                "cannot give the sample where no signal is left (choose prediction v or x0), and "
                "orders above 1 end before level 0 (keep lower_order_final)."
            )
    return SamplerPlan(grid, rows, predict.shape[1] - 2)


def euler(grid: NoiseGrid, prediction: str = "velocity") -> SamplerPlan:
    """Euler's method on the flow's ODE, ``x + (sigma' - sigma) v``: FSVideo's refiner (2.4.3)."""
    if prediction != "velocity":
        raise VidlatentError(f"sampler euler needs a velocity, not {prediction!r}: use ddim.")
    ahead = np.diff(grid.sigmas)
    # m is the velocity itself: Euler's step needs no clean sample.
    return make_plan(grid, (0.0, 1.0), np.stack([np.ones_like(ahead), ahead], axis=1))


def fresh(grid: NoiseGrid, prediction: str = "velocity") -> SamplerPlan:
    """The predicted clean sample with fresh noise of the next level: ``alpha' x0 + sigma' noise``.

    The multistep sampler of consistency models (Song et al. 2023, alg. 1), for few-step students.
    """
    convert = data_columns(grid, prediction)
    predict = np.stack([np.zeros(grid.steps), grid.alphas[1:]], axis=1)
    return make_plan(grid, convert, predict, grid.sigmas[1:])


def fixed(grid: NoiseGrid, prediction: str = "velocity") -> SamplerPlan:
    """As ``fresh``, with the noise that the sample started from in every step.

    One of the three ways of score identity distillation to put noise on a student's samples. The
    grid must start at pure noise.
    """
    if grid.alphas[0] > 1e-3:
        raise VidlatentError(
            f"sampler fixed starts from pure noise, and this grid's first level is "
            f"{grid.sigmas[0]:.4g}: leave config.sampler.spacing and sigmas empty."
        )
    # What is no clean sample in x is the noise: eps = (x - alpha m) / sigma with the m that x was
    # made of, which is the last step's; the first x is noise alone.
    ratio = grid.sigmas[1:] / grid.sigmas[:-1]
    predict = np.stack([ratio, grid.alphas[1:], -ratio * grid.alphas[:-1]], axis=1)
    return make_plan(grid, data_columns(grid, prediction), predict)


def ddim(grid: NoiseGrid, prediction: str = "epsilon", eta: float = 0.0) -> SamplerPlan:
    """DDIM (Song et al. 2021, eq. 12): ``alpha' x0 + sqrt(sigma'^2 - s^2) eps + s noise``.

    ``s = eta`` times the posterior's standard deviation; eta 0 is the Euler step of the flow
    path, eta 1 is ancestral sampling with the small variance.
    """
    if not 0.0 <= eta <= 1.0:
        raise VidlatentError(f"config.sampler.eta must be in [0, 1], got {eta}.")
    noise = eta * np.sqrt(posterior_weights(grid)[2])
    alpha, sigma, alpha_next, sigma_next = _ends(grid)
    # Weight of x: what of its noise remains. Rounding can make the difference negative at eta 1.
    of_x = np.sqrt(np.maximum(sigma_next**2 - noise**2, 0.0)) / sigma
    predict = np.stack([of_x, alpha_next - of_x * alpha], axis=1)
    return make_plan(grid, data_columns(grid, prediction), predict, noise)


def ancestral(
    grid: NoiseGrid, prediction: str = "epsilon", variance: str = "fixed_small"
) -> SamplerPlan:
    """Ancestral sampling (DDPM, Ho et al. 2020, alg. 2); the last step adds no noise.

    Args:
      variance: ``'fixed_small'`` (the posterior's), ``'fixed_large'`` (the step's beta) or
        ``'learned_range'`` (the network chooses between the two, IDDPM eq. 15).
    """
    if variance not in VARIANCES:
        raise VidlatentError(f"unknown variance {variance!r}: {did_you_mean(variance, VARIANCES)}")
    of_x, of_data, small, large = posterior_weights(grid)
    predict = np.stack([of_x, of_data], axis=1)
    convert = data_columns(grid, prediction)
    moving = (grid.sigmas[1:] > 0).astype(np.float64)
    if variance != "learned_range":
        deviation = np.sqrt(small if variance == "fixed_small" else large)
        return make_plan(grid, convert, predict, moving * deviation)
    # The last step adds no noise, so any finite range will do there.
    low, high = (np.log(np.where(moving > 0, value, 1.0)) for value in (small, large))
    return make_plan(grid, convert, predict, moving, log_range=np.stack([low, high], axis=1))


def posterior_weights(grid: NoiseGrid) -> tuple[np.ndarray, ...]:
    """Of each step ``[N]``: weights of ``x`` and ``x0`` in the posterior's mean, variance, beta.

    The posterior ``q(x' | x, x0)`` for any ``alpha, sigma``; DDPM's eqs. 6-7 are the case in which
    their squares sum to 1.
    """
    alpha, sigma, alpha_next, sigma_next = _ends(grid)
    # x follows from x' as ratio x' + sqrt(beta) noise, so beta is what x has more of noise.
    ratio = alpha / alpha_next
    beta = sigma**2 - (ratio * sigma_next) ** 2
    of_x = ratio * (sigma_next / sigma) ** 2
    of_data = alpha_next * beta / sigma**2
    return of_x, of_data, beta * (sigma_next / sigma) ** 2, beta


def _ends(grid: NoiseGrid):
    return grid.alphas[:-1], grid.sigmas[:-1], grid.alphas[1:], grid.sigmas[1:]


def data_columns(grid: NoiseGrid, prediction: str) -> tuple[np.ndarray, np.ndarray]:
    """``[N]`` weights of ``x`` and of the network's output in the clean sample.

    They are infinite where the prediction does not determine it; ``make_plan`` refuses that.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return data_weights(prediction, grid.alphas[:-1], grid.sigmas[:-1])


def _combine(weights, arrays):
    total = weights[0] * arrays[0]
    for j, array in enumerate(arrays[1:], 1):
        total = total + weights[j] * array
    return total


def _between(v, low, high):
    # The network's -1 stands for the least and 1 for the greatest (IDDPM's code).
    return low + 0.5 * (v + 1.0) * (high - low)


def _draw_noise(key, index, x):
    if key.ndim == 0:
        # Folded by step: noise of a step does not depend on the steps before it.
        return jax.random.normal(jax.random.fold_in(key, index), x.shape, x.dtype)
    keys = jax.vmap(lambda k: jax.random.fold_in(k, index))(key)
    return jax.vmap(lambda k: jax.random.normal(k, x.shape[1:], x.dtype))(keys)
