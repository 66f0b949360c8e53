"""fp8 products: the error that rounding implies, and no overflow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.kernels.forms import normal
from vidlatent.kernels.fp8 import DTYPE, fp8_product, quantise_fp8


def test_rounding_is_relative_to_the_largest_value():
    x = 1e-4 * normal(0, 64, 32)
    found = quantise_fp8(x)
    assert found.value.dtype == DTYPE and found.scale.shape == ()
    back = np.asarray(found.value, np.float32) * np.asarray(found.scale)
    # Three bits of mantissa: half a step is 1/16; below 2^-6 of the range steps are equal.
    allowed = np.maximum(np.abs(x) / 16, np.abs(x).max() / 448 * 2.0**-10) * 1.001
    assert (np.abs(back - x) <= allowed).all()
    # The largest value has the largest number; the scale has eight bits.
    assert np.abs(np.asarray(found.value, np.float32)).max() == 448
    np.testing.assert_allclose(np.abs(back).max(), np.abs(x).max(), rtol=2.0**-8)


def test_stacked_matrices_have_scales_of_their_own():
    x = normal(0, 3, 8, 4) * np.array([1e-3, 1.0, 1e3], np.float32)[:, None, None]
    stacked = quantise_fp8(x, (1, 2))
    assert stacked.scale.shape == (3,)
    for i in range(3):
        np.testing.assert_allclose(stacked.scale[i], quantise_fp8(x[i]).scale, rtol=1e-6)
    back = np.asarray(stacked.value, np.float32) * np.asarray(stacked.scale)[:, None, None]
    errors = np.linalg.norm(back - x, axis=(1, 2)) / np.linalg.norm(x, axis=(1, 2))
    assert (errors < 0.04).all()


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_products_err_by_a_few_percent_whatever_the_range(scale):
    x, w = scale * normal(0, 2, 40, 256), 0.02 * normal(1, 256, 64)
    got = np.asarray(fp8_product(jnp.asarray(x), quantise_fp8(w), jnp.float32))
    error = np.linalg.norm(got - x @ w) / np.linalg.norm(x @ w)
    # Two roundings of a relative error uniform within 1/16: 1/16 / sqrt(3) * sqrt(2), at most.
    assert 0.005 < error < 0.052


def test_scales_are_not_rounded_on_the_way():
    """450 / 448 lies between two numbers of bfloat16: rounded late, each would add 0.33 %."""
    x, w = (np.clip(normal(i, *shape), -3, 3) for i, shape in enumerate(((96, 256), (256, 64))))
    x, w = (450 / np.abs(a).max() * a for a in (x, w))
    kernel = quantise_fp8(w)
    assert (kernel.scale.astype(jnp.bfloat16) == kernel.scale).all()
    options = {"xla_allow_excess_precision": False}  # which hides it on CPUs
    product = jax.jit(fp8_product, static_argnums=2, compiler_options=options)
    x = jnp.asarray(x, jnp.bfloat16)
    got, want = (np.float32(product(x, kernel, dtype)) for dtype in (jnp.bfloat16, jnp.float32))
    assert abs(np.vdot(got, want) / np.vdot(want, want) - 1) < 2e-3


def test_zeros_stay_zeros():
    x = jnp.zeros((2, 8))
    assert not np.asarray(fp8_product(x, quantise_fp8(jnp.zeros((8, 4))), jnp.bfloat16)).any()
