"""Samplers: exact where theory says so, with their order of convergence, in one loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlatent.diffusion import (
    Flow,
    draw_starting_noise,
    make_sampler,
    make_schedule,
    sample,
    sampler_options,
)
from vidlatent.diffusion.grids import flow_grid, make_grid
from vidlatent.diffusion.multistep import dpmpp_2m, unipc
from vidlatent.diffusion.samplers import ddim, euler
from vidlatent.errors import VidlatentError

FLOW = [
    {"name": "euler"},
    {"name": "fresh"},
    {"name": "ddim"},
    {"name": "ddim", "eta": 1.0},
    {"name": "ancestral"},
    {"name": "dpmpp_2m"},
    {"name": "unipc", "order": 1},
    {"name": "unipc", "order": 2},
    {"name": "unipc", "order": 3},
    {"name": "unipc", "order": 2, "solver_type": "bh1"},
    {"name": "unipc", "order": 3, "spacing": "diffusers_unipc"},
    {"name": "unipc", "order": 2, "spacing": "wan_unipc", "corrector": False},
]


def gaussian_velocity(x, sigma, mean=1.5, std=0.6):
    """Velocity of the path from N(0, 1) to N(mean, std^2)."""
    alpha = 1.0 - sigma
    gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
    return (x - mean - gain * (x - alpha * mean)) / sigma


def mixture_velocity(x, sigma):
    """The same for two Gaussians: no longer linear in x."""
    alpha, std = 1.0 - sigma, 0.5
    variance = alpha**2 * std**2 + sigma**2
    means = np.array([-1.0, 1.5])[:, None, None]
    weights = np.exp(-((x - alpha * means) ** 2) / (2 * variance))
    each = means + alpha * std**2 / variance * (x - alpha * means)
    return (x - (weights * each).sum(0) / weights.sum(0)) / sigma


def start(batch=3, width=4, seed=0):
    return np.random.default_rng(seed).standard_normal((batch, width))


@pytest.mark.parametrize("config", FLOW, ids=str)
@pytest.mark.parametrize("steps", [1, 8])
def test_exact_velocity_of_one_datum(config, steps, loop):
    """Every sampler returns the datum, in one step and in eight, without a NaN at sigma 0."""
    plan = make_sampler(Flow(shift=3.0), {"steps": steps, **config})
    assert plan.grid.sigmas[-1] == 0 and plan.nfe == steps
    datum, x = start(seed=1), start()

    def denoise(x, t, index):
        return (x - datum) / plan.levels[index]

    noise = np.random.default_rng(2).standard_normal((steps, *x.shape))
    states = loop(plan, denoise, x, noise)
    assert np.isfinite(states).all()
    np.testing.assert_allclose(states[-1], datum, atol=1e-9)


def test_samplers_that_are_one():
    grid = flow_grid(9, 3.0)
    ones = [ddim(grid, "velocity"), unipc(grid, order=1, corrector=False)]
    step = euler(grid)
    # Euler keeps the velocity, the others the clean sample: x + d v = (1 - w) x + w (x - s v).
    ahead = step.rows.predict[:, 1]
    for plan in ones:
        of_x, of_data = plan.rows.predict.T
        np.testing.assert_allclose(of_x + of_data, 1.0, atol=2e-6)
        np.testing.assert_allclose(-of_data * grid.sigmas[:-1], ahead, atol=2e-6)
    second = unipc(grid, order=2, corrector=False)
    np.testing.assert_allclose(second.rows.predict, dpmpp_2m(grid, "velocity").rows.predict)


def test_ancestral_is_ddim_with_eta_1():
    schedule = make_schedule({"name": "linear", "variance": "fixed_small"})
    plans = [
        make_sampler(schedule, {"name": "ancestral", "steps": 20}),
        make_sampler(schedule, {"name": "ddim", "steps": 20, "eta": 1.0}),
    ]
    for field in ("convert", "predict", "noise"):
        one, two = (getattr(p.rows, field) for p in plans)
        np.testing.assert_allclose(one, two, atol=1e-9)


@pytest.mark.parametrize(
    ("order", "corrects", "degree"), [(1, False, 0), (3, False, 2), (2, True, 2), (3, True, 3)]
)
def test_weights_integrate_polynomials(order, corrects, degree):
    """A step is exact where the clean sample is a polynomial in lambda of its degree."""
    grid = flow_grid(12, 2.0)
    plan = unipc(grid, order=order)
    s = 6
    lam = np.log(np.maximum(grid.alphas[:-1], 1e-9) / grid.sigmas[:-1])
    lam = lam - lam[s]
    nodes, weights = np.polynomial.legendre.leggauss(40)
    ends = lam[s], lam[s + 1]
    points = 0.5 * (ends[1] - ends[0]) * nodes + 0.5 * (ends[0] + ends[1])
    for power in range(degree + 1):
        inner = np.exp(points - ends[1]) * points**power
        exact = grid.alphas[s + 1] * 0.5 * (ends[1] - ends[0]) * (weights * inner).sum()
        if corrects:
            row, newest = plan.rows.correct[s + 1][2:], s + 1
        else:
            row, newest = plan.rows.predict[s][1:], s
        stored = np.array([lam[newest - j] ** power for j in range(len(row))])
        np.testing.assert_allclose(row @ stored, exact, atol=1e-9)


def ends_of(config, velocity, counts, loop, x):
    ends = []
    for steps in counts:
        plan = make_sampler(Flow(), {"steps": steps, **config})
        run = loop(plan, lambda x, t, i, plan=plan: velocity(x, plan.levels[i]), x)
        ends.append(run[-1])
    return ends


def test_order_on_a_gaussian(loop):
    """Twice the steps halve the error of a first-order sampler and quarter that of a second-order
    one; data N(1.5, 0.6^2), for which the exact end point is known."""
    x, counts = start(), (32, 64, 128)
    for config, low, high in [
        ({"name": "euler"}, 1.9, 2.1),
        ({"name": "unipc", "order": 2, "spacing": "diffusers_unipc"}, 3.5, 6.0),
        ({"name": "dpmpp_2m"}, 3.0, 6.0),
    ]:
        ends = ends_of(config, gaussian_velocity, counts, loop, x)
        errors = [np.abs(end - (1.5 + 0.6 * x)).max() for end in ends]
        ratios = np.divide(errors[:-1], errors[1:])
        assert (ratios > low).all() and (ratios < high).all(), (config, errors)


def test_order_on_a_mixture(loop):
    """Not linear in x, levels from 0.9 to 0.1, where nothing is singular."""
    x = start()
    errors = {}
    exact = None
    for config, counts in [
        ({"name": "unipc", "order": 3}, (512, 16, 32, 64)),
        ({"name": "unipc", "order": 2}, (16, 32, 64)),
        ({"name": "unipc", "order": 1, "corrector": False}, (16, 32, 64)),
    ]:
        ends = []
        for steps in counts:
            levels = np.linspace(0.9, 0.1, steps + 1)
            grid = make_grid(1000 * levels[:-1], 1 - levels, levels)
            options = {k: v for k, v in config.items() if k != "name"}
            plan = unipc(grid, lower_order_final=False, **options)
            denoise = lambda x, t, i, levels=levels: mixture_velocity(x, levels[i])  # noqa: E731
            ends.append(loop(plan, denoise, x)[-1])
        if exact is None:
            exact, *ends = ends
        errors[config["order"]] = [np.abs(end - exact).max() for end in ends]
    for order, least in ((1, 1.7), (2, 3.4), (3, 6.5)):
        ratios = np.divide(errors[order][:-1], errors[order][1:])
        assert (ratios > least).all(), (order, errors[order])


def toy(xp):
    def denoise(x, t, index):
        return xp.tanh(x * 1.3 + t[:, None, None] / 900.0) - 0.3 * x

    return denoise


@pytest.mark.parametrize(
    "config", [{"name": "unipc", "order": 3}, {"name": "ancestral", "learned": True}], ids=str
)
def test_scan_is_the_loop(config, loop):
    """The jitted float32 loop with history, noise and a learned variance; reproducible."""
    config = dict(config)
    rng = np.random.default_rng(3)
    if config.pop("learned", False):
        schedule, steps = make_schedule({"name": "linear"}), 12

        def pair(xp):
            def denoise(x, t, index):
                f = toy(xp)(x, t, index)
                return xp.concatenate([f, xp.sin(3 * f)], axis=-1)

            return denoise

    else:
        schedule, steps, pair = Flow(shift=3.0), 12, toy
    plan = make_sampler(schedule, {"steps": steps, **config})
    x = rng.standard_normal((2, 3, 4)).astype(np.float32)
    noise = rng.standard_normal((steps, *x.shape)).astype(np.float32)
    want = loop(plan, pair(np), x.astype(np.float64), noise)
    run = jax.jit(lambda x: sample(plan, pair(jnp), x, noise=noise, trajectory=True))
    got = run(x)
    assert got.x.dtype == jnp.float32 and got.trajectory.shape == (steps + 1, *x.shape)
    scale = np.abs(want).max()
    np.testing.assert_allclose(got.trajectory / scale, want / scale, atol=1e-5)
    np.testing.assert_array_equal(got.x, got.trajectory[-1])
    np.testing.assert_array_equal(run(x).x, got.x)


def test_keys_of_samples():
    """With a key for each sample, a sample does not depend on its batch; bf16 in, float32 out."""
    plan = make_sampler(Flow(), {"name": "fresh", "steps": 3})
    keys = jax.vmap(jax.random.key)(jnp.array([5, 6, 7]))
    x = draw_starting_noise(keys, (3, 4, 2))
    run = jax.jit(lambda x, keys: sample(plan, toy(jnp), x.astype(jnp.bfloat16), keys).x)
    three, last = run(x, keys), run(x[2:], keys[2:])
    np.testing.assert_array_equal(x[2:], draw_starting_noise(keys[2:], (1, 4, 2)))
    np.testing.assert_allclose(three[2:], last, atol=1e-6)
    assert three.dtype == jnp.float32
    with pytest.raises(VidlatentError, match="key"):
        sample(plan, toy(jnp), x)


def test_gradient_through_all_steps():
    plan = make_sampler(Flow(), {"name": "unipc", "steps": 4})
    x = jnp.asarray(start(2, 12).reshape(2, 3, 4), jnp.float32)

    def end(scale):
        return jnp.square(sample(plan, lambda x, t, i: scale * toy(jnp)(x, t, i), x).x).sum()

    grad, up, down = jax.jit(lambda s: (jax.grad(end)(s), end(s + 1e-2), end(s - 1e-2)))(1.0)
    np.testing.assert_allclose(grad, (up - down) / 2e-2, rtol=1e-3)


def test_options_of_other_samplers_are_left_out():
    """In a config with the options of all samplers, changing the name is enough."""
    every = {"steps": 3, "spacing": "", "shift": 0.0, "order": 3, "solver_type": "bh2", "eta": 0.5}
    for schedule in (Flow(shift=3.0), make_schedule({"name": "linear", "variance": "fixed_small"})):
        for name in ("euler", "fresh", "ddim", "ancestral", "unipc", "dpmpp_2m"):
            if name == "euler" and not isinstance(schedule, Flow):
                continue
            options, unread = sampler_options(schedule, {"name": name, **every})
            assert make_sampler(schedule, options).nfe == 3
            assert ("order" in options) == (name == "unipc")
            assert unread == [k for k in ("order", "eta") if k not in options]
    plan = make_sampler(Flow(shift=3.0), sampler_options(Flow(), {"name": "euler", **every})[0])
    np.testing.assert_array_equal(plan.grid.sigmas, flow_grid(3, 3.0).sigmas)
    linear = make_schedule({"name": "linear"})
    assert sampler_options(linear, {"name": "ddim", "steps": 3, "shift": 5.0})[1] == ["shift"]
    # What belongs to none is left to make_sampler, which names it.
    assert "ordr" in sampler_options(Flow(), {"name": "euler", "steps": 3, "ordr": 2})[0]
    with pytest.raises(VidlatentError, match="did you mean 'unipc'"):
        sampler_options(Flow(), {"name": "unipcc"})


def test_config_errors():
    flow = Flow()
    for config, words in [
        ({"name": "unipcc", "steps": 3}, "unipc"),
        ({"name": "unipc", "steps": 3, "ordr": 2}, "order"),
        ({"name": "unipc", "steps": 3, "order": 4}, "1, 2 or 3"),
        ({"name": "unipc", "steps": 3, "solver_type": "bh3"}, "bh"),
        ({"name": "unipc", "steps": 4, "lower_order_final": False}, "lower_order_final"),
        ({"name": "euler"}, "sampler.steps"),
        ({"name": "euler", "steps": 0}, "at least 1"),
        ({"name": "euler", "steps": 3, "spacing": "clear"}, "clean"),
        ({"name": "euler", "steps": 3, "shift": 0.0}, "shift"),
        ({"name": "euler", "steps": 3, "sigmas": (1.0, 0.5)}, "2 levels"),
        ({"name": "euler", "steps": 2, "sigmas": (0.5, 0.8)}, "fall"),
        ({"name": "ddim", "steps": 3, "eta": 2.0}, "eta"),
        ({"name": "ancestral", "steps": 3, "variance": "fixed_smal"}, "fixed_small"),
        ({"steps": 3}, "sampler.name"),
    ]:
        with pytest.raises(VidlatentError, match=words):
            make_sampler(flow, config)
    with pytest.raises(VidlatentError, match="ddim"):
        make_sampler(make_schedule({"name": "linear"}), {"name": "euler", "steps": 3})
