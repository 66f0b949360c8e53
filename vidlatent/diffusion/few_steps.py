"""A few-step student while it learns: its sample after a drawn number of steps (FSVideo 2.4.3).

Each training step draws one number ``n`` of 1 to N. The student takes ``n - 1`` steps of its own
sampler, from which no gradient flows back, and the clean sample that it then predicts is what is
compared with the data. So every step of the sampler learns to end at the data.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from vidlatent.diffusion.flow import x0_from_velocity
from vidlatent.diffusion.samplers import Denoise, SamplerPlan, advance, start

__all__ = ["draw_step", "last_step", "run_steps"]


def draw_step(key: jax.Array, steps: int) -> jax.Array:
    """The number of a student's step, uniform in 1 to ``steps``; int32 scalar.

    One for the whole batch, on all devices and processes: a function of the key alone.
    """
    return jax.random.randint(key, (), 1, steps + 1)


def run_steps(
    plan: SamplerPlan, denoise: Denoise, noise: jax.Array, count: jax.Array, key: jax.Array
) -> jax.Array:
    """The sample after ``count`` steps of the plan, ``[B, ...]``; no gradient flows back from it.

    Args:
      plan: the student's sampler.
      denoise: the student, ``(x, t, index) -> velocity``.
      noise: standard normal, ``[B, ...]``.
      count: int32 scalar, 0 to N; may be traced.
      key: of the noise that the sampler adds.
    """

    def step(index, carry):
        return advance(plan, denoise, carry, index, key)

    return lax.stop_gradient(lax.fori_loop(0, count, step, start(plan, noise)).x)


def last_step(
    plan: SamplerPlan,
    network: Callable[[jax.Array, jax.Array], jax.Array],
    z: jax.Array,
    number: jax.Array,
) -> jax.Array:
    """The clean sample that the student predicts in step ``number`` (1 to N), ``[B, ...]``.

    Args:
      plan: the student's sampler.
      network: ``(x [B, ...], t [B]) -> velocity``; gradients flow to its parameters.
      z: the sample after ``number - 1`` steps.
      number: int32 scalar.
    """
    ones = jnp.ones(z.shape[:1], jnp.float32)
    time, sigma = (
        jnp.asarray(column, jnp.float32)[number - 1] * ones
        for column in (plan.grid.times, plan.levels)
    )
    return x0_from_velocity(z, network(z, time), sigma)
