"""Properties of the distillation losses, and a Gaussian distilled to convergence."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vidlatent.diffusion.ddpm import linear
from vidlatent.diffusion.distillation import (
    check_nested,
    distribution_matching_loss,
    draw_interval,
    fake_score_loss,
    halve_ddim_steps,
    halve_steps,
    score_identity_loss,
)
from vidlatent.diffusion.flow import interpolate, sample_sigma
from vidlatent.diffusion.grids import flow_grid, shift_levels
from vidlatent.diffusion.samplers import apply_step, ddim
from vidlatent.errors import VidlatentError

KEYS = jax.random.split(jax.random.key(0), 3)
X, EPS = (jax.random.normal(key, (4, 3, 2)) for key in KEYS[:2])
SIGMA = jnp.asarray([0.1, 0.4, 0.8, 1.0])


def test_two_steps_in_one():
    """A constant velocity is its own target; else one student step equals two of the teacher."""
    constant = halve_steps(lambda z, sigma: EPS, X, (SIGMA, SIGMA / 2, 0.0))
    np.testing.assert_allclose(constant.target, EPS, atol=1e-6)
    found = halve_steps(lambda z, sigma: jnp.sin(z) * sigma[:, None, None], X, (0.9, 0.7, 0.45))
    np.testing.assert_allclose(X + (0.45 - 0.9) * found.target, found.end, atol=1e-6)
    slope = jax.grad(
        lambda x: halve_steps(lambda z, sigma: z * z, x, (0.9, 0.7, 0.0)).target.sum()
    )(X)
    assert (slope == 0).all()


def test_halving_a_linear_ode_loses_nothing():
    """Of a linear velocity the student that has the target takes two steps in one (J61)."""
    grid = flow_grid(4)
    rate = jnp.asarray([[0.3, -0.2], [0.1, 0.4]])

    def teacher(z, sigma):
        return z @ rate

    def halved(z, k):
        return halve_steps(teacher, z, grid.sigmas[2 * k : 2 * k + 3]).target

    teacher_end = student_end = X[:, 0]
    for k in range(4):
        step = float(np.diff(grid.sigmas)[k])
        teacher_end = teacher_end + step * teacher(teacher_end, grid.sigmas[k])
    for k, step in enumerate(np.diff(flow_grid(2).sigmas)):
        student_end = student_end + float(step) * halved(student_end, k)
    np.testing.assert_allclose(student_end, teacher_end, atol=1e-6)
    # The target is linear in z, too: a linear student can have it without error.
    both = halved(X[:, 0], 0) + halved(X[:, 1], 0)
    np.testing.assert_allclose(both, halved(X[:, 0] + X[:, 1], 0), atol=1e-6)


@pytest.mark.parametrize("shift", [1.0, 3.0, 7.0])
@pytest.mark.parametrize("steps", [2, 5, 32, 48])
def test_levels_of_the_student_are_every_second_of_the_teacher(steps, shift):
    """Bit for bit (J62); the middle ones are the means of the levels before shifting."""
    teacher, student = flow_grid(2 * steps, shift), flow_grid(steps, shift)
    check_nested(student, teacher)
    plain = flow_grid(steps).sigmas
    middle = shift_levels((plain[:-1] + plain[1:]) / 2, shift)
    np.testing.assert_allclose(teacher.sigmas[1::2], middle, atol=1e-12)


def test_levels_that_do_not_nest_are_refused():
    ddpm = linear()
    check_nested(ddpm.grid(25, "trailing"), ddpm.grid(50, "trailing"))
    pairs = (
        [ddpm.grid(n, "even") for n in (10, 20)],
        [flow_grid(n, 1.0, "diffusers_euler") for n in (8, 16)],
        [flow_grid(8, 3.0), flow_grid(16, 5.0)],
        [flow_grid(8), flow_grid(24)],
    )
    for student, teacher in pairs:
        with pytest.raises(VidlatentError, match="every second one of those of"):
            check_nested(student, teacher)


def test_steps_of_every_stage_are_on_the_first_teachers_grid():
    grid = flow_grid(16, 3.0)
    for stage, steps in enumerate((8, 4, 2)):
        student = flow_grid(steps, 3.0)
        found = draw_interval(grid, jnp.asarray(2 << stage), jnp.arange(steps))
        np.testing.assert_array_equal(found.sigmas[0], student.sigmas[:-1].astype(np.float32))
        np.testing.assert_array_equal(found.sigmas[2], student.sigmas[1:].astype(np.float32))
        np.testing.assert_array_equal(found.times[0], student.times.astype(np.float32))
        teacher = flow_grid(2 * steps, 3.0)
        np.testing.assert_array_equal(found.sigmas[1], teacher.sigmas[1::2].astype(np.float32))


def test_ddim_on_the_flow_is_euler():
    """The clean sample and its noise, mixed anew at the next level: the Euler step (J63)."""
    velocities = jnp.tanh(X)
    clean = X - 0.8 * velocities
    again = ((1 - 0.3) * clean) + (0.3 / 0.8) * (X - (1 - 0.8) * clean)
    np.testing.assert_allclose(again, X + (0.3 - 0.8) * velocities, atol=1e-6)
    interval = draw_interval(flow_grid(4, 3.0), 2, jnp.asarray([0, 0, 1, 1]))

    def network(z, _):
        return jnp.sin(z) + 0.5 * z

    by_ddim = halve_ddim_steps(network, X, interval, "velocity")
    by_euler = halve_steps(network, X, interval.sigmas)
    np.testing.assert_allclose(by_ddim.end, by_euler.end, atol=1e-6)
    # The target is the clean sample that the velocity leads to.
    sigma = interval.sigmas[0][:, None, None]
    np.testing.assert_allclose(by_ddim.target, X - sigma * by_euler.target, atol=1e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0"])
def test_one_ddim_step_of_the_student_ends_where_two_end(prediction):
    """For the noise schedules of DDPM, at every interval, the last one (to no noise) included."""
    schedule = linear(prediction=prediction, variance="fixed_small")
    grid = schedule.grid(8, "trailing")
    interval = draw_interval(grid, 2, jnp.arange(4))

    def network(z, time):
        return jnp.tanh(z) * (0.2 + time[:, None, None] / 2000)

    found = halve_ddim_steps(network, X, interval, prediction)
    alphas, sigmas = (np.asarray(v)[..., None, None] for v in (interval.alphas, interval.sigmas))
    noise = (X - alphas[0] * found.target) / sigmas[0]
    end = alphas[2] * found.target + sigmas[2] * noise
    np.testing.assert_allclose(end, found.end, rtol=1e-4, atol=2e-4)
    # The teacher's own steps are those of the sampler.
    plan, x = ddim(grid, prediction), np.asarray(X)
    for row in range(4):
        state = x[row : row + 1]
        for k in (2 * row, 2 * row + 1):
            weights = jax.tree.map(lambda w, k=k: w[k], plan.rows)
            evaluate = lambda z, t, s: (np.asarray(network(z, jnp.asarray(t))), s)  # noqa: E731
            state = apply_step(weights, evaluate, state, None, ())[0]
        np.testing.assert_allclose(found.end[row], state[0], rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("weighting", ["one_minus_sigma", "inverse_error"])
def test_agreement_costs_nothing(weighting):
    """Score identity distillation of equal networks, alpha 1: value and gradient are 0."""

    def network(z, sigma):
        return jnp.tanh(z) * 2

    def loss(x):
        return score_identity_loss(network, network, x, EPS, SIGMA, 1.0, weighting).loss.sum()

    value, grad = jax.value_and_grad(loss)(X)
    assert value == 0
    np.testing.assert_allclose(grad, 0, atol=1e-6)


@pytest.mark.parametrize("weighting", ["one_minus_sigma", "inverse_error"])
@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.2])
def test_score_identity_is_its_formula_and_flows_through_both_networks(weighting, alpha):
    """Value in NumPy, and the gradient by hand for linear networks ``v = c z``: y = z - s c z."""
    of_teacher, of_fake = 0.7, -0.4

    def loss(x, factors):
        networks = (lambda z, sigma, c=c: c * z for c in factors)
        found = score_identity_loss(*networks, x, EPS, SIGMA, alpha, weighting)
        return found.loss.sum(), found

    (value, found), (grad, _) = jax.value_and_grad(loss, (0, 1), has_aux=True)(
        X, (of_teacher, of_fake)
    )
    x, eps, s = (np.asarray(a, np.float64) for a in (X, EPS, SIGMA[:, None, None]))
    z = (1 - s) * x + s * eps
    y, f = (1 - s * of_teacher) * z, (1 - s * of_fake) * z
    weight = 1 - s
    if weighting == "inverse_error":
        weight = 1 / np.abs(x - y).mean(axis=(1, 2), keepdims=True)
    apart, error = y - f, (y - x) - alpha * (y - f)
    np.testing.assert_allclose(value, (weight * apart * error).sum(), rtol=1e-4)
    np.testing.assert_allclose(found.weight, weight.ravel(), rtol=1e-5)
    dy, df = (1 - s * of_teacher) * (1 - s), (1 - s * of_fake) * (1 - s)
    want = weight * ((dy - df) * error + apart * (dy - 1 - alpha * (dy - df)))
    np.testing.assert_allclose(grad, want, rtol=1e-3, atol=1e-5)


def test_distribution_matching_is_its_formula_and_stops_at_both_networks():
    """The gradient is ``(f - y) / mean |x - y|`` of each sample, and nothing more."""

    def loss(x, factors):
        networks = (lambda z, sigma, c=c: c * z for c in factors)
        return distribution_matching_loss(*networks, x, EPS, SIGMA).loss.sum()

    value, (grad, of_networks) = jax.value_and_grad(loss, (0, 1))(X, (0.7, -0.4))
    x, eps, s = (np.asarray(a, np.float64) for a in (X, EPS, SIGMA[:, None, None]))
    z = (1 - s) * x + s * eps
    y, f = (1 - s * 0.7) * z, (1 - s * -0.4) * z
    want = (f - y) / np.abs(x - y).mean(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(grad, want, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(value, 0.5 * (want**2).sum(), rtol=1e-4)
    assert of_networks == (0.0, 0.0)


def test_unknown_weighting():
    with pytest.raises(VidlatentError, match="'inverse_eror': did you mean 'inverse_error'"):
        score_identity_loss(None, None, X, EPS, SIGMA, weighting="inverse_eror")


def test_fake_score_is_flow_matching_on_samples():
    def loss(x, factor):
        return fake_score_loss(lambda z, sigma: factor * z, x, EPS, SIGMA)

    want = np.square(2 * interpolate(X, EPS, SIGMA) - (EPS - X)).sum(axis=(1, 2))
    np.testing.assert_allclose(loss(X, 2.0), want, rtol=1e-6)
    of_x, of_factor = jax.grad(lambda *a: loss(*a).sum(), (0, 1))(X, 2.0)
    assert (of_x == 0).all() and of_factor != 0


def _velocity(mean, std, z, sigma):
    """Of data N(mean, std^2), exactly; ``z`` is ``[B, n]``."""
    sigma = sigma[:, None]
    gain = (1 - sigma) * std**2 / ((1 - sigma) ** 2 * std**2 + sigma**2)
    return (z - mean - gain * (z - (1 - sigma) * mean)) / sigma


@pytest.mark.parametrize("kind", ["sida", "dmd"])
def test_a_gaussian_is_distilled(kind):
    """Teacher N(0, 1), generator ``a n + b``, exact score of its samples: a -> 1 and b -> 0."""
    optimizer = optax.adam(5e-3, b1=0.0, b2=0.999)

    def loss(params, key, alpha):
        of_n, of_eps, of_sigma = jax.random.split(key, 3)
        n, eps = (jax.random.normal(k, (16, 8)) for k in (of_n, of_eps))
        sigma = sample_sigma(of_sigma, 16, np.log(2.0), 1.6)
        fake = functools.partial(_velocity, *jax.lax.stop_gradient((params["b"], params["a"])))
        teacher = functools.partial(_velocity, 0.0, 1.0)
        x = params["a"] * n + params["b"]
        if kind == "dmd":
            return distribution_matching_loss(teacher, fake, x, eps, sigma).loss.mean()
        return score_identity_loss(teacher, fake, x, eps, sigma, alpha).loss.mean()

    @jax.jit
    @jax.vmap
    def trained(alpha):
        def step(carry, key):
            params, moments = carry
            updates, moments = optimizer.update(jax.grad(loss)(params, key, alpha), moments)
            return (optax.apply_updates(params, updates), moments), None

        params = {"a": jnp.float32(0.4), "b": jnp.float32(0.8)}
        keys = jax.random.split(KEYS[2], 3000)
        return jax.lax.scan(step, (params, optimizer.init(params)), keys)[0][0]

    found = trained(jnp.asarray([0.5, 1.0, 1.2]))
    np.testing.assert_allclose(found["a"], 1.0, atol=1e-2)
    np.testing.assert_allclose(found["b"], 0.0, atol=1e-2)
