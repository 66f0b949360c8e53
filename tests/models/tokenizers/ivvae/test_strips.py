"""Levels computed in strips of rows equal levels computed whole, and take less memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlatent.models.load import abstract_params
from vidlatent.models.tokenizers import build
from vidlatent.models.tokenizers.ivvae.tiling import Strips, plan_strips, run_strips
from vidlatent.parallel.mesh import make_mesh

FIELDS = {
    "name": "ivvae",
    "latent_channels": 4,
    "width": 4,
    "multipliers": (1, 2, 4),
    "blocks": 1,
    "temporal_down": (0, 1),
    "pac_dilations": (0, 1),
}
WHOLE, STRIPED = (build({**FIELDS, "row_limit": limit}) for limit in (0, 60_000))


@pytest.fixture(scope="module")
def setting():
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key == "gamma":
            return np.ones(leaf.shape, np.float32)
        size = np.prod(leaf.shape[:-1]) if path[-1].key == "kernel" else 100.0
        return (rng.standard_normal(leaf.shape) / np.sqrt(size)).astype(np.float32)

    video = rng.uniform(-1, 1, (1, 9, 128, 12, 3)).astype(np.float32)
    return jax.tree_util.tree_map_with_path(draw, abstract_params(WHOLE)), video


def test_plan():
    assert plan_strips(360, 5, 2**30, 2**30) is None
    assert plan_strips(360, 5, 2**30, 0) is None
    plan = plan_strips(360, 5, 2**30, 2**28)
    assert plan.count * (plan.length - 2 * plan.reach) + 2 * plan.reach == 360
    assert plan.reach >= 5
    assert plan.length * 2**30 <= 2**28 * 360
    # Too few rows for that: as small as is sensible, or nothing.
    few = plan_strips(24, 3, 2**30, 2**20)
    assert few.length - 2 * few.reach >= 2 * few.reach
    assert plan_strips(8, 3, 2**30, 2**20) is None


def test_no_strips_on_a_mesh():
    mesh = make_mesh({"data": 2, "fsdp": 1, "context": 1, "tensor": 1}, jax.devices()[:2])
    with jax.set_mesh(mesh):
        assert plan_strips(360, 5, 2**30, 2**28) is None


@pytest.mark.parametrize("count", [2, 5])
def test_any_layers(count):
    """Rows are doubled, and the cache is at another resolution."""
    x = jax.random.normal(jax.random.key(2), (1, 2, 34, 6, 3))
    cache = jax.random.normal(jax.random.key(3), (1, 1, 68, 6, 3))
    kernel = jax.random.normal(jax.random.key(4), (3, 3, 3, 3))

    def conv(x):
        y = jax.lax.conv_general_dilated(
            x.reshape(-1, *x.shape[2:]),
            kernel,
            (1, 1),
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y.reshape(*x.shape[:2], *y.shape[1:])

    def layers(x, cache):
        y = jnp.repeat(conv(x), 2, axis=2)
        y = y if cache is None else y + conv(cache)
        return conv(y), y[:, -1:]

    strips = Strips(count, (34 - 4) // count + 4, 2)
    for kept in (None, cache):
        run = jax.jit(functools.partial(run_strips, layers, rows=34, strips=strips))
        found, wanted = run(x, kept), layers(x, kept)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)


@functools.cache
def coded(model):
    return jax.jit(
        lambda p, x, cache: model.apply({"params": p}, x, cache=cache, method="encode"),
    ), jax.jit(
        lambda p, x, cache: model.apply({"params": p}, x, cache=cache, method="decode"),
    )


def run(model, params, video):
    """Everything that two pieces of a stream give: moments, videos, caches."""
    encode, decode = coded(model)
    first, cache = encode(params, video[:, :5], None)
    second, kept = encode(params, video[:, 5:], cache)
    images, cache = decode(params, first.mean, None)
    others, last = decode(params, second.mean, cache)
    return first, second, kept, images, others, last


def test_a_stream_in_strips_is_the_stream(setting):
    found, wanted = (run(model, *setting) for model in (STRIPED, WHOLE))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_strips_take_less_memory(setting):
    def temporary(model, frames):
        encode, _ = coded(model)
        params, video = setting
        compiled = encode.lower(params, video[:, :frames], None).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(STRIPED, 5) < 0.6 * temporary(WHOLE, 5)


@pytest.mark.slow
def test_gradients_through_strips(setting):
    params, video = setting

    def loss(params, model):
        return jnp.mean(jnp.square(model.apply({"params": params}, video[:, :5])[0]))

    found, wanted = (jax.jit(jax.grad(loss), static_argnums=1)(params, m) for m in (STRIPED, WHOLE))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * max(1.0, np.abs(b).max()))
