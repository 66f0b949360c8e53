"""Low-rank adapters: shapes, the product against the layers it stands for, gradients, misuse."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from vidlatent.errors import VidlatentError
from vidlatent.layers.dense import Linear
from vidlatent.parallel.mesh import AXES, make_mesh
from vidlatent.parallel.sharding import shardings, with_shardings
from vidlatent.weights.identity import identify
from vidlatent.weights.lora import (
    Lora,
    describe_adapters,
    init_adapters,
    merge_adapters,
    merge_kernel,
)

LORA = Lora(rank=3, alpha=6.0, targets=".*kernel$")


def draw(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


PARAMS = {
    "head": {"kernel": draw((6, 5), 1), "bias": draw((5,), 2)},
    "blocks": {
        "fc": {"kernel": draw((2, 6, 5), 3)},
        "self_attn": {"q": {"kernel": draw((2, 6, 2, 4), 4)}, "norm": {"scale": draw((2, 8), 5)}},
    },
    "conv": {"kernel": draw((3, 3, 3, 4, 5), 6)},
}


def trained(adapters, seed=7):
    """Adapters away from their start."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), adapters)


def test_each_kernel_has_factors_of_its_own_kind():
    """A layer of a stack has factors each; a window and heads belong to inputs and outputs."""
    adapters = init_adapters(jax.random.key(0), PARAMS, LORA)
    assert jax.tree.map(lambda leaf: leaf.shape, adapters) == {
        "head": {"kernel": {"lora_a": (6, 3), "lora_b": (3, 5)}},
        "blocks": {
            "fc": {"kernel": {"lora_a": (2, 6, 3), "lora_b": (2, 3, 5)}},
            "self_attn": {"q": {"kernel": {"lora_a": (2, 6, 3), "lora_b": (2, 3, 2, 4)}}},
        },
        "conv": {"kernel": {"lora_a": (3, 3, 3, 4, 3), "lora_b": (3, 5)}},
    }


def test_the_start_changes_no_bit_and_draws_within_the_bounds():
    adapters = init_adapters(jax.random.key(0), PARAMS, LORA)
    merged = merge_adapters(PARAMS, adapters, LORA)
    jax.tree.map(np.testing.assert_array_equal, merged, PARAMS)
    a = np.asarray(adapters["conv"]["kernel"]["lora_a"])
    bound = 1 / np.sqrt(27 * 4)
    assert 0.9 * bound < np.abs(a).max() <= bound and abs(a.mean()) < 0.1 * bound


def test_a_draw_does_not_depend_on_the_other_targets():
    some = init_adapters(jax.random.key(0), PARAMS, LORA._replace(targets="blocks/fc"))
    everything = init_adapters(jax.random.key(0), PARAMS, LORA)
    assert list(some) == ["blocks"] and list(some["blocks"]) == ["fc"]
    jax.tree.map(np.testing.assert_array_equal, some["blocks"]["fc"], everything["blocks"]["fc"])


def test_a_merged_layer_is_the_layer_and_its_detour():
    """``x W + scale (x A) B`` by itself, for products, stacks, heads and convolutions."""
    adapters = trained(init_adapters(jax.random.key(0), PARAMS, LORA))
    merged = merge_adapters(PARAMS, adapters, LORA)
    x, high = draw((7, 6), 8), lax.Precision.HIGHEST

    def check(got, want):
        # Values of about 50 in float32: two roundings of 4e-6.
        np.testing.assert_allclose(got / 50, want / 50, atol=4e-6)

    pair = adapters["head"]["kernel"]
    detour = jnp.dot(jnp.dot(x, pair["lora_a"], precision=high), pair["lora_b"], precision=high)
    plain = jnp.dot(x, PARAMS["head"]["kernel"], precision=high)
    check(jnp.dot(x, merged["head"]["kernel"], precision=high), plain + 2.0 * detour)

    for layer in range(2):
        factors = adapters["blocks"]["self_attn"]["q"]["kernel"]
        pair = {name: factor[layer] for name, factor in factors.items()}
        inner = jnp.dot(x, pair["lora_a"], precision=high)
        detour = jnp.einsum("nr,rhd->nhd", inner, pair["lora_b"], precision=high)
        kernel = PARAMS["blocks"]["self_attn"]["q"]["kernel"][layer]
        plain = jnp.einsum("ni,ihd->nhd", x, kernel, precision=high)
        own = merged["blocks"]["self_attn"]["q"]["kernel"][layer]
        check(jnp.einsum("ni,ihd->nhd", x, own, precision=high), plain + 2.0 * detour)

    def convolve(x, kernel):
        names = ("NDHWC", "DHWIO", "NDHWC")
        return lax.conv_general_dilated(
            x, kernel, (1, 1, 1), "VALID", dimension_numbers=names, precision=high
        )

    pair, x = adapters["conv"]["kernel"], draw((1, 4, 5, 5, 4), 9)
    detour = jnp.dot(convolve(x, pair["lora_a"]), pair["lora_b"], precision=high)
    plain = convolve(x, PARAMS["conv"]["kernel"])
    check(convolve(x, merged["conv"]["kernel"]), plain + 2.0 * detour)


def test_the_product_of_the_released_layout():
    """PEFT: ``weight [O, I] + alpha / r * lora_B [O, r] @ lora_A [r, I]``."""
    weight, b, a = (np.asarray(draw(s, i)) for i, s in enumerate([(5, 6), (5, 3), (3, 6)]))
    want = weight.astype(np.float64) + 2.0 * (b.astype(np.float64) @ a)
    np.testing.assert_allclose(merge_kernel(weight, b, a, 2.0), want, atol=4e-6)
    np.testing.assert_allclose(merge_kernel(weight.T, a.T, b.T, 2.0), want.T, atol=4e-6)


def test_gradients_are_those_of_the_chain_rule():
    adapters = trained(init_adapters(jax.random.key(0), PARAMS, LORA))
    to_merged = jax.tree.map(lambda leaf: draw(leaf.shape, 11), PARAMS)

    def total(adapters):
        merged = merge_adapters(PARAMS, adapters, LORA)
        return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, to_merged, merged)))

    got = jax.grad(total)(adapters)["head"]["kernel"]
    g, pair = to_merged["head"]["kernel"], adapters["head"]["kernel"]
    np.testing.assert_allclose(got["lora_a"], 2.0 * g @ pair["lora_b"].T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got["lora_b"], 2.0 * pair["lora_a"].T @ g, rtol=1e-5, atol=1e-5)


def test_a_small_kernel_has_the_rank_that_it_can_have():
    adapters = init_adapters(jax.random.key(0), PARAMS, LORA._replace(rank=128, alpha=0.0))
    assert adapters["head"]["kernel"]["lora_a"].shape == (6, 5)
    assert LORA._replace(rank=128, alpha=0.0).scale == 1.0


def test_merging_keeps_the_dtype_and_rounds_once():
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    adapters = trained(init_adapters(jax.random.key(0), PARAMS, LORA))
    merged = merge_adapters(low, adapters, LORA)
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), low)
    want = merge_adapters(wide, adapters, LORA)
    for got, exact in zip(*map(jax.tree.leaves, (merged, want)), strict=True):
        assert got.dtype == jnp.bfloat16
        np.testing.assert_array_equal(got, exact.astype(jnp.bfloat16))


def test_on_eight_devices_factors_are_split_and_the_merged_kernels_lie_like_the_old_ones():
    mesh = make_mesh(dict(zip(AXES, (1, 4, 1, 2), strict=True)), jax.devices())
    params = {"blocks": {"fc": {"kernel": draw((2, 16, 8))}}}
    placed = jax.device_put(params, shardings(params, mesh))
    abstract = with_shardings(params, shardings(params, mesh))
    wanted = describe_adapters(abstract, LORA)
    adapters = trained(init_adapters(jax.random.key(0), params, LORA))
    spread = jax.device_put(adapters, jax.tree.map(lambda leaf: leaf.sharding, wanted))
    for leaf in jax.tree.leaves(spread):
        assert leaf.addressable_shards[0].data.size * 4 == leaf.size
    with jax.set_mesh(mesh):
        merged = jax.jit(lambda p, a: merge_adapters(p, a, LORA))(placed, spread)
    kernel, old = (tree["blocks"]["fc"]["kernel"] for tree in (merged, placed))
    assert kernel.sharding.is_equivalent_to(old.sharding, 3)
    want = merge_adapters(params, adapters, LORA)["blocks"]["fc"]["kernel"]
    np.testing.assert_allclose(kernel, want, atol=4e-6)


MIXED = LORA._replace(targets=".*kernel$", full="conv/|head/bias", rows=(("head/kernel", (4, 1)),))


def test_beside_adapters_parts_are_trained_in_full_and_rows():
    """Zeros at the start, which change no bit; then exactly what was added, and nothing else."""
    adapters = init_adapters(jax.random.key(0), PARAMS, MIXED)
    assert jax.tree.map(lambda leaf: leaf.shape, adapters) == {
        "head": {"kernel": {"lora_rows": (2, 5)}, "bias": {"lora_full": (5,)}},
        "blocks": {
            "fc": {"kernel": {"lora_a": (2, 6, 3), "lora_b": (2, 3, 5)}},
            "self_attn": {"q": {"kernel": {"lora_a": (2, 6, 3), "lora_b": (2, 3, 2, 4)}}},
        },
        "conv": {"kernel": {"lora_full": (3, 3, 3, 4, 5)}},
    }
    jax.tree.map(np.testing.assert_array_equal, merge_adapters(PARAMS, adapters, MIXED), PARAMS)
    # What adapters draw does not depend on what is trained in full.
    plain = init_adapters(jax.random.key(0), PARAMS, LORA)
    jax.tree.map(np.testing.assert_array_equal, adapters["blocks"], plain["blocks"])
    added = trained(adapters)
    merged = merge_adapters(PARAMS, added, MIXED)
    want = np.array(PARAMS["head"]["kernel"])
    want[[4, 1]] += added["head"]["kernel"]["lora_rows"]
    np.testing.assert_array_equal(merged["head"]["kernel"], want)
    for path in (("conv", "kernel"), ("head", "bias")):
        found, old, more = (tree[path[0]][path[1]] for tree in (merged, PARAMS, added))
        np.testing.assert_array_equal(found, old + more["lora_full"])
    scale = PARAMS["blocks"]["self_attn"]["norm"]["scale"]
    np.testing.assert_array_equal(merged["blocks"]["self_attn"]["norm"]["scale"], scale)


def test_what_is_trained_in_full_gets_the_gradient_of_its_parameter():
    adapters = init_adapters(jax.random.key(0), PARAMS, MIXED)
    to_merged = jax.tree.map(lambda leaf: draw(leaf.shape, 11), PARAMS)

    def total(adapters):
        merged = merge_adapters(PARAMS, adapters, MIXED)
        return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, to_merged, merged)))

    got = jax.grad(total)(adapters)
    np.testing.assert_array_equal(got["conv"]["kernel"]["lora_full"], to_merged["conv"]["kernel"])
    rows = to_merged["head"]["kernel"][jnp.array([4, 1])]
    np.testing.assert_array_equal(got["head"]["kernel"]["lora_rows"], rows)


def test_options_of_older_checkpoints_and_of_json_are_read():
    assert Lora.of({"rank": 3, "alpha": 6.0, "targets": ".*kernel$"}) == LORA
    assert Lora.of(json.loads(json.dumps(MIXED._asdict()))) == MIXED


def test_on_eight_devices_what_is_added_lies_like_its_parameter():
    mesh = make_mesh(dict(zip(AXES, (1, 4, 1, 2), strict=True)), jax.devices())
    params = {"tail": {"kernel": draw((16, 8))}, "fc": {"kernel": draw((16, 8), 1)}}
    lora = LORA._replace(targets="fc/", full="tail/")
    abstract = with_shardings(params, shardings(params, mesh))
    wanted = describe_adapters(abstract, lora)
    added, own = wanted["tail"]["kernel"]["lora_full"], abstract["tail"]["kernel"]
    assert added.sharding == own.sharding and not own.sharding.is_fully_replicated


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"full": "decoder/"}, "'decoder/' of full or rows matches no parameter"),
        ({"rows": (("decoder/", (0,)),)}, "'decoder/' of full or rows matches no parameter"),
        ({"rows": (("head/kernel", (6,)),)}, r"rows \(6,\) of head/kernel, which has 6"),
        ({"rows": (("head/kernel", (1, 1)),)}, "each once"),
        ({"targets": "head/", "full": "head/"}, "targets 'head/' matches no kernel"),
    ],
)
def test_parts_that_are_not_there_are_said(change, message):
    with pytest.raises(VidlatentError, match=message):
        init_adapters(jax.random.key(0), PARAMS, LORA._replace(**change))


def test_misuse_is_one_sentence():
    with pytest.raises(VidlatentError, match="targets 'decoder/' matches no kernel.*conv/kernel"):
        init_adapters(jax.random.key(0), PARAMS, LORA._replace(targets="decoder/"))
    other = {"tail": init_adapters(jax.random.key(0), PARAMS, LORA)["head"]}
    with pytest.raises(VidlatentError, match="adapter of tail, a parameter that this model"):
        merge_adapters(PARAMS, other, LORA)


def test_weights_are_known_again_in_any_dtype_and_on_any_devices():
    known = identify(PARAMS)
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    mesh = make_mesh(dict(zip(AXES, (1, 2, 2, 2), strict=True)), jax.devices())
    spread = jax.device_put(PARAMS, shardings(PARAMS, mesh))
    assert identify(low) == identify(spread) == identify(jax.device_get(PARAMS)) == known


@pytest.mark.parametrize("change", ["value", "order", "name", "shape"])
def test_other_weights_have_another_digest(change):
    kernel = np.asarray(PARAMS["head"]["kernel"])
    other = {**PARAMS, "head": dict(PARAMS["head"])}
    if change == "value":
        kernel = kernel.copy()
        kernel[3, 2] *= 1.01
    elif change == "order":
        kernel = kernel[::-1]
    elif change == "shape":
        kernel = kernel.reshape(5, 6)
    del other["head"]["kernel"]
    other["head"]["weight" if change == "name" else "kernel"] = jnp.asarray(kernel)
    assert identify(other) != identify(PARAMS)


@pytest.mark.parametrize("depth", [0, 3])
def test_dropout_leaves_out_what_adapters_see(depth):
    """``W x + scale B A (m x / keep)``, with another mask for each value, layer and key."""
    lora = Lora(2, 4.0, ".*kernel$", dropout=0.5)
    layer, rng = Linear(6, use_bias=False, parent=None), np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(5, 7, 8)), jnp.float32)

    def init(key):
        return {"fc1": {"kernel": jax.random.normal(key, (8, 6))}}

    keys = jax.random.split(jax.random.key(1), depth)
    params = {"blocks": jax.vmap(init)(keys) if depth else init(jax.random.key(1))}
    own = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32),
        init_adapters(jax.random.key(2), params, lora),
    )

    def run(merged):
        layers = merged["blocks"]["fc1"]
        if not depth:
            return layer.apply({"params": layers}, x)
        return jax.lax.map(lambda one: layer.apply({"params": one}, x), layers)

    plain = run(params)
    seen = run(merge_adapters(params, own, lora, jax.random.key(3)))
    again = run(merge_adapters(params, own, lora, jax.random.key(3)))
    np.testing.assert_array_equal(seen, again)
    assert (seen != run(merge_adapters(params, own, lora, jax.random.key(4)))).any()
    # The mean over many keys is what merged adapters give.
    many = jax.jit(jax.vmap(lambda key: run(merge_adapters(params, own, lora, key))))(
        jax.random.split(jax.random.key(5), 1000)
    )
    merged = run(merge_adapters(params, own, lora))
    error = np.asarray(many.mean(axis=0) - merged) / np.asarray(many.std(axis=0) / 1000**0.5)
    assert np.abs(error).max() < 5 and np.abs(np.asarray(merged - plain)).max() > 1
    # And its variance, (1 - keep) / keep of the squares of each input's part.
    kernels = own["blocks"]["fc1"]["kernel"]
    a, b = kernels["lora_a"], kernels["lora_b"]
    product = lora.scale * jnp.matmul(a, b)  # [I, O], of each layer
    spread = jnp.einsum("bti,...io->...bto", x**2, product**2)
    np.testing.assert_allclose(many.var(axis=0), spread, rtol=0.3)
    if depth:
        assert (seen[0] - plain[0] != seen[1] - plain[1]).any()
