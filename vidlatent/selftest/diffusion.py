"""Checks of the mathematics of diffusion, on Gaussians, for which everything is known exactly.

For data ``N(mean, std^2)`` the best network is linear, and the flow from noise ``e`` passes through
``(1 - sigma) mean + sqrt((1 - sigma)^2 std^2 + sigma^2) e``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vidlatent.diffusion import (
    SAMPLERS,
    Flow,
    distillation,
    guidance,
    make_sampler,
    make_schedule,
    sample,
    sde,
)
from vidlatent.diffusion.flow import sample_sigma
from vidlatent.diffusion.grids import make_grid
from vidlatent.selftest.check import register

MEAN, STD = 1.5, 0.6
Numbers = Iterator[tuple[str, float, float, float]]


def exact_velocity(mean: Any, std: Any, z: Any, sigma: Any) -> Any:
    """``E[eps - x0 | z]`` for data ``N(mean, std^2)``."""
    gain = (1 - sigma) * std**2 / ((1 - sigma) ** 2 * std**2 + sigma**2)
    return (z - mean - gain * (z - (1 - sigma) * mean)) / sigma


def largest(x: Any) -> float:
    return float(np.abs(np.asarray(x, np.float64)).max())


@register("guidance")
def check_guidance() -> Numbers:
    """Scale 1 is the conditional branch to the bit; scale w is ``null + w (condition - null)``."""
    x = jax.random.normal(jax.random.key(1), (4, 8))
    time = jnp.ones(4)
    conditions = (jnp.zeros((4, 1)), jnp.full((4, 1), MEAN))

    def network(x, t, index, mean):
        return exact_velocity(mean, STD, x, 0.7)

    null, conditional = (jax.jit(network)(x, time, 0, c) for c in conditions)

    def guided(scale, batched=True):
        run = guidance.guide(network, conditions, np.full((1, 1), scale), batched=batched)
        return jax.jit(run)(x, time, 0)

    yield "scale 1", largest(guided(1.0) - conditional), 0.0, 0.0
    wanted = np.asarray(null, np.float64) + 3.5 * (np.asarray(conditional, np.float64) - null)
    yield "scale 3.5", largest(guided(3.5) - wanted), 0.0, 2e-5
    yield "branches in turn", largest(guided(3.5, batched=False) - guided(3.5)), 0.0, 2e-5


@register("halved steps")
def check_halving() -> Numbers:
    """One step of the student is two of the teacher's, known for ``dz / dsigma = c z``."""
    z, slope, levels = jax.random.normal(jax.random.key(2), (8, 16)), 0.8, (0.9, 0.6, 0.2)
    halved = jax.jit(lambda z: distillation.halve_steps(lambda z, s: slope * z, z, levels))(z)
    growth = np.prod([1 + slope * (b - a) for a, b in zip(levels, levels[1:], strict=False)])
    end = np.asarray(z, np.float64) * growth
    yield "teacher's two steps", largest(halved.end - end), 0.0, 1e-5
    student = z + (levels[2] - levels[0]) * halved.target
    yield "student's one step", largest(student - end), 0.0, 1e-5


# A generator ``x = a n + b`` that learns from a teacher of ``N(0, 1)``, and where it starts.
_GENERATOR = {"a": 0.4, "b": 0.8}


def _draw(key: jax.Array, count: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """``n``, ``eps`` and noise levels, ``[count]`` each."""
    of_n, of_eps, of_sigma = jax.random.split(key, 3)
    n, eps = (jax.random.normal(k, (count,)) for k in (of_n, of_eps))
    return n, eps, sample_sigma(of_sigma, count, np.log(2.0), 1.6)


def _measure(loss: Callable, params: Any, drawn: Any) -> jax.Array:
    """The generator's loss, with the fake score of its own samples, exactly."""
    n, eps, sigma = drawn
    fake = functools.partial(exact_velocity, *jax.lax.stop_gradient((params["b"], params["a"])))
    teacher = functools.partial(exact_velocity, 0.0, 1.0)
    return loss(teacher, fake, params["a"] * n + params["b"], eps, sigma).loss.mean()


def _distil(loss: Callable, steps: int = 3000) -> dict[str, jax.Array]:
    """Where the generator ends after so many updates."""
    optimizer = optax.adam(5e-3, b1=0.0, b2=0.999)

    def step(carry, key):
        params, moments = carry
        slope = jax.grad(functools.partial(_measure, loss))(params, _draw(key, 64))
        updates, moments = optimizer.update(slope, moments)
        return (optax.apply_updates(params, updates), moments), None

    @jax.jit
    def train(keys):
        params = jax.tree.map(jnp.float32, _GENERATOR)
        return jax.lax.scan(step, (params, optimizer.init(params)), keys)[0][0]

    return train(jax.random.split(jax.random.key(3), steps))


def _find_slope(loss: Callable, by_hand: Callable) -> tuple[float, float]:
    """Largest difference of the loss's gradient at the start from one by hand, and its size.

    ``by_hand(sigma, x, of_teacher, of_fake)`` is the gradient with respect to ``x`` in float64;
    each network is its clean sample and that sample's derivative with respect to ``x``.
    """
    drawn = _draw(jax.random.key(10), 256)
    params = jax.tree.map(jnp.float32, _GENERATOR)
    got = jax.jit(jax.grad(functools.partial(_measure, loss)))(params, drawn)
    n, eps, sigma = (np.asarray(values, np.float64) for values in drawn)
    a, b = _GENERATOR["a"], _GENERATOR["b"]
    x, alpha = a * n + b, 1 - sigma

    def predict(mean, std):
        gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
        return mean + gain * (alpha * x + sigma * eps - alpha * mean), gain * alpha

    slope = by_hand(sigma, x, predict(0.0, 1.0), predict(b, a))
    want = {"a": (slope * n).mean(), "b": slope.mean()}
    return max(abs(float(got[k]) - want[k]) for k in want), max(map(abs, want.values()))


@register("score identity")
def check_score_identity() -> Numbers:
    """SiD finds the data's distribution, whatever alpha: deviation 1, mean 0 (J65).

    Its gradient is compared besides: errors that teacher and fake score share leave the end as it
    is.
    """
    for alpha in (0.5, 1.0, 1.2):
        loss = functools.partial(distillation.score_identity_loss, alpha=alpha)
        found = _distil(loss)
        yield f"alpha {alpha:g}: deviation", float(found["a"]), 1.0, 1e-2
        yield f"alpha {alpha:g}: mean", float(found["b"]), 0.0, 1e-2

        def by_hand(sigma, x, of_teacher, of_fake, alpha=alpha):
            (y, dy), (f, df) = of_teacher, of_fake
            apart, slope = y - f, dy - df
            return (1 - sigma) * (
                slope * ((y - x) - alpha * apart) + apart * ((dy - 1) - alpha * slope)
            )

        error, size = _find_slope(loss, by_hand)
        yield f"alpha {alpha:g}: gradient", error / size, 0.0, 1e-4


@register("distribution matching")
def check_distribution_matching() -> Numbers:
    """DMD finds the data's distribution as well, and its gradient is ``w (fake - teacher)``."""
    loss = distillation.distribution_matching_loss
    found = _distil(loss)
    yield "deviation", float(found["a"]), 1.0, 1e-2
    yield "mean", float(found["b"]), 0.0, 1e-2

    def by_hand(sigma, x, of_teacher, of_fake):
        del sigma
        return (of_fake[0] - of_teacher[0]) / np.maximum(np.abs(x - of_teacher[0]), 1e-5)

    error, size = _find_slope(loss, by_hand)
    yield "gradient", error / size, 0.0, 1e-4


# Solver, its options, and the order of its global error.
_ORDERS: tuple[tuple[str, dict[str, Any], float], ...] = (
    ("euler", {}, 1.0),
    ("ddim", {"prediction": "velocity"}, 1.0),
    ("dpmpp_2m", {"prediction": "velocity", "lower_order_final": False}, 2.0),
    ("unipc", {"order": 1, "corrector": False, "lower_order_final": False}, 1.0),
    ("unipc", {"order": 2, "corrector": False, "lower_order_final": False}, 2.0),
    # The corrector adds an order (Zhao et al. 2023, theorem 3.1).
    ("unipc", {"order": 2, "lower_order_final": False}, 3.0),
)


@register("order of convergence")
def check_orders() -> Numbers:
    """Error of the flow of a Gaussian from level 0.9 to 0.1, with 24 and 48 steps.

    The limit, extrapolated from both by the order, must be the exact end: a solver whose weights
    are a little off may converge at its order, but elsewhere.
    """
    noise = jax.random.normal(jax.random.key(4), (64,))

    def path(sigma):
        alpha = 1 - sigma
        e = np.asarray(noise, np.float64)
        return alpha * MEAN + np.sqrt(alpha**2 * STD**2 + sigma**2) * e

    for name, options, order in _ORDERS:
        ends = []
        for steps in (24, 48):
            levels = np.linspace(0.9, 0.1, steps + 1)
            plan = SAMPLERS.get(name)(make_grid(1000 * levels[:-1], 1 - levels, levels), **options)
            table = jnp.asarray(levels, jnp.float32)
            denoise = lambda x, t, i, table=table: exact_velocity(MEAN, STD, x, table[i])  # noqa: E731
            run = jax.jit(lambda x, plan=plan, denoise=denoise: sample(plan, denoise, x).x)
            ends.append(np.asarray(run(jnp.asarray(path(0.9))), np.float64) - path(0.1))
        told = f" {options['order']}" if "order" in options else ""
        told += " without corrector" if not options.get("corrector", True) else ""
        yield f"{name}{told}", np.log2(largest(ends[0]) / largest(ends[1])), order, 0.2
        limit = ends[1] + (ends[1] - ends[0]) / (2**order - 1)
        yield f"{name}{told}: limit", largest(limit), 0.0, 2e-3


@register("one datum")
def check_one_datum() -> Numbers:
    """With the exact velocity of a single datum every sampler ends at it."""
    x, datum = (jax.random.normal(jax.random.key(k), (4, 8)) for k in (5, 6))
    for name in SAMPLERS.names():
        plan = make_sampler(Flow(shift=3.0), {"name": name, "steps": 6})
        levels = jnp.asarray(plan.levels, jnp.float32)

        def denoise(x, t, index, levels=levels):
            return (x - datum) / levels[index]

        end = jax.jit(lambda x, p=plan, d=denoise: sample(p, d, x, jax.random.key(7)).x)(x)
        yield name, largest(end - datum), 0.0, 1e-4


def _follow_policy() -> Numbers:
    """Flow-SDE with 200 steps, the noise of policy gradients."""
    count, grid = 16_384, Flow(shift=1.0).grid(200)
    levels = jnp.asarray(grid.sigmas, jnp.float32)
    error = STD / np.sqrt(count)
    for eta in (0.3, 0.7):
        steps = sde.make_random_steps(grid, "velocity", "flow_sde", eta)

        def advance(z, index, steps=steps):
            weights = steps.at(index)
            mean = sde.take_mean(weights, z, exact_velocity(MEAN, STD, z, levels[index]))
            key = jax.random.fold_in(jax.random.key(11), index)
            return mean + weights.std * jax.random.normal(key, z.shape), None

        start = jax.random.normal(jax.random.key(12), (count,))
        run = jax.jit(lambda z, advance=advance: jax.lax.scan(advance, z, jnp.arange(200))[0])
        end = np.asarray(run(start), np.float64)
        yield f"flow_sde {eta:g}: mean", end.mean(), MEAN, 4 * error
        yield f"flow_sde {eta:g}: deviation", end.std(), STD, 4 * error


@register("random steps")
def check_random_steps() -> Numbers:
    """Steps that add noise keep the data's mean and deviation (J70), of 16,384 samples.

    Tolerances are four standard errors of a mean.
    """
    yield from _follow_policy()
    schedule = make_schedule({"name": "linear", "variance": "fixed_small"})
    count = 16_384
    start = jax.random.normal(jax.random.key(8), (count, 1))
    for name, options in (("ancestral", {}), ("ddim", {"eta": 1.0})):
        plan = make_sampler(schedule, {"name": name, "steps": 1000, **options})
        alphas, sigmas = (
            jnp.asarray(x[:-1], jnp.float32) for x in (plan.grid.alphas, plan.grid.sigmas)
        )

        def denoise(x, t, index, alphas=alphas, sigmas=sigmas):
            alpha, sigma = alphas[index], sigmas[index]
            # The noise that is expected in x.
            return sigma * (x - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)

        end = jax.jit(lambda x, p=plan, d=denoise: sample(p, d, x, jax.random.key(9)).x)(start)
        values = np.asarray(end, np.float64)
        error = STD / np.sqrt(count)
        yield f"{name}: mean", values.mean(), MEAN, 4 * error
        yield f"{name}: deviation", values.std(), STD, 4 * error
