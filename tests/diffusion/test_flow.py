"""The straight path, its noise levels and its loss."""

import functools
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlatent.diffusion import Flow, flow, make_schedule, objective
from vidlatent.diffusion.grids import flow_grid, shift_for_tokens, shift_levels
from vidlatent.errors import VidlatentError
from vidlatent.losses import pseudo_huber


def test_density_of_noise_levels():
    """Logit-normal: the median, and a Kolmogorov-Smirnov test on the logits without the shift."""
    mean, std, shift = 0.3, 1.2, 5.0
    sigma = np.asarray(flow.sample_sigma(jax.random.key(0), 20000, mean, std, shift), np.float64)
    normal = statistics.NormalDist(mean, std)
    middle = shift_levels(1 / (1 + np.exp(-mean)), shift)
    assert abs(np.median(sigma) - middle) < 0.01
    u = np.sort(shift_levels(sigma, 1 / shift))
    logits = np.log(u / (1 - u))
    below = np.array([normal.cdf(x) for x in logits])
    distance = np.abs(below - (np.arange(len(below)) + 0.5) / len(below)).max()
    assert distance < 1.63 / np.sqrt(len(below))  # 1 %
    clipped = flow.sample_sigma(jax.random.key(0), 100, -9.0, 1.0)
    assert clipped.min() == np.float32(1e-4) and clipped.dtype == jnp.float32
    levels = flow.fixed_sigmas(4, mean, std, shift)
    quarters = [np.mean(sigma < level) for level in levels]
    np.testing.assert_allclose(quarters, [0.125, 0.375, 0.625, 0.875], atol=0.015)


def test_shift():
    """A shift keeps 0, 1 and the order; by 1 it is the identity; two equal one by their product."""
    u = np.linspace(0, 1, 101)
    for a, b in ((3.0, 5.0), (0.5, 7.0)):
        s = shift_levels(u, a)
        assert s[0] == 0 and s[-1] == 1 and (np.diff(s) > 0).all()
        np.testing.assert_allclose(
            shift_levels(shift_levels(u, b), a), shift_levels(u, a * b), atol=1e-12
        )
    np.testing.assert_array_equal(shift_levels(u, 1.0), u)
    assert shift_for_tokens(1984) == 5.0 and shift_for_tokens(16) == 1.0
    assert shift_for_tokens(4 * 1984) == 10.0
    assert Flow(shift=3.0).for_tokens(7) == Flow(shift=3.0)
    assert Flow(shift=3.0, base_tokens=100).for_tokens(400).shift == 6.0
    with pytest.raises(VidlatentError, match="shift"):
        Flow(shift=0.0)


def test_pseudo_huber():
    """0 at 0, even, quadratic near it and linear far away, with a gradient of at most 1, in the
    three reductions; two of them are those of the loss on pixels."""
    rng = np.random.default_rng(0)
    r = rng.standard_normal((3, 2, 4, 5)).astype(np.float32)
    zero = np.zeros_like(r)

    @functools.partial(jax.jit, static_argnums=1)
    def run(x, reduction):
        loss = functools.partial(flow.velocity_loss, target=zero, reduction=reduction)
        scales = jnp.array([1.0, -1.0, 0.0, 1e-6, 1e3])
        values = jax.vmap(lambda s: loss(s * x))(scales)
        return values, jax.vmap(lambda s: jax.grad(lambda y: loss(y).sum())(s * x))(scales)

    mask = jnp.ones(3)
    for reduction in flow.REDUCTIONS:
        values, grads = (np.asarray(v) for v in run(r, reduction))
        assert (values[2] == 0).all() and np.isfinite(grads).all()
        np.testing.assert_array_equal(values[0], values[1])
        if reduction != "token":
            name = {"sample": "scaled_norm", "element": "elementwise"}[reduction]
            np.testing.assert_allclose(
                values[0].mean(), pseudo_huber(r, zero, mask, name), rtol=1e-5
            )
        if reduction == "sample":
            mse = np.square(r).mean(axis=(1, 2, 3))
            np.testing.assert_allclose(values[3], 1e-12 * mse / (2 * flow.HUBER_C0), rtol=1e-4)
            np.testing.assert_allclose(values[4], 1e3 * np.sqrt(mse), rtol=1e-5)
            # sqrt(d) times the loss is the published form; its gradient is at most 1 long.
            length = np.sqrt(np.square(grads).sum(axis=(2, 3, 4)) * r[0].size)
            assert (length <= 1 + 1e-5).all()
        if reduction == "token":
            c0 = flow.HUBER_C0
            want = (np.sqrt(np.square(r).mean(-1) + c0**2) - c0).mean(axis=(1, 2))
            np.testing.assert_allclose(values[0], want, rtol=1e-5)
    for bad in ({"reduction": "samples"}, {"c0": 0.0}):
        with pytest.raises(VidlatentError):
            flow.velocity_loss(r, zero, **bad)


@pytest.mark.parametrize("config", [{"name": "flow", "shift": 3.0}, {"name": "linear"}], ids=str)
def test_training_draw(config):
    """The same calls serve both schedules, and the exact output has a loss of 0."""
    schedule = make_schedule(config)
    x0 = jnp.asarray(np.random.default_rng(5).standard_normal((4, 2, 3)), jnp.float32)

    @jax.jit
    def run(key, level):
        drawn = objective.draw(schedule, key, x0, level)
        target = drawn.noise
        if config["name"] == "flow":
            target = target - x0
        else:
            target = jnp.concatenate([target, -jnp.ones_like(target)], axis=-1)
        loss = objective.sample_loss(schedule, drawn, target, x0)
        return drawn, loss, objective.draw(schedule, key, x0)

    levels = objective.fixed_levels(schedule, 4)
    drawn, loss, free = run(jax.random.key(0), levels)
    np.testing.assert_array_equal(drawn.level, levels)
    np.testing.assert_allclose(loss, 0.0, atol=1e-5)
    np.testing.assert_array_equal(drawn.noise, free.noise)
    assert free.time.dtype == jnp.float32 and (np.diff(levels) > 0).all()
    scale = 1000.0 if config["name"] == "flow" else 1.0
    np.testing.assert_allclose(free.time, scale * free.level)


def test_conversions():
    rng = np.random.default_rng(1)
    z0, eps = (jnp.asarray(rng.standard_normal((3, 2, 4)), jnp.float32) for _ in range(2))
    sigma = jnp.array([0.1, 0.5, 0.9])
    z, v = flow.interpolate(z0, eps, sigma), flow.velocity(z0, eps)
    np.testing.assert_allclose(flow.x0_from_velocity(z, v, sigma), z0, atol=5e-6)
    np.testing.assert_array_equal(
        flow.interpolate(z0, eps, jnp.array([0.0, 1.0, 1.0]))[1:], eps[1:]
    )
    assert flow.interpolate(z0.astype(jnp.bfloat16), eps, sigma).dtype == jnp.float32
    np.testing.assert_array_equal(flow.network_time(sigma), 1000.0 * sigma)


def test_grid():
    """With half the steps a sampler visits every second level."""
    fine, coarse = flow_grid(16, 5.0), flow_grid(8, 5.0)
    np.testing.assert_allclose(fine.sigmas[::2], coarse.sigmas, atol=1e-12)
    assert fine.sigmas[0] == 1 and fine.sigmas[-1] == 0
    np.testing.assert_array_equal(fine.times, 1000 * fine.sigmas[:-1])
    np.testing.assert_array_equal(Flow(shift=5.0).grid(8).sigmas, coarse.sigmas)
    np.testing.assert_array_equal(Flow(shift=2.0).grid(8, shift=5.0).sigmas, coarse.sigmas)


def test_schedule_from_a_dict():
    assert make_schedule({"name": "flow", "shift": 3.0}) == Flow(shift=3.0)
    for config, words in [({"name": "flou"}, "flow"), ({"name": "flow", "shfit": 2.0}, "shift")]:
        with pytest.raises(VidlatentError, match=words):
            make_schedule(config)
