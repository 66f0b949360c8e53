"""Kernels of transformers in every form: equal to the plain one, on one device and on a mesh.

Pallas forms run in interpret mode here; ``test_compiled_for_tpu.py`` compiles them.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.kernels.forms import check, normal
from vidlatent.dist.mesh import make_mesh
from vidlatent.io.importer import TRANSFORMS
from vidlatent.kernels import attention as attention_module
from vidlatent.kernels.attention import _blocks, attention, attention_form
from vidlatent.kernels.dispatch import prefer
from vidlatent.kernels.layer_mix import layer_dots, layer_mix
from vidlatent.kernels.qk_norm_rope import qk_norm_rope, rotate_halves
from vidlatent.layers.rope import rope_tables, rotate_pairs
from vidlatent.typing import VidlatentError

splash = functools.partial(attention, implementation="splash", interpret=True)
plain = functools.partial(attention, implementation="xla")


def _mesh(**sizes):
    sizes = {axis: sizes.get(axis, 1) for axis in ("data", "fsdp", "context", "tensor")}
    return make_mesh(sizes, jax.devices()[: math.prod(sizes.values())])


def _qkv(batch, queries, keys, heads, dim):
    return tuple(normal(i, batch, n, heads, dim) for i, n in enumerate((queries, keys, keys)))


@pytest.mark.parametrize(
    "sizes, dtype", [((2, 140, 77, 2, 64), "float32"), ((1, 128, 128, 1, 128), "bfloat16")]
)
def test_splash_with_padding_equals_the_plain_form(sizes, dtype):
    check(splash, plain, _qkv(*sizes), dtype)


def test_keys_that_do_not_exist_count_for_nothing_in_any_form():
    q, k, v = _qkv(2, 130, 40, 1, 64)
    lengths = np.array([40, 7])
    seen = np.arange(40) < lengths[:, None]
    want = plain(q, k, v, seen)
    np.testing.assert_allclose(plain(q, k, v, lengths=lengths), want, atol=1e-6)
    np.testing.assert_allclose(splash(q, k, v, lengths=lengths), want, atol=2e-6)
    alone = plain(q[1:], k[1:, :7], v[1:, :7])
    np.testing.assert_allclose(want[1:], alone, atol=1e-6)


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
    "length, block, padded",
    [(7440, 1536, 7680), (1860, 640, 1920), (257, 384, 384), (512, 512, 512), (1, 128, 128)],
)
def test_blocks_waste_little(length, block, padded):
    assert _blocks(length) == (block, padded)


def test_a_form_that_cannot_is_refused_by_name_and_replaced_by_auto():
    q = jnp.zeros((1, 200, 2, 64))
    assert attention_form(q, platform="gpu").name == "xla"
    assert "float32" in attention_form(q, platform="gpu").why
    assert attention_form(q.astype(jnp.bfloat16), platform="gpu").name == "cudnn"
    assert attention_form(q, platform="tpu").name == "splash"
    assert attention_form(q[:, :5], platform="tpu").name == "xla"
    assert attention_form(q, platform="cpu").name == "xla"
    with prefer(attention="splash"):
        assert attention_form(q, platform="cpu") == ("splash", "asked for")
        assert attention_form(q, implementation="xla", platform="tpu").name == "xla"
    assert attention_form(q, platform="cpu").name == "xla"
    with pytest.raises(VidlatentError, match="'cudnn' does not know float32: take 'xla'"):
        attention(q, q, q, implementation="cudnn")
    with pytest.raises(VidlatentError, match="seen or lengths"):
        attention(q, q, q, jnp.ones((1, 200), bool), lengths=jnp.array([3]))


@pytest.mark.parametrize("heads", [4, 3])
def test_tokens_spread_over_devices(heads):
    """By heads where they divide, else with all keys on every device; gradients too."""
    inputs = _qkv(2, 256, 256, heads, 64)
    with jax.set_mesh(_mesh(data=2, context=2)):
        check(splash, plain, inputs)
        lowered = jax.jit(splash).lower(*inputs).as_text()
    assert ("all_to_all" in lowered) == (heads == 4)


def test_halves_are_pairs_in_another_order():
    x = normal(0, 1, 12, 2 * 24)
    tables = rope_tables((2, 2, 3), 24)
    order = TRANSFORMS["halves"][0](np.arange(48), (2, 24)).reshape(-1)
    pairs = rotate_pairs(jnp.asarray(x).reshape(1, 12, 2, 24), tables).reshape(1, 12, 48)
    halves = rotate_halves(jnp.asarray(x)[..., order].reshape(1, 12, 2, 24), tables)
    np.testing.assert_allclose(halves.reshape(1, 12, 48), pairs[..., order], atol=1e-6)


@pytest.mark.parametrize("count, dtype", [(70, "float32"), (128, "bfloat16")])
def test_norm_and_rotation_in_one_kernel(count, dtype):
    tables = tuple(normal(3 + i, count, 64) for i in range(2))

    def form(implementation):
        return lambda x, scale: qk_norm_rope(
            x, scale, tables, 2, implementation=implementation, interpret=True
        )

    inputs = (normal(0, 2, count, 256), 1 + normal(1, 256))
    check(form("pallas"), form("xla"), inputs, dtype, half=1)


def test_norm_and_rotation_on_a_mesh():
    tables = tuple(normal(3 + i, 64, 64) for i in range(2))
    inputs = (normal(0, 2, 64, 256), 1 + normal(1, 256))

    def form(implementation):
        return lambda x, scale: qk_norm_rope(
            x, scale, tables, 2, implementation=implementation, interpret=True
        )

    with jax.set_mesh(_mesh(data=2, context=2)):
        check(form("pallas"), form("xla"), inputs)
    with jax.set_mesh(_mesh(tensor=2)):
        with pytest.raises(VidlatentError, match="tensor splits the heads"):
            form("pallas")(*inputs)
    with pytest.raises(VidlatentError, match="multiple of 128 channels, not 64"):
        qk_norm_rope(*inputs, tables, 4, implementation="pallas")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_mixtures_read_only_the_slots_in_the_range(dtype):
    states, weights, grad = normal(0, 4, 2, 40, 128), normal(1, 2, 40, 4), normal(2, 2, 40, 128)
    states[0], states[3] = np.nan, np.nan  # never touched

    def mix(implementation, first=1):
        return jax.jit(
            lambda s, w, end: layer_mix(
                s, w, first, end, implementation=implementation, interpret=True
            )
        )

    def dots(implementation):
        return jax.jit(
            lambda s, g, end: layer_dots(
                s, g, 1, end, implementation=implementation, interpret=True
            )
        )

    states, grad = jnp.asarray(states, dtype), jnp.asarray(grad, dtype)
    known = states[1:3].astype(jnp.float32)
    want = jnp.einsum("lbnd,bnl->bnd", known, weights[..., 1:3])
    np.testing.assert_allclose(mix("pallas")(states, weights, 3), want, atol=1e-5)
    got = dots("pallas")(states, grad, 3)
    want = jnp.einsum("lbnd,bnd->bnl", known, grad.astype(jnp.float32))
    np.testing.assert_allclose(got[..., 1:3], want, atol=1e-4)
    assert (np.asarray(got)[..., [0, 3]] == 0).all()
    clean = jnp.nan_to_num(states)
    np.testing.assert_allclose(
        mix("xla")(clean, weights, 3), mix("pallas")(clean, weights, 3), atol=1e-5
    )
    np.testing.assert_allclose(dots("xla")(clean, grad, 3), got, atol=1e-4)
