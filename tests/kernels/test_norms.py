"""Norms in the form of each platform against plain ones: values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.kernels.forms import check, normal
from vidlatent.kernels.norms import layer_norm
from vidlatent.layers.norms import group_affine
from vidlatent.parallel.mesh import make_mesh


def plain(x, eps=1e-6):
    h = x.astype(jnp.float32)
    h = h - jnp.mean(h, -1, keepdims=True)
    return h / jnp.sqrt(jnp.mean(h**2, -1, keepdims=True) + eps)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_both_sums_of_the_variance_normalise(dtype):
    x = 0.5 + normal(0, 2, 19, 70)
    for platform in ("tpu", "cpu"):
        check(functools.partial(layer_norm, platform=platform), plain, (x,), dtype)


def test_one_sweep_survives_rows_without_variance():
    x = jnp.array([[1000.0] * 50, [0.0] * 50, [1e-3] * 50])
    value, back = jax.vjp(functools.partial(layer_norm, platform="tpu"), x)
    for array in (value, *back(jnp.ones_like(value))):
        assert np.isfinite(array).all()


def test_the_platform_is_the_meshs(topology_devices):
    """Compiled ahead of time on a CPU host, a TPU's form is taken."""
    sizes = dict.fromkeys(("data", "fsdp", "context", "tensor"), 1)
    x = jnp.ones((2, 8))
    with jax.set_mesh(make_mesh(sizes, topology_devices("v5p:1x1x1")[:1])):
        here = str(jax.make_jaxpr(layer_norm)(jax.ShapeDtypeStruct(x.shape, x.dtype)))
    forms = {
        name: str(jax.make_jaxpr(functools.partial(layer_norm, platform=name))(x))
        for name in ("tpu", "cpu")
    }
    assert here == forms["tpu"] != forms["cpu"]


def by_groups(x, groups, kind, axes):
    """The textbook form, which reshapes the map itself into groups."""
    parts = x.astype(jnp.float32).reshape(*x.shape[:-1], groups, -1)
    over = (2, 3, 5) if axes == "hw" else (1, 2, 3, 5)
    mean = jnp.mean(parts, over, keepdims=True)
    centre = 0 if kind == "rms" else mean
    moment = jnp.mean((parts - centre) ** 2, over, keepdims=True)
    shift = mean if kind == "group" else 0
    return ((parts - shift) / jnp.sqrt(moment + 1e-6)).reshape(x.shape)


@pytest.mark.parametrize(
    "kind, axes, dtype",
    [
        ("rms", "hw", "float32"),
        ("rms", "hw", "bfloat16"),
        ("group", "hw", "float32"),
        ("std_no_shift", "thw", "float32"),
    ],
)
def test_moments_by_channel_are_those_of_the_groups(kind, axes, dtype):
    def form(x):
        scale, shift = group_affine(x, 3, kind=kind, axes=axes)
        return x * scale + shift

    x = 0.3 + normal(1, 2, 2, 5, 3, 12)
    check(form, lambda x: by_groups(x, 3, kind, axes), (x,), dtype)


def test_the_map_is_not_cut_into_groups():
    text = str(
        jax.make_jaxpr(lambda x: group_affine(x, 4, kind="group"))(jnp.ones((1, 2, 6, 5, 8)))
    )
    assert "reshape" in text and "6,5,4,2" not in text
