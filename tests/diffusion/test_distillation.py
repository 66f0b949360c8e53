"""Properties of the distillation losses, and a Gaussian distilled to convergence."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vidlatent.diffusion.distillation import fake_score_loss, halve_steps, score_identity_loss
from vidlatent.diffusion.flow import interpolate, sample_sigma
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
    """Of data N(mean, std^2), exactly."""
    gain = (1 - sigma) * std**2 / ((1 - sigma) ** 2 * std**2 + sigma**2)
    return (z - mean - gain * (z - (1 - sigma) * mean)) / sigma


def test_a_gaussian_is_distilled():
    """Teacher N(0, 1), generator ``a n + b``, exact score of its samples: a -> 1 and b -> 0."""
    optimizer = optax.adam(5e-3, b1=0.0, b2=0.999)

    def loss(params, key, alpha):
        of_n, of_eps, of_sigma = jax.random.split(key, 3)
        n, eps = (jax.random.normal(k, (64,)) for k in (of_n, of_eps))
        sigma = sample_sigma(of_sigma, 64, np.log(2.0), 1.6)
        fake = functools.partial(_velocity, *jax.lax.stop_gradient((params["b"], params["a"])))
        teacher = functools.partial(_velocity, 0.0, 1.0)
        x = params["a"] * n + params["b"]
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
