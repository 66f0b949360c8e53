"""Noise levels, deviation and confidence mask against numbers from FSVideo's formulas."""

import re

import jax.numpy as jnp
import numpy as np

from vidlatent.diffusion import flow, refiner


def last(x):
    return jnp.asarray(np.moveaxis(x, 1, -1), jnp.float32)


def test_noise_levels(losses_family):
    with losses_family("tsample") as case:
        runs = [name for name in case if name != "z"]
        assert runs
        for run in runs:
            mean, std, shift = map(float, re.findall(r"mean(.*)_std(.*)_shift(.*)", run)[0])
            got = flow.sigma_from_normal(case["z"], mean, std, shift)
            np.testing.assert_allclose(got, case[run], rtol=2e-6)


def test_deviation(losses_family):
    with losses_family("dev") as case:
        z0, eps, v = (last(case[name]) for name in ("z0", "eps", "v_hat"))
        sigma = jnp.asarray(case["sigma"], jnp.float32)
        got = refiner.deviate(lambda z, sigma: v, z0, eps, sigma)
        for name in ("z_sigma", "z0_hat", "z0_tilde"):
            np.testing.assert_allclose(got[name], last(case[name]), atol=2e-6, err_msg=name)


def test_confidence(losses_family):
    with losses_family("mask") as case:
        low, high, tau = map(float, case["params_lo_hi_tau"])
        first, up = last(case["z_hi_first"]), last(case["z_up_first"])
        got = refiner.estimate_confidence(first, up, low, high, tau)
        np.testing.assert_allclose(got, last(case["value"]), rtol=2e-6)
        error = -tau * np.log((np.asarray(got) - low) / (high - low))
        np.testing.assert_allclose(error, last(case["err"]), rtol=1e-5)


def test_velocity_loss(losses_family):
    with losses_family("huber") as case:
        pred, target = (last(case[name]) for name in ("pred", "target"))
        root = np.sqrt(np.prod(pred.shape[1:]))
        got = flow.velocity_loss(pred, target, "sample", float(case["c"]) / root)
        np.testing.assert_allclose(got, case["per_sample_normalised"], rtol=1e-5)
        np.testing.assert_allclose(root * got, case["per_sample_raw"], rtol=1e-5)
