"""Random steps keep the flow's marginals, end as Euler's, and say how likely their result is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlatent.diffusion import make_schedule
from vidlatent.diffusion.flow import Flow
from vidlatent.diffusion.samplers import ddim
from vidlatent.diffusion.sde import cps, flow_sde, log_prob, make_random_steps, still
from vidlatent.errors import VidlatentError

MEAN, STD = 0.7, 0.4  # of the data


def exact_velocity(z, sigma):
    """``E[eps - x0 | z]`` for data ``N(MEAN, STD^2)``."""
    apart = z - (1.0 - sigma) * MEAN
    variance = (1.0 - sigma) ** 2 * STD**2 + sigma**2
    return (sigma * apart - (1.0 - sigma) * STD**2 * apart) / variance - MEAN


def run(steps, grid, z, rng):
    for index in range(grid.steps):
        output = exact_velocity(z, grid.sigmas[index])
        z = steps.state[index] * z + steps.output[index] * output
        z = z + steps.std[index] * rng.normal(size=z.shape)
    return z


@pytest.mark.parametrize("eta", [0.3, 0.7])
def test_marginals_are_those_of_the_data(eta):
    """Specification J70: 4,000 particles after 200 steps, within three standard errors."""
    grid, rng = Flow(shift=1.0).grid(200), np.random.default_rng(1)
    steps = make_random_steps(grid, "velocity", "flow_sde", eta)
    found = run(steps, grid, rng.normal(size=4000), rng)
    error = found.std() / np.sqrt(len(found))
    # The grid's own error, which Euler's steps have without any noise, is far smaller.
    assert abs(found.mean() - MEAN) < 3 * error
    assert abs(found.std() - STD) < 3 * error / np.sqrt(2)


def test_without_noise_the_step_is_eulers():
    """J71, for both kinds, and DDIM's step where the network predicts something else."""
    grid = Flow(shift=3.0).grid(8)
    ahead = np.diff(grid.sigmas)
    for steps in (flow_sde(grid, "velocity", 0.0), still(grid, "velocity")):
        np.testing.assert_array_equal(steps.state, np.ones(8))
        np.testing.assert_array_equal(steps.output, ahead)
    np.testing.assert_allclose(cps(grid, "velocity", 0.0).output, ahead, atol=1e-15)
    np.testing.assert_allclose(cps(grid, "velocity", 0.0).state, 1.0, atol=1e-15)
    for eta in (1e-3, 1e-5):
        near = flow_sde(grid, "velocity", eta)
        np.testing.assert_allclose(near.output, ahead, rtol=2 * eta)
        assert near.std.max() <= 1.5 * eta
    schedule = make_schedule({"name": "linear", "steps": 100, "prediction": "v"})
    grid = schedule.grid(5)
    rows = ddim(grid, "v").rows
    steps = still(grid, "v")
    # m = a x + b f, then x' = p x + q m
    np.testing.assert_allclose(
        steps.state, rows.predict[:, 0] + rows.predict[:, 1] * rows.convert[:, 0], atol=1e-12
    )
    np.testing.assert_allclose(steps.output, rows.predict[:, 1] * rows.convert[:, 1], atol=1e-12)


def test_the_first_step_deviates_by_eta():
    """Whatever the grid: sigma 1 is replaced by the next level in one place."""
    for shift in (1.0, 3.0, 7.0):
        steps = flow_sde(Flow(shift=shift).grid(8), "velocity", 0.7)
        assert steps.std[0] == pytest.approx(0.7, rel=1e-12)
        assert steps.output[0] == pytest.approx(np.diff(Flow(shift=shift).grid(8).sigmas)[0])


def test_noise_of_cps_keeps_the_level():
    grid = Flow(shift=3.0).grid(8)
    steps = cps(grid, "velocity", 0.7)
    assert steps.std[-1] == 0.0
    # At z = sigma eps and v = eps, x0 is 0: old and fresh noise add up to the level sigma'.
    sigma = grid.sigmas[:-1]
    kept = steps.state * sigma + steps.output
    np.testing.assert_allclose(kept**2 + steps.std**2, grid.sigmas[1:] ** 2, atol=1e-12)


def test_likelihood_of_a_drawn_sample():
    """J72: the formula, in float32 for half-precision states, and its gradient."""
    rng = np.random.default_rng(0)
    mean, noise = (jnp.asarray(rng.normal(size=(3, 2, 5)), jnp.float32) for _ in range(2))
    found = log_prob(mean + 0.3 * noise, mean, 0.3)
    expected = -0.5 * np.square(noise).mean((1, 2)) - np.log(0.3) - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert log_prob(mean.astype(jnp.bfloat16), mean, 0.3).dtype == jnp.float32
    slope = jax.grad(lambda m: log_prob(mean + 0.3 * noise, m, 0.3).sum())(mean)
    np.testing.assert_allclose(slope, noise / 0.3 / 10, rtol=1e-4, atol=1e-6)


def test_what_is_not_defined_is_refused():
    with pytest.raises(VidlatentError, match="set config.rl.noise=cps"):
        flow_sde(Flow().grid(4), "epsilon", 0.5)
    with pytest.raises(VidlatentError, match="it is at most 1"):
        cps(Flow().grid(4), "velocity", 1.5)
    with pytest.raises(VidlatentError, match="gives no clean sample at the first noise level"):
        cps(Flow().grid(4), "epsilon", 0.5)
