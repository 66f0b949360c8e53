"""Distillation's losses and targets against float64 numbers from their formulas."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from vidlatent.diffusion import distillation, flow

WEIGHTINGS = {"1_minus_sigma": "one_minus_sigma", "sid_legacy": "inverse_error"}


def test_score_identity(losses_family):
    """The loss and its gradient through both networks, in float64 as the case is."""
    with jax.enable_x64(True), losses_family("sid") as case:
        x, eps, sigma = (jnp.asarray(case[name]) for name in ("xg", "eps", "sigma"))

        def network(matrix, bias):
            return lambda z, sigma: z @ matrix + sigma[:, None] * bias

        teacher, fake = (network(case[f"M_{n}"], case[f"b_{n}"]) for n in ("real", "fake"))
        runs = [re.fullmatch(r"loss_alpha(.*?)_(.*)", name) for name in case]
        runs = [run.groups() for run in runs if run]
        assert len(runs) > 1

        def loss(x, alpha, weighting):
            found = distillation.score_identity_loss(teacher, fake, x, eps, sigma, alpha, weighting)
            return found.loss.mean(), found

        grad = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=2)
        for alpha, weighting in runs:
            (value, found), of_x = grad(x, float(alpha), WEIGHTINGS[weighting])
            run = f"alpha{alpha}_{weighting}"
            np.testing.assert_allclose(value, case[f"loss_{run}"], rtol=1e-9)
            np.testing.assert_allclose(of_x, case[f"grad_xg_{run}"], atol=1e-9)
            np.testing.assert_allclose(found.teacher, case["y_real"], atol=1e-10)
            np.testing.assert_allclose(found.fake, case["y_fake"], atol=1e-10)


def test_progressive_target(losses_family):
    with jax.enable_x64(True), losses_family("pd") as case:
        z, first = jnp.asarray(case["z_start"]), case["v_first"]
        velocities = iter((first, case["v_second(tanh of z_mid)"]))
        found = distillation.halve_steps(lambda z, sigma: next(velocities), z, case["sigmas"])
        np.testing.assert_allclose(found.middle, case["z_mid"], atol=1e-12)
        np.testing.assert_allclose(found.end, case["z_end"], atol=1e-12)
        np.testing.assert_allclose(found.target, case["v_target"], atol=1e-12)
        # The same from a network that is shown where it stands and when.
        start = flow.network_time(jnp.full(len(z), case["sigmas"][0]))

        def teacher(z, sigma):
            return jnp.where((flow.network_time(sigma) == start).all(), first, jnp.tanh(z))

        again = distillation.halve_steps(teacher, z, case["sigmas"])
        np.testing.assert_allclose(again.target, case["v_target"], atol=1e-12)
