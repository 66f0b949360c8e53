"""Discrete schedules, predictions, respacing and the variational bound."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlatent.diffusion import make_sampler, make_schedule
from vidlatent.diffusion.ddpm import even_times
from vidlatent.diffusion.vlb import diffusion_loss, gaussian_kl, log_likelihood_of_bins
from vidlatent.errors import VidlatentError


def test_schedules():
    for config in ({"name": "linear"}, {"name": "cosine"}, {"name": "scaled_linear"}):
        for steps in (1000, 100):
            abar = make_schedule({**config, "steps": steps}).alphas_cumprod
            assert len(abar) == steps and (np.diff(abar) < 0).all()
            assert 0.99 < abar[0] < 1 and 0 <= abar[-1] < 1e-2
    cosine = make_schedule({"name": "cosine"}).alphas_cumprod
    u = np.array([0, 0.008 / 1.008, 0.508 / 1.008]) * np.pi / 2
    want = np.cos((0.5 + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(u[1]) ** 2
    np.testing.assert_allclose(cosine[499], want, rtol=1e-9)
    root = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    plain = make_schedule({"name": "scaled_linear", "zero_terminal_snr": False})
    np.testing.assert_allclose(plain.alphas_cumprod, np.cumprod(1 - root))
    assert plain.alphas_cumprod is not None and plain.prediction == "v"


def test_no_signal_at_the_end(loop):
    """Lin et al. 2023: the last level has none, the first is kept, and v still says x0 there."""
    plain, zero = (
        make_schedule({"name": "scaled_linear", "zero_terminal_snr": z}) for z in (False, True)
    )
    assert zero.alphas_cumprod[-1] == 0
    np.testing.assert_allclose(zero.alphas_cumprod[0], plain.alphas_cumprod[0])
    halved = make_schedule(
        {"name": "scaled_linear", "zero_terminal_snr": False, "snr_shift": 2.0}
    ).alphas_cumprod
    snr = [a / (1 - a) for a in (plain.alphas_cumprod, halved)]
    np.testing.assert_allclose(snr[1], snr[0] / 2.0)
    datum = np.random.default_rng(0).standard_normal((2, 5))
    x = np.random.default_rng(1).standard_normal((2, 5))
    for name in ("ddim", "ancestral", "dpmpp_2m", "unipc"):
        plan = make_sampler(zero, {"name": name, "steps": 6, "spacing": "trailing"})
        assert plan.grid.times[0] == 999 and plan.grid.alphas[0] == 0

        def denoise(x, t, index, plan=plan):
            alpha, sigma = plan.grid.alphas[index], plan.grid.sigmas[index]
            return alpha * (x - alpha * datum) / sigma - sigma * datum

        states = loop(plan, denoise, x, np.ones((6, *x.shape)))
        np.testing.assert_allclose(states[-1], datum, atol=1e-9)
    with pytest.raises(VidlatentError, match="'v' or 'x0'"):
        make_schedule({"name": "linear", "zero_terminal_snr": True})


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
def test_predictions(prediction, loop):
    """With the exact output, training and every sampler recover the datum."""
    schedule = make_schedule(
        {"name": "cosine", "steps": 50, "prediction": prediction, "variance": "fixed_small"}
    )
    rng = np.random.default_rng(2)
    x0, noise = (jnp.asarray(rng.standard_normal((3, 4)), jnp.float32) for _ in range(2))
    t = jnp.array([0, 20, 40])
    x = schedule.add_noise(x0, noise, t)
    output = schedule.target(x0, noise, t)
    np.testing.assert_allclose(schedule.x0(x, output, t), x0, atol=1e-4)
    loss = diffusion_loss(schedule, output, x0, noise, t)
    assert (loss.loss == 0).all() and (loss.vb == 0).all()
    datum = rng.standard_normal((3, 4))
    for config in (
        {"name": "ancestral"},
        {"name": "ancestral", "variance": "fixed_large"},
        {"name": "ddim", "eta": 0.5, "spacing": "stride"},
        {"name": "dpmpp_2m", "spacing": "trailing"},
        {"name": "unipc", "order": 3},
    ):
        plan = make_sampler(schedule, {"steps": 7, **config})

        def denoise(x, t, index, plan=plan):
            alpha, sigma = plan.grid.alphas[index], plan.grid.sigmas[index]
            eps = (x - alpha * datum) / sigma
            return {"epsilon": eps, "x0": datum, "v": alpha * eps - sigma * datum}[prediction]

        states = loop(plan, denoise, rng.standard_normal((3, 4)), rng.standard_normal((7, 3, 4)))
        np.testing.assert_allclose(states[-1], datum, atol=1e-6)


def test_respacing():
    times = even_times(1000, 250)
    assert times[0] == 0 and times[-1] == 999 and len(set(times)) == 250
    assert times[:5].tolist() == [0, 4, 8, 12, 16] and times[100] == 401
    whole = make_schedule({"name": "linear"})
    part = whole.respace(times)
    assert part.alphas_cumprod[100] == whole.alphas_cumprod[401]
    np.testing.assert_array_equal(part.network_time(jnp.array([0, 100, 249])), [0, 401, 999])
    again = part.respace(np.array([0, 100, 249]))
    assert again.times.tolist() == [0, 401, 999]
    grid = whole.grid(250)
    assert grid.times[0] == 999 and grid.times[-1] == 0 and grid.sigmas[-1] == 0
    assert whole.grid(50, "stride").times[:2].tolist() == [980, 960]
    assert whole.grid(50, "trailing").times[[0, -1]].tolist() == [999, 19]
    for spacing, words in (("evn", "even"), ("even", "1..1000")):
        with pytest.raises(VidlatentError, match=words):
            whole.grid(10 if spacing == "evn" else 1001, spacing)


def test_ancestral_is_the_chain():
    """Sampler and training have the same mean and deviation for a step, respaced or not."""
    whole = make_schedule({"name": "linear"})
    chain = whole.respace(even_times(1000, 10))
    plan = make_sampler(whole, {"name": "ancestral", "steps": 10})
    tables = chain.tables
    np.testing.assert_allclose(plan.rows.predict[:, 0], tables["of_x"][::-1], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(plan.rows.predict[:, 1], tables["of_data"][::-1], rtol=1e-6)
    for column, name in enumerate(("log_small", "log_large")):
        want = tables[name][::-1][:-1]
        np.testing.assert_allclose(plan.rows.log_range[:-1, column], want, rtol=1e-6)
    assert plan.rows.noise.tolist() == [1.0] * 9 + [0.0]


def test_chain_of_a_gaussian():
    """With the exact noise of N(1, 0.5^2) samples have its moments, the nearer the more steps.

    Every step is linear, so that mean and variance are followed without drawing anything.
    """
    schedule = make_schedule({"name": "linear", "variance": "fixed_small"})
    errors = []
    for steps in (250, 500, 1000):
        plan = make_sampler(schedule, {"name": "ancestral", "steps": steps})
        mean, variance = 0.0, 1.0
        for i in range(steps):
            alpha, sigma = plan.grid.alphas[i], plan.grid.sigmas[i]
            slope = sigma / (alpha**2 * 0.25 + sigma**2)
            of_x, of_output = plan.rows.convert[i]
            of_state, of_data = plan.rows.predict[i]
            gain = of_state + of_data * (of_x + of_output * slope)
            mean = gain * mean - of_data * of_output * slope * alpha
            variance = gain**2 * variance + plan.rows.noise[i] ** 2
        errors.append([abs(mean - 1.0), abs(variance**0.5 - 0.5)])
    assert errors[-1][0] < 0.01 and errors[-1][1] < 0.01, errors
    assert errors[0][1] > 1.5 * errors[1][1] > 2.25 * errors[2][1], errors


def test_bound():
    """The bound is 0 for the posterior itself, and its gradient reaches only the variance."""
    schedule = make_schedule({"name": "linear"})
    rng = np.random.default_rng(4)
    x0, noise = (jnp.asarray(0.5 * rng.standard_normal((3, 4)), jnp.float32) for _ in range(2))
    t = jnp.array([0, 3, 700])
    output = jnp.concatenate([schedule.target(x0, noise, t), -jnp.ones_like(x0)], axis=-1)

    @jax.jit
    def run(output):
        loss = functools.partial(diffusion_loss, schedule, x0=x0, noise=noise, t=t)
        return loss(output), jax.grad(lambda o: loss(o).vb.sum())(output)

    loss, _ = run(output)
    np.testing.assert_allclose(loss.vb[1:], 0.0, atol=1e-5)
    assert loss.vb[0] > 0

    _, grad = run(output + 0.3)
    assert np.isfinite(grad).all()
    assert (grad[:, :4] == 0).all() and (grad[:, 4:] != 0).all()
    assert gaussian_kl(0.0, 0.0, 0.0, 0.0) == 0
    np.testing.assert_allclose(gaussian_kl(1.0, 0.0, 0.0, 0.0), 0.5)
    with pytest.raises(VidlatentError, match="8 output channels"):
        diffusion_loss(schedule, output[..., :5], x0, noise, t)


def test_bins_are_a_distribution():
    """All 256 pixels together have probability 1, also for a narrow Gaussian far off."""
    x = jnp.linspace(-1, 1, 256)
    for mean, std in ((0.2, 0.3), (0.0, 0.004), (0.9, 1.0)):
        total = jnp.exp(log_likelihood_of_bins(x, mean, jnp.log(std))).sum()
        np.testing.assert_allclose(total, 1.0, atol=2e-3)


def test_schedule_errors():
    for config, words in [
        ({"name": "linear", "variance": "learned"}, "learned_range"),
        ({"name": "linear", "prediction": "eps"}, "epsilon"),
        ({"name": "linear", "prediction": "velocity"}, "flow matching"),
        ({"name": "linear", "steps": 10}, "betas"),
        ({"name": "linear", "snr_shift": 0.0}, "snr_shift"),
        ({"name": "liner"}, "linear"),
    ]:
        with pytest.raises(VidlatentError, match=words):
            make_schedule(config)
