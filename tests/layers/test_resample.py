"""Shortcuts and shuffles against their definitions by index."""

import jax.numpy as jnp
import numpy as np
import pytest

from vidlatent.errors import VidlatentError
from vidlatent.layers import resample
from vidlatent.models.tokenizers.fsvideo.linear_attention import relu_linear_attention


def _x(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(("channels", "features"), [(2, 4), (4, 4), (4, 2), (2, 8), (4, 16)])
def test_down_shortcut_by_index(channels, features):
    x = _x((1, 2, 4, 6, channels))
    got = resample.down_shortcut(x, features)
    group = 4 * channels // features
    want = np.zeros((1, 2, 2, 3, features), np.float32)
    for out in range(features):
        for index in range(out * group, (out + 1) * group):
            c, dy, dx = index // 4, index // 2 % 2, index % 2
            want[..., out] += x[:, :, dy::2, dx::2, c] / group
    np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize(("channels", "features"), [(4, 2), (4, 4), (2, 4), (8, 2)])
def test_up_shortcut_by_index(channels, features):
    x = _x((1, 2, 3, 2, channels))
    got = resample.up_shortcut(x, features)
    repeats = 4 * features // channels
    for c in range(features):
        for dy in range(2):
            for dx in range(2):
                want = x[..., (4 * c + 2 * dy + dx) // repeats]
                np.testing.assert_array_equal(got[:, :, dy::2, dx::2, c], want)


@pytest.mark.parametrize(("channels", "features"), [(4, 8), (4, 4), (2, 16)])
@pytest.mark.parametrize("order", ["hwt", "thw"])
def test_temporal_shortcuts_by_index(channels, features, order):
    if order == "thw" and features > 4 * channels:
        pytest.skip("frame 0 has no image shortcut")
    x = _x((1, 5, 4, 4, channels))
    got = resample.down_shortcut(x, features, time=True, order=order)
    group = 8 * channels // features
    for out in range(features):
        want = 0.0
        for index in range(out * group, (out + 1) * group):
            c, sub = index // 8, np.unravel_index(index % 8, (2, 2, 2))
            at = dict(zip(order, sub, strict=True))
            want = want + x[:, 1 + at["t"] :: 2, at["h"] :: 2, at["w"] :: 2, c] / group
        np.testing.assert_allclose(got[:, 1:, ..., out], want, atol=1e-6)
    if 4 * channels % features == 0:
        alone = resample.down_shortcut(x[:, :1], features)
        np.testing.assert_allclose(got[:, :1], alone, atol=1e-6)


@pytest.mark.parametrize("order", ["hwt", "thw"])
@pytest.mark.parametrize("time", [False, True])
def test_channel_to_space_inverts(order, time):
    x = _x((2, 4, 4, 6, 3))
    y = resample.space_to_channel(x, time, order)
    np.testing.assert_array_equal(resample.channel_to_space(y, time, order), x)


def test_up_shortcut_by_shuffle_equals_repeated_frames():
    x = _x((1, 3, 2, 2, 4))
    shuffled = resample.channel_to_space(resample.repeat_channels(x, 8 * 2), True, "hwt")[:, 1:]
    np.testing.assert_array_equal(resample.up_shortcut(x, 2, time=True), shuffled)


def test_widths_that_do_not_divide_are_refused():
    with pytest.raises(VidlatentError, match="change the stage widths"):
        resample.down_shortcut(_x((1, 1, 2, 2, 4)), 3)


def test_linear_attention_is_the_quadratic_form():
    q, k, v = (_x((2, 7, 3, 4), seed) for seed in range(3))
    scores = np.einsum("fnhd,fmhd->fhnm", np.maximum(q, 0), np.maximum(k, 0))
    want = np.einsum("fhnm,fmhd->fnhd", scores, v)
    want = want / (scores.sum(-1).transpose(0, 2, 1)[..., None] + 1e-15)
    np.testing.assert_allclose(relu_linear_attention(q, k, v), want, atol=1e-5)


def test_a_query_that_meets_no_key_gives_zero():
    q = -jnp.ones((1, 2, 1, 4))
    out = relu_linear_attention(q.astype(jnp.bfloat16), -q, q)
    np.testing.assert_array_equal(out, jnp.zeros_like(out))
