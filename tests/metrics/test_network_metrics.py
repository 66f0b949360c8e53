"""Metrics that look through a network: what it is shown, and what the scores are called."""

import jax
import numpy as np
import pytest

from vidlatent.errors import VidlatentError
from vidlatent.metrics import RESIZE, fvd_features, fvd_name, lpips, lpips_name, resize_clip
from vidlatent.models.pretrained.load import load_network

QUICK = {"xla_backend_optimization_level": 0}  # each program runs once


def pixels(*shape):
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def test_lpips_of_frames():
    network = load_network("lpips_tiny", "random:1")
    a, b = pixels(2, 3, 12, 10, 3), pixels(2, 3, 12, 10, 3)[::-1].copy()

    def measure(params, *pair, unit_range=False):
        return lpips(network._replace(params=params), *pair, unit_range=unit_range)

    measure = jax.jit(measure, static_argnames="unit_range", compiler_options=QUICK)
    found = measure(network.params, a, b)
    assert found.shape == (2, 3) and found.dtype == np.float32
    signed = [x.astype(np.float32) / 127.5 - 1 for x in (a, b)]
    alone = jax.jit(network.apply, compiler_options=QUICK)
    one = alone(network.params, signed[0][1], signed[1][1])
    np.testing.assert_allclose(found[1], one, rtol=1e-5)
    np.testing.assert_allclose(measure(network.params, *signed), found, rtol=1e-5)
    # Shown [0, 1], the same pixels give another, smaller number.
    unit = measure(network.params, a, b, unit_range=True)
    halves = [(x + 1) / 2 for x in signed]
    np.testing.assert_allclose(unit, measure(network.params, *halves), rtol=1e-5)
    assert (unit < found).all()
    assert lpips_name(network) == "lpips_tiny_random1"
    assert lpips_name(network, unit_range=True) == "lpips_tiny_random1_unit_range"


def test_resize_rules():
    video = pixels(1, 2, 40, 60, 3)
    plain = resize_clip(video, 20)
    assert plain.shape == (1, 2, 20, 20, 3) and plain.dtype == np.float32
    # Two to one: the mean of two neighbours; three to one: the middle one.
    x = video.astype(np.float32) / 127.5 - 1
    expected = (x[:, :, ::2, 1::3] + x[:, :, 1::2, 1::3]) / 2
    np.testing.assert_allclose(plain, expected, atol=1e-6)
    np.testing.assert_allclose(resize_clip(x, 20), plain, atol=1e-6)
    smooth = resize_clip(video, 20, "antialias")
    # Widened triangles of 2 (half) pixels: weights 1, 3, 3, 1.
    rows = (x[:, :, 9] + 3 * x[:, :, 10] + 3 * x[:, :, 11] + x[:, :, 12]) / 8
    weights = np.array([1, 2, 3, 2, 1]) / 9
    found = np.einsum("btwc,w->btc", rows[:, :, 14:19], weights)
    np.testing.assert_allclose(smooth[:, :, 5, 5], found, atol=1e-6)
    cropped = resize_clip(video, 20, "crop")
    # Short side 20, long side 30, of which the middle 20 are kept.
    whole = resize_clip(video[:, :, :, 10:50], 20, "antialias")
    np.testing.assert_allclose(cropped[:, :, :, 2:-2], whole[:, :, :, 2:-2], atol=1e-6)
    np.testing.assert_array_equal(resize_clip(plain, 20, "crop"), plain)
    with pytest.raises(VidlatentError, match="not by 'nearest'"):
        resize_clip(video, 20, "nearest")


def test_fvd_features():
    network = load_network("videomae_tiny", "random")
    video = pixels(2, 4, 24, 40, 3)
    apply = jax.jit(network.apply, compiler_options=QUICK)
    network = network._replace(apply=apply)
    found = fvd_features(network, video)
    assert found.shape == (2, 16)
    for rule in RESIZE:
        expected = apply(network.params, resize_clip(video, 32, rule))["features"]
        np.testing.assert_array_equal(fvd_features(network, video, rule), expected)
    assert np.abs(fvd_features(network, video, "crop") - found).max() > 1e-4
    assert fvd_name(network) == "fvd_videomae_tiny_random0_biased_bilinear32"
    real = network._replace(name="i3d_kinetics400", label="i3d_kinetics400")
    assert fvd_name(real, "antialias") == "fvd_i3d_kinetics400_biased_antialias224"
