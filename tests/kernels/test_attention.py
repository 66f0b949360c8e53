"""Attention in every form: equal to the plain one, on one device and on eight.

The Pallas form runs in interpret mode here; ``test_compiled_for_tpu.py`` compiles it.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.kernels.forms import STRICT, check, devices, normal
from vidlatent.errors import VidlatentError
from vidlatent.kernels import attention as attention_module
from vidlatent.kernels.attention import _blocks, attention, attention_form

splash = functools.partial(attention, implementation="splash", interpret=True)
plain = functools.partial(attention, implementation="xla")


def _qkv(batch, queries, keys, heads, dim):
    return tuple(normal(i, batch, n, heads, dim) for i, n in enumerate((queries, keys, keys)))


@pytest.mark.parametrize(
    "sizes, dtype",
    [
        ((2, 140, 77, 2, 64), "float32"),
        ((1, 200, 77, 1, 80), "bfloat16"),
        pytest.param((1, 131, 150, 2, 72), "bfloat16", marks=pytest.mark.slow),
        pytest.param((1, 128, 128, 1, 96), "float32", marks=pytest.mark.slow),
        pytest.param((2, 150, 257, 1, 128), "bfloat16", marks=pytest.mark.slow),
        pytest.param((1, 150, 131, 1, 192), "float32", marks=pytest.mark.slow),
        pytest.param((1, 150, 131, 1, 256), "bfloat16", marks=pytest.mark.slow),
        # More than one block of queries and of keys at this width: 1024 + 128.
        pytest.param((1, 1100, 1100, 1, 256), "float32", marks=pytest.mark.slow),
    ],
)
def test_splash_with_padding_equals_the_plain_form(sizes, dtype):
    check(splash, plain, _qkv(*sizes), dtype)


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_keys_that_do_not_exist_count_for_nothing_in_any_form(dtype):
    """Values and gradients; those of the keys that do not exist are 0."""
    inputs = q, k, v = _qkv(2, 130, 40, 1, 64)
    lengths = np.array([40, 7])
    seen = np.arange(40) < lengths[:, None]
    check(functools.partial(splash, lengths=lengths), lambda *a: plain(*a, seen), inputs, dtype)
    if dtype == "float32":
        want, same, alone = jax.jit(
            lambda q, k, v: (
                plain(q, k, v, seen),
                plain(q, k, v, lengths=lengths),
                plain(q[1:], k[1:, :7], v[1:, :7]),
            )
        )(q, k, v)
        np.testing.assert_array_equal(same, want)
        np.testing.assert_allclose(want[1:], alone, atol=1e-6)


@pytest.mark.slow
def test_splash_under_vmap():
    inputs = tuple(normal(i, 2, 1, n, 1, 64) for i, n in enumerate((130, 40, 40)))
    check(jax.vmap(splash), jax.vmap(plain), inputs)


@pytest.mark.slow
def test_splash_reads_nothing_that_was_not_written():
    strict = functools.partial(splash, interpret=STRICT)
    check(strict, plain, _qkv(1, 140, 77, 1, 64))


def test_blocks_of_queries_change_nothing(monkeypatch):
    q, k, v = _qkv(2, 17, 9, 2, 4)
    seen = jnp.arange(9)[None] < jnp.array([[9], [4]])

    def whole(q):
        return plain(q, k, v, seen)

    def blocks(q):
        monkeypatch.setattr(attention_module, "_SCORES", 100)
        return plain(q, k, v, seen)

    want = jax.jit(lambda q: (whole(q), jax.grad(lambda q: (whole(q) ** 2).sum())(q)))(q)
    got = jax.jit(lambda q: (blocks(q), jax.grad(lambda q: (blocks(q) ** 2).sum())(q)))(q)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "length, largest, block, padded",
    [
        (7440, 1536, 1536, 7680),
        (1860, 1536, 640, 1920),
        (257, 1536, 384, 384),
        (512, 1536, 512, 512),
        (1, 1536, 128, 128),
        (7440, 1024, 768, 7680),
    ],
)
def test_blocks_waste_little(length, largest, block, padded):
    assert _blocks(length, largest) == (block, padded)


def test_a_form_that_cannot_is_refused_by_name_and_replaced_by_auto():
    q = jnp.zeros((1, 200, 2, 64))
    assert attention_form(q, platform="gpu").name == "xla"
    assert "float32" in attention_form(q, platform="gpu").why
    assert attention_form(q.astype(jnp.bfloat16), platform="gpu").name == "cudnn"
    assert attention_form(q, platform="tpu").name == "splash"
    assert attention_form(q[:, :5], platform="tpu").name == "xla"
    assert attention_form(jnp.zeros((1, 200, 1, 264)), platform="tpu").name == "xla"
    assert attention_form(q, platform="cpu").name == "xla"
    with pytest.raises(VidlatentError, match="'cudnn' does not know float32: take 'xla'"):
        attention(q, q, q, implementation="cudnn")
    with pytest.raises(VidlatentError, match="seen or lengths"):
        attention(q, q, q, jnp.ones((1, 200), bool), lengths=jnp.array([3]))


@pytest.mark.parametrize(
    "heads, traded",
    [(4, True), (3, False), pytest.param(2, False, marks=pytest.mark.slow)],
)
def test_samples_tokens_and_heads_spread_over_eight_devices(heads, traded):
    """Tokens are exchanged for heads where heads divide, otherwise keys are gathered.

    Of 4 heads a device has 2 and each of its neighbours in ``context`` takes one; 3 stay whole in
    spite of ``tensor``; of 2 a device has one, which cannot be traded.
    """
    inputs = _qkv(2, 256, 256, heads, 64)
    lengths = np.array([256, 100])
    form, reference = (functools.partial(f, lengths=lengths) for f in (splash, plain))
    with jax.set_mesh(devices(data=2, context=2, tensor=2)):
        check(form, reference, inputs)
        lowered = jax.jit(form).lower(*inputs).as_text()
    assert ("all_to_all" in lowered) == traded
