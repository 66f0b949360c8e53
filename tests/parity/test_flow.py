"""Noise levels, deviation and confidence mask against numbers from FSVideo's formulas."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from vidlatent.diffusion import flow, refiner


@pytest.fixture(scope="module")
def case(reference):
    stored = np.load(reference("losses", "losses.npz"))
    return {k: stored[k] for k in stored.files if k.startswith(("tsample", "dev", "mask", "huber"))}


def last(x):
    return jnp.asarray(np.moveaxis(x, 1, -1), jnp.float32)


def test_noise_levels(case):
    runs = [k for k in case if k.startswith("tsample.mean")]
    assert runs
    for run in runs:
        mean, std, shift = map(float, re.findall(r"mean(.*)_std(.*)_shift(.*)", run)[0])
        got = flow.sigma_from_normal(case["tsample.z"], mean, std, shift)
        np.testing.assert_allclose(got, case[run], rtol=2e-6)


def test_deviation(case):
    z0, eps, v = (last(case[f"dev.{k}"]) for k in ("z0", "eps", "v_hat"))
    sigma = jnp.asarray(case["dev.sigma"], jnp.float32)
    got = refiner.deviate(lambda z, sigma: v, z0, eps, sigma)
    for name in ("z_sigma", "z0_hat", "z0_tilde"):
        np.testing.assert_allclose(got[name], last(case[f"dev.{name}"]), atol=2e-6, err_msg=name)


def test_confidence(case):
    low, high, tau = map(float, case["mask.params_lo_hi_tau"])
    first, up = last(case["mask.z_hi_first"]), last(case["mask.z_up_first"])
    got = refiner.confidence(first, up, low, high, tau)
    np.testing.assert_allclose(got, last(case["mask.value"]), rtol=2e-6)


def test_velocity_loss(case):
    pred, target = (last(case[f"huber.{k}"]) for k in ("pred", "target"))
    c0 = float(case["huber.c"]) / np.sqrt(np.prod(pred.shape[1:]))
    got = flow.velocity_loss(pred, target, "sample", c0)
    np.testing.assert_allclose(got, case["huber.per_sample_normalised"], rtol=1e-5)
