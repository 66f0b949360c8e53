"""Attention to one map: windows, crops, rotary positions; noise by position."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlatent.models.tokenizers.fsvideo.first_frame_attention import (
    FirstFrameAttention,
    rotate_plane,
    window_attention,
)
from vidlatent.models.tokenizers.fsvideo.noise import NoiseField, normal_map


def _jit(f):
    """Compiled as a whole and quickly: one by one the operations take many times as long."""
    return jax.jit(f, compiler_options={"xla_backend_optimization_level": 0})


def _random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def _dense(q, k, v, mask):
    """All queries against all keys; ``mask`` [queries, keys]."""
    q, k, v = (x.reshape(x.shape[0], -1, *x.shape[-2:]) for x in (q, k, v))
    scores = jnp.einsum("nqhd,nkhd->nhqk", q, k) * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), axis=-1)
    return jnp.einsum("nhqk,nkhd->nqhd", weights, v)


def _window_ids(height, width, side):
    rows, columns = np.meshgrid(np.arange(height) // side, np.arange(width) // side, indexing="ij")
    return (rows * 1000 + columns).ravel()


@pytest.mark.parametrize(("height", "width", "side"), [(7, 10, 4), (8, 3, 4), (5, 5, 8), (6, 6, 0)])
def test_windows_equal_a_masked_dense_attention(height, width, side):
    q = _random(2, 3, height, width, 2, 4)
    k, v = _random(2, height, width, 2, 4, seed=1), _random(2, height, width, 2, 4, seed=2)
    ids = _window_ids(height, width, side or 1000)
    mask = np.tile(ids, 3)[:, None] == ids[None]
    got = _jit(lambda q, k, v: window_attention(q, k, v, side))(q, k, v)
    want = _jit(_dense)(q, k, v, mask).reshape(q.shape)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_crops_of_queries_agree_with_the_whole_wherever_they_start():
    q, k, v = _random(1, 2, 11, 13, 2, 4), _random(1, 11, 13, 2, 4), _random(1, 11, 13, 2, 4)
    want = _jit(lambda q, k, v: window_attention(q, k, v, 4))(q, k, v)
    crop = _jit(
        lambda y, x: window_attention(
            jax.lax.dynamic_slice(q, (0, 0, y, x, 0, 0), (1, 2, 5, 6, 2, 4)), k, v, 4, (y, x)
        )
    )
    for y, x in [(0, 0), (1, 2), (3, 7), (6, 5), (4, 4)]:
        np.testing.assert_allclose(crop(y, x), want[:, :, y : y + 5, x : x + 6], atol=1e-6)


def test_rotation_keeps_lengths_and_sees_only_relative_places():
    x = _random(1, 6, 6, 1, 8)
    turned = rotate_plane(x, (0, 0))
    np.testing.assert_allclose(jnp.sum(turned**2), jnp.sum(x**2), rtol=1e-5)
    np.testing.assert_allclose(rotate_plane(x[:, 2:, 3:], (2, 3)), turned[:, 2:, 3:], atol=1e-6)
    same = jnp.broadcast_to(x[:, :1, :1], x.shape)
    dots = jnp.einsum("yxd,vud->yxvu", *[rotate_plane(same, (0, 0))[0, :, :, 0]] * 2)
    np.testing.assert_allclose(dots[1, 1, 3, 2], dots[2, 3, 4, 4], rtol=1e-4)


@pytest.mark.parametrize("form", ["softmax", "linear"])
def test_module_crops_and_caches(form):
    module = FirstFrameAttention(4, form, window=3)
    x, features = _random(1, 2, 6, 7, 8), _random(1, 6, 7, 12)
    params = _jit(module.init)(jax.random.key(0), x, None, features)
    params["params"]["to_out"]["kernel"] = _random(8, 8)
    want, cache = _jit(module.apply)(params, x, None, features)
    again, _ = _jit(module.apply)(params, x[:, 1:], cache)
    np.testing.assert_allclose(again, want[:, 1:], atol=1e-5)
    part, _ = _jit(module.apply)(params, x[:, :, 1:5, 2:], None, features, (1, 2))
    np.testing.assert_allclose(part, want[:, :, 1:5, 2:], atol=1e-5)


def test_noise_depends_on_key_site_and_absolute_position():
    keys = jax.random.split(jax.random.key(3), 2)
    whole = normal_map(NoiseField(keys), "block/conv1", 40, 50)
    assert whole.shape == (2, 1, 40, 50, 1)
    part = jax.jit(lambda y: normal_map(NoiseField(keys, y, 30), "block/conv1", 10, 20))(7)
    np.testing.assert_array_equal(part, whole[:, :, 7:17, 30:])
    assert np.abs(whole[0] - whole[1]).max() > 1
    assert np.abs(whole - normal_map(NoiseField(keys), "block/conv2", 40, 50)).max() > 1


def test_noise_is_standard_normal_and_uncorrelated():
    x = np.asarray(normal_map(NoiseField(jax.random.key(0)[None]), "a", 300, 300))[0, 0, :, :, 0]
    assert abs(x.mean()) < 0.02 and abs(x.std() - 1) < 0.02
    assert abs((x**4).mean() - 3) < 0.1 and np.isfinite(x).all()
    for a, b in ((x[1:], x[:-1]), (x[:, 1:], x[:, :-1])):
        assert abs((a * b).mean()) < 0.02
