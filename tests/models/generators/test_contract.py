"""The contract of generators, held by every one whatever it reads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.generator_nets import KINDS, array, build, inputs, parameters
from vidlatent.errors import VidlatentError
from vidlatent.latents.space import abstract_at_rest
from vidlatent.models.generators import GENERATORS
from vidlatent.models.generators.fp8_weights import cast_to_fp8
from vidlatent.models.generators.trunk import denoise_with_trunk
from vidlatent.models.generators.wan.model import WanDiT
from vidlatent.weights.importer import export_params, import_params
from vidlatent.weights.tables import TABLES

QUICK = {"xla_backend_optimization_level": 0}  # each program runs once


TEXTS = pytest.mark.parametrize(
    "network", [kind for kind in KINDS if not kind.endswith("_label")], indirect=True
)


@pytest.fixture(scope="module", params=list(KINDS))
def network(request):
    model = build(request.param)
    given = inputs(model)

    def run(params, *args):
        return model.apply({"params": params}, *args, method="denoise")

    return model, parameters(model, *given), given, jax.jit(run, compiler_options=QUICK)


def test_each_generator_is_among_them():
    assert {fields["name"] for fields in KINDS.values()} == set(GENERATORS.names())


def test_a_sample_is_its_own(network):
    """A dropped or missing condition changes only its own sample; every condition has an effect."""
    model, params, (noisy, time, conditions), run = network
    none = {name: jnp.array([False, False]) for name in model.reads}
    plain = run(params, noisy, time, conditions, none)
    channels = model.latent_channels * (2 if model.learned_variance else 1)
    assert plain.shape == (*noisy.shape[:-1], channels) and plain.dtype == jnp.float32
    second = {name: jnp.array([False, True]) for name in model.reads}
    found = run(params, noisy, time, conditions, second)
    np.testing.assert_allclose(found[0], plain[0], atol=1e-5)
    every = {name: jnp.array([True, True]) for name in model.reads}
    nothing = run(params, noisy, time, conditions, every)
    np.testing.assert_allclose(found[1], nothing[1], atol=1e-5)
    for name in model.reads:
        change = {**none, name: jnp.array([True, True])}
        assert np.abs(run(params, noisy, time, conditions, change) - plain).max() > 1e-4, name
    # What was dropped is not there: other values in its place change nothing.
    other = jax.tree.map(lambda x: x[::-1], conditions)
    again = run(params, noisy, time, other, every)
    np.testing.assert_allclose(again, nothing, atol=1e-5)


@TEXTS
def test_none_is_dropped(network):
    model, params, (noisy, time, conditions), run = network
    if not model.reads:
        return
    every = {name: jnp.array([True, True]) for name in model.reads}
    nothing = run(params, noisy, time, conditions, every)
    found = run(params, noisy, time, dict.fromkeys(model.reads), every)
    np.testing.assert_allclose(found, nothing, atol=1e-5)


@TEXTS
def test_text_ends_where_it_ends(network):
    model, params, (noisy, time, conditions), run = network
    if "text" not in conditions:
        return
    none = {name: jnp.array([False, False]) for name in model.reads}
    text = conditions["text"]
    noise = 9 * array(8, *text["states"].shape)
    seen = jnp.arange(4)[None, :, None] < text["length"][:, None, None]
    other = {**conditions, "text": {**text, "states": jnp.where(seen, text["states"], noise)}}
    plain = run(params, noisy, time, conditions, none)
    np.testing.assert_array_equal(run(params, noisy, time, other, none), plain)
    within = {**text, "states": text["states"].at[:, 1].add(1.0)}
    found = run(params, noisy, time, {**conditions, "text": within}, none)
    assert np.abs(found - plain).max() > 1e-4


@pytest.mark.parametrize("network", ["reducio_dit"], indirect=True)
def test_cached_conditions_are_not_read_again(network):
    model, params, (noisy, time, conditions), run = network
    drop = {name: jnp.array([True, False]) for name in model.reads}
    cache = jax.jit(
        lambda p, c, d: model.apply({"params": p}, c, d, method="cache_conditions"),
        compiler_options=QUICK,
    )(params, {**conditions, "null_text": None}, drop)
    assert all(x.shape[0] == 2 for x in jax.tree.leaves(cache))
    found = run(params, noisy, time, {}, None, cache)
    want = run(params, noisy, time, conditions, drop)
    np.testing.assert_allclose(found, want, atol=1e-5)


@TEXTS
def test_places_count(network):
    """Tokens have places in time, rows and columns."""
    model, params, (noisy, time, conditions), run = network
    none = {name: jnp.array([name == "first"] * 2) for name in model.reads}
    plain = run(params, noisy, time, conditions, none)
    for axis in (1, 2, 3):
        step = model.patch[axis - 1]
        turned = run(params, jnp.roll(noisy, step, axis), time, conditions, none)
        assert np.abs(turned - jnp.roll(plain, step, axis)).max() > 1e-4, axis


@TEXTS
def test_a_new_model_gives_zero(network):
    model, _, given, run = network

    def init(*args):
        return model.init(jax.random.key(0, impl="rbg"), *args, method="denoise")["params"]

    fresh = jax.jit(init, compiler_options=QUICK)(*given)  # rbg compiles fastest
    assert not np.any(run(fresh, *given, {n: jnp.array([False, True]) for n in model.reads}))
    kernels = jax.tree_util.tree_flatten_with_path(fresh["blocks"])[0]
    drawn = [x for path, x in kernels if "mlp" in str(path) or "ffn" in str(path)]
    assert all(np.abs(x[0] - x[1]).max() > 0.01 for x in drawn if x.ndim == 3)


def test_weights_have_names(network, request):
    """The weights table of the generator's name covers every parameter that it can have."""
    table = TABLES.get(KINDS[request.node.callspec.params["network"]]["name"])
    params = jax.device_get(network[1])
    again = import_params(export_params(params, table), table, params)
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_half_precision_keeps_its_dtypes(network):
    model, params, given, _ = network
    half = model.clone(dtype=jnp.bfloat16, residual_dtype="bfloat16")

    def run(params, *args):
        return half.apply({"params": params}, *args, method="denoise")

    assert jax.eval_shape(run, params, *given).dtype == jnp.float32


@TEXTS
def test_missing_conditions_are_named(network):
    model, params, (noisy, time, conditions), run = network
    for name in model.reads:
        rest = {k: v for k, v in conditions.items() if k != name}
        with pytest.raises(VidlatentError, match=f"lack {name}"):
            jax.eval_shape(run, params, noisy, time, rest)


@pytest.mark.parametrize("network", ["wan", "reducio_dit"], indirect=True)
def test_nothing_to_cache(network):
    model, params, _, _ = network
    with pytest.raises(VidlatentError, match="nothing to cache"):
        model.apply({"params": params}, dict.fromkeys(model.reads), method="cache_conditions")


@pytest.mark.parametrize("network", ["wan", "latte", "reducio_dit", "promag_dit"], indirect=True)
def test_large_kernels_may_rest_in_the_type_of_products(network):
    """Layers cast them before anything else, so the result is the same bit for bit."""
    model, params, given, _ = network
    half = model.clone(dtype=jnp.bfloat16)
    held = abstract_at_rest(half)
    narrow = [leaf for leaf in jax.tree.leaves(held) if leaf.dtype == jnp.bfloat16]
    assert len(narrow) >= 6
    # XLA on CPUs multiplies in float32, and would leave the rounding of kernels out.
    options = {**QUICK, "xla_allow_excess_precision": False}

    def run(params, *args):
        return half.apply({"params": params}, *args, method="denoise")

    run = jax.jit(run, compiler_options=options)
    rest = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), params, held)
    if isinstance(model, WanDiT):  # once in truth
        np.testing.assert_array_equal(run(rest, *given), run(params, *given))
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), rest)
    assert any(map(np.any, jax.tree.leaves(jax.tree.map(np.not_equal, rounded, params))))
    np.testing.assert_array_equal(run(rounded, *given), run(params, *given))


def test_products_in_eight_bits_err_by_a_few_percent(network):
    model, params, given, run = network
    eighth = cast_to_fp8(params)
    leaves = jax.tree.leaves(eighth["blocks"])
    large = [leaf for leaf in leaves if leaf.dtype == jnp.float8_e4m3fn]
    scales = [leaf for leaf in leaves if leaf.ndim == 1]
    assert len(large) >= 6 and len(scales) >= len(large)
    assert {name: x for name, x in eighth.items() if name != "blocks"}.keys() == params.keys() - {
        "blocks"
    }
    want, found = run(params, *given), run(eighth, *given)
    error = jnp.linalg.norm(found - want) / jnp.linalg.norm(want)
    assert 1e-4 < error < 0.15


def test_the_trunk_is_what_the_head_reads(network):
    """The output is the same, the tokens are seen, and there is no parameter more (J67)."""
    model, params, (noisy, time, conditions), run = network
    shown = jax.jit(
        lambda params, *args: denoise_with_trunk(model, params, *args), compiler_options=QUICK
    )
    output, tokens = shown(params, noisy, time, conditions)
    np.testing.assert_allclose(output, run(params, noisy, time, conditions), atol=1e-5)
    count = np.prod(noisy.shape[1:4]) // np.prod(model.patch)
    assert tokens.shape == (len(noisy), count, model.width)
    other = shown(params, noisy[::-1], time, conditions)[1]
    assert np.abs(other - tokens).max() > 1e-4  # they depend on the input
    created = jax.eval_shape(
        lambda: model.init(jax.random.key(0), noisy, time, conditions, method="denoise")
    )
    assert set(created) == {"params"}


def test_a_generator_that_shows_no_trunk_is_told_how():
    class Plain:
        def apply(self, variables, *args, mutable, **given):
            return args[0], {}

    with pytest.raises(VidlatentError, match="Plain does not show the tokens that its head reads"):
        denoise_with_trunk(Plain(), {}, jnp.zeros((1, 2)), jnp.zeros(1), {})
