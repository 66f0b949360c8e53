"""A few-step student's sample: the drawn step, the steps before it, and where gradients flow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlatent.diffusion import Flow, make_sampler, sample
from vidlatent.diffusion.few_steps import draw_step, last_step, run_steps
from vidlatent.diffusion.flow import x0_from_velocity
from vidlatent.errors import VidlatentError

NOISE = jax.random.normal(jax.random.key(3), (4, 2, 3))
KEY = jax.random.key(5)


def plan_of(name, steps=4, shift=2.0, **options):
    return make_sampler(Flow(shift), {"name": name, "steps": steps, **options})


def velocity(factor, z, time):
    return factor * jnp.sin(3 * z) * (1 + time[:, None, None] / 1000)


def network(factor):
    return lambda z, time, index: velocity(factor, z, time)


def test_every_step_is_drawn_equally_often_and_by_the_key_alone():
    keys = jax.random.split(KEY, 4000)
    drawn = np.asarray(jax.vmap(lambda key: draw_step(key, 8))(keys))
    counts = np.bincount(drawn, minlength=9)
    assert counts[0] == 0 and len(counts) == 9
    # Three standard deviations of a count of 500.
    assert np.abs(counts[1:] - 500).max() < 3.2 * np.sqrt(500 * 7 / 8)
    assert draw_step(KEY, 8) == draw_step(KEY, 8) and draw_step(KEY, 1) == 1


@pytest.mark.parametrize("name", ["euler", "ddim", "fresh", "fixed"])
def test_all_steps_are_the_sampler(name):
    """N - 1 steps, and the clean sample of the N-th, are what sampling ends with."""
    plan = plan_of(name)
    whole = sample(plan, network(0.5), NOISE, KEY).x
    for number in (1, 3, 4):
        z = run_steps(plan, network(0.5), NOISE, jnp.int32(number - 1), KEY)
        x = last_step(plan, lambda z, t: velocity(0.5, z, t), z, jnp.int32(number))
        if number == 4:
            np.testing.assert_allclose(x, whole, atol=1e-5)
        else:
            assert np.abs(x - whole).max() > 1e-3


def test_the_noise_that_the_velocity_implies_is_euler_s_step():
    """J63: z + (s' - s) v = (1 - s') x0 + s' (z - (1 - s) x0) / s."""
    plan = plan_of("euler")
    sigmas = plan.grid.sigmas
    z = NOISE
    for index in range(3):
        time = jnp.full(4, plan.grid.times[index])
        x0 = x0_from_velocity(z, velocity(0.5, z, time), jnp.full(4, sigmas[index]))
        noise = (z - (1 - sigmas[index]) * x0) / sigmas[index]
        z = (1 - sigmas[index + 1]) * x0 + sigmas[index + 1] * noise
        for name in ("euler", "ddim"):
            found = run_steps(plan_of(name), network(0.5), NOISE, index + 1, KEY)
            np.testing.assert_allclose(found, z, atol=2e-6)


def test_fixed_noise_is_the_one_that_the_sample_started_from():
    plan = plan_of("fixed")
    sigmas = plan.grid.sigmas
    z = NOISE
    for index in range(3):
        time = jnp.full(4, plan.grid.times[index])
        x0 = x0_from_velocity(z, velocity(0.5, z, time), jnp.full(4, sigmas[index]))
        z = (1 - sigmas[index + 1]) * x0 + sigmas[index + 1] * NOISE
        np.testing.assert_allclose(
            run_steps(plan, network(0.5), NOISE, index + 1, KEY), z, atol=2e-6
        )
    with pytest.raises(VidlatentError, match="first level is 0.5: leave config.sampler"):
        plan_of("fixed", steps=2, shift=1.0, sigmas=(0.5, 0.2))


def test_fresh_noise_is_new_in_every_step_and_the_key_s():
    plan = plan_of("fresh")
    one, other = (run_steps(plan, network(0.5), NOISE, 2, jax.random.key(k)) for k in (1, 2))
    assert np.abs(one - other).max() > 0.1
    np.testing.assert_array_equal(one, run_steps(plan, network(0.5), NOISE, 2, jax.random.key(1)))


def test_gradients_flow_through_the_last_step_alone():
    """The number of steps may be traced, and the steps before the drawn one are constants."""
    plan = plan_of("euler")

    def loss(factor, number):
        z = run_steps(plan, network(factor), NOISE, number - 1, KEY)
        return last_step(plan, lambda z, t: velocity(factor, z, t), z, number).sum()

    found = jax.jit(jax.grad(loss))(0.5, jnp.int32(3))
    z = run_steps(plan, network(0.5), NOISE, 2, KEY)
    time, sigma = plan.grid.times[2] * jnp.ones(4), plan.grid.sigmas[2]
    np.testing.assert_allclose(found, -sigma * velocity(1.0, z, time).sum(), rtol=1e-5)
