"""Norm and rotation of queries and keys: the Pallas form, interpreted, against the plain one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.kernels.forms import STRICT, check, devices, normal
from vidlatent.errors import VidlatentError
from vidlatent.kernels.qk_norm_rope import qk_norm_rope, rotate_halves
from vidlatent.layers.positions import rope_tables, rotate_pairs
from vidlatent.weights.importer import TRANSFORMS


def forms(count, heads, width=256, interpret=True):
    """The Pallas form and the plain one, as functions of ``x`` and ``scale``."""
    tables = tuple(normal(3 + i, count, width // heads // 2) for i in range(2))

    def form(implementation):
        run = functools.partial(qk_norm_rope, implementation=implementation, interpret=interpret)
        return lambda x, scale: run(x, scale, tables, heads)

    return form("pallas"), form("xla")


def test_halves_are_pairs_in_another_order():
    x = normal(0, 1, 12, 2 * 24)
    tables = rope_tables((2, 2, 3), 24)
    order = TRANSFORMS["halves"][0](np.arange(48), (2, 24)).reshape(-1)
    pairs = rotate_pairs(jnp.asarray(x).reshape(1, 12, 2, 24), tables).reshape(1, 12, 48)
    halves = rotate_halves(jnp.asarray(x)[..., order].reshape(1, 12, 2, 24), tables)
    np.testing.assert_allclose(halves.reshape(1, 12, 48), pairs[..., order], atol=1e-6)


@pytest.mark.parametrize(
    "count, heads, dtype",
    [
        (70, 2, "float32"),
        (150, 1, "bfloat16"),  # a head of 256 channels, and a second block of 22 tokens
        pytest.param(128, 2, "bfloat16", marks=pytest.mark.slow),
        pytest.param(1, 2, "float32", marks=pytest.mark.slow),
    ],
)
def test_norm_and_rotation_in_one_kernel(count, heads, dtype):
    inputs = (normal(0, 2, count, 256), 1 + normal(1, 256))
    check(*forms(count, heads), inputs, dtype, half=1)


@pytest.mark.slow
def test_under_vmap():
    pallas, xla = forms(40, 2)
    inputs = (normal(0, 3, 2, 40, 256), 1 + normal(1, 3, 256))
    check(jax.vmap(pallas), jax.vmap(xla), inputs)


def test_nothing_is_read_that_was_not_written():
    """The last block has 6 tokens of 64; what lies beyond them must not enter any sum."""
    inputs = (normal(0, 1, 70, 256), 1 + normal(1, 256))
    check(*forms(70, 2, interpret=STRICT), inputs)


def test_on_eight_devices():
    inputs = (normal(0, 4, 64, 256), 1 + normal(1, 256))
    pallas, xla = forms(64, 2)
    with jax.set_mesh(devices(data=2, fsdp=2, context=2)):
        check(pallas, xla, inputs)
    with jax.set_mesh(devices(tensor=2)):
        with pytest.raises(VidlatentError, match="tensor splits the heads"):
            pallas(*inputs)
    with pytest.raises(VidlatentError, match="multiple of 128 channels, not 64"):
        forms(64, 4)[0](*inputs)
