"""IDDPM's training terms and DPM-Solver++ against PixArt's code."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from vidlatent.diffusion import make_schedule
from vidlatent.diffusion.vlb import diffusion_loss


@pytest.fixture(scope="module")
def case(reference):
    stored = np.load(reference("reducio", "iddpm.npz"))
    assert "linear 1000" in json.loads(str(stored["meta"]))["component"]
    return {k.removeprefix("io/"): stored[k] for k in stored.files if k != "meta"}


@pytest.fixture(scope="module")
def diffusion():
    return make_schedule({"name": "linear", "steps": 1000})


def last(x):
    return jnp.asarray(np.moveaxis(x, 1, -1))


def test_tables(case, diffusion):
    betas = case["betas"]
    np.testing.assert_allclose(diffusion.tables["beta"][: len(betas)], betas, rtol=1e-6)
    abar = diffusion.alphas_cumprod[[0, 500, 999]]
    np.testing.assert_allclose(abar, case["alphas_cumprod_0_500_999"], rtol=1e-6)


def test_training_terms(case, diffusion):
    x0, noise, output = (last(case[k]) for k in ("x0", "noise", "model_out"))
    t = jnp.asarray(case["t"], jnp.int32)
    np.testing.assert_allclose(diffusion.add_noise(x0, noise, t), last(case["x_t"]), atol=1e-6)
    terms = diffusion_loss(diffusion, output, x0, noise, t)
    np.testing.assert_allclose(terms.mse, case["mse"], rtol=1e-5)
    np.testing.assert_allclose(terms.vb, case["vb"], rtol=1e-5)
    np.testing.assert_allclose(terms.loss, case["loss"], rtol=1e-5)


def test_reverse_step(case, diffusion):
    t = jnp.asarray(case["t"], jnp.int32)
    step = diffusion.step(last(case["x_t"]), last(case["model_out"]), t)
    # x0 is up to 157 times the network's output here.
    np.testing.assert_allclose(step.x0, last(case["pred_x0"]), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(step.mean, last(case["p_mean"]), atol=1e-5)
    np.testing.assert_allclose(step.log_variance, last(case["p_log_variance"]), atol=1e-5)
