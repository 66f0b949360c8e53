"""Layer memory: the routers, and that all forms of the stack compute the same."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.wan_nets import QUICK, drawn, inputs, net, running, shapes_of
from vidlatent.errors import VidlatentError
from vidlatent.kernels.layer_mix import layer_mix
from vidlatent.models.generators.wan.layer_memory import (
    Stack,
    last_bias,
    mix,
    pad_routers,
    router_weights,
)

DEPTH = 4


@pytest.fixture(scope="module")
def remembering():
    model = net(depth=DEPTH)
    params = drawn(shapes_of(model))
    return model, params, inputs(model), running(model, "values")


def with_routers(params, change):
    return {k: change(int(k[7:]), v) if k.startswith("router") else v for k, v in params.items()}


def one_hot(layer, router):
    bias = jnp.zeros(layer).at[-1].set(40.0)
    return {"kernel": jnp.zeros_like(router["kernel"]), "bias": bias}


def test_one_hot_on_the_previous_layer_is_the_plain_model(remembering):
    _, params, given, values = remembering
    params = with_routers(params, one_hot)
    bare = {k: v for k, v in params.items() if not k.startswith("router")}
    plain = running(net(depth=DEPTH, memory=False), "values")(bare, given)
    found = values(params, given)
    states = [found["tokens"], *(seen["state"] for seen in found["blocks"])]
    for seen, x in zip(found["blocks"], states[:-1], strict=True):
        np.testing.assert_array_equal(seen["fused"], x)
    np.testing.assert_allclose(found["output"], plain["output"], atol=1e-6)


def test_weights_and_their_start(remembering):
    model, params, given, values = remembering
    blocks = values(params, given)["blocks"]
    for layer, seen in enumerate(blocks):
        assert seen["weights"].shape == (2, 12, layer + 1)
        np.testing.assert_allclose(jnp.sum(seen["weights"], axis=-1), 1, atol=1e-6)
    assert "router_1" not in params
    routers = [params[f"router_{n}"] for n in range(2, DEPTH + 1)]
    assert sum(x.size for x in jax.tree.leaves(routers)) == sum(
        n * (model.width + 1) for n in range(2, DEPTH + 1)
    )
    x = jnp.ones((1, 1, model.width))
    for share, sources in ((0.5, 2), (0.98, 7), (0.98, 40)):
        bias = jnp.zeros(sources).at[-1].set(last_bias(sources, share))
        weights = router_weights(x, {"kernel": jnp.zeros((model.width, sources)), "bias": bias})
        np.testing.assert_allclose(weights[0, 0, -1], share, rtol=1e-5)
        np.testing.assert_allclose(weights[0, 0, :-1], (1 - share) / (sources - 1), rtol=1e-4)
    started = model._first_router(None, 3)
    np.testing.assert_allclose(started["bias"], [0, 0, np.log(2)], rtol=1e-6)
    assert not np.any(started["kernel"]) and last_bias(5, 0) == 0
    with pytest.raises(VidlatentError, match="memory_share"):
        last_bias(3, 1.0)


def test_tokens_mix_for_themselves():
    rng = np.random.default_rng(0)
    weights = jax.nn.softmax(jnp.asarray(rng.standard_normal((2, 5, 3)), jnp.float32))
    states = jnp.asarray(rng.standard_normal((3, 2, 5, 4)), jnp.float32)
    mixed = mix(weights, list(states))
    np.testing.assert_allclose(mixed, layer_mix(states, weights, 0, 3), atol=1e-6)
    np.testing.assert_allclose(mix(weights, [states[0]] * 3), states[0], atol=1e-6)
    moved = np.abs(mix(weights, list(states.at[1, 0, 2].add(1.0))) - mixed).max(axis=-1)
    assert moved[0, 2] > 1e-3 and np.count_nonzero(moved) == 1


def test_a_router_moves_no_layer_below(remembering):
    _, params, given, values = remembering
    moved = params | {"router_3": {**params["router_3"], "bias": jnp.array([3.0, 0.0, 0.0])}}
    before, after = (values(p, given)["blocks"] for p in (params, moved))
    steps = [np.abs(a["state"] - b["state"]).max() for a, b in zip(before, after, strict=True)]
    assert steps[0] == steps[1] == 0
    assert min(steps[2:]) > 1e-3


def test_all_forms_are_one_function(remembering):
    model, params, given, _ = remembering
    target = jnp.cos(jnp.arange(2 * 12 * 3, dtype=jnp.float32)).reshape(2, 2, 2, 3, 3)

    def loss(p, a, stack):
        out = model.clone(stack=stack).apply({"params": p}, **a)
        return jnp.sum(out * target), out

    run = jax.jit(
        jax.value_and_grad(loss, argnums=(0, 1), has_aux=True),
        static_argnums=2,
        compiler_options=QUICK,
    )
    (_, want), grads = run(params, given, "unrolled")
    for stack in ("scanned", "recomputed"):
        (_, out), found = run(params, given, stack)
        np.testing.assert_allclose(out, want, atol=1e-6 * np.abs(want).max())
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(grads), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, np.abs(b).max()))


def test_options_of_the_memory_in_all_forms():
    """Normalised sources with gates and a stride: value and gradient of each form."""
    depth, width = 4, 3
    stack = Stack(
        lambda p, x, s: jnp.sin(x @ p["norm"] + s),
        lambda p, x, m, s: x + jnp.tanh((x + m) @ p["mix"]) * s,
        normed=True,
        stride=2,
    )
    params = drawn(
        {name: jax.ShapeDtypeStruct((depth, width, width), jnp.float32) for name in ("norm", "mix")}
    )
    routers = [
        drawn(
            {
                name: jax.ShapeDtypeStruct(shape, jnp.float32)
                for name, shape in (("kernel", (width, n)), ("bias", (n,)), ("gate", ()))
            },
            seed=n,
            size=1.0,
        )
        for n in range(2, depth + 1)
    ]
    x, shared = jnp.ones((1, 2, width)), jnp.full((1, 1, width), 0.7)

    def value(tree, form):
        params, routers, x, shared = tree
        if form == "unrolled":
            return jnp.sum(jnp.sin(stack.unrolled(params, routers, x, shared)[0]))
        run = getattr(stack, form)
        return jnp.sum(jnp.sin(run(params, pad_routers(routers, width), x, shared)))

    run = jax.jit(jax.value_and_grad(value), static_argnums=1, compiler_options=QUICK)
    tree = params, routers, x, shared
    want, grads = run(tree, "unrolled")
    assert all(np.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(grads))
    for form in ("scanned", "recomputed"):
        found, others = run(tree, form)
        np.testing.assert_allclose(found, want, rtol=1e-6)
        for a, b in zip(jax.tree.leaves(others), jax.tree.leaves(grads), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


def test_closed_gates_are_the_plain_model(remembering):
    _, params, given, _ = remembering
    layers = {k: v for k, v in params.items() if not k.startswith("router")}
    closed = {k: {**v, "gate": jnp.zeros(())} for k, v in params.items() if k.startswith("router")}
    model = net(depth=DEPTH, memory_norm="pre", router_gate=True, stack="scanned")
    found = running(model)({**layers, **closed}, given)
    plain = running(net(depth=DEPTH, memory=False))(layers, given)
    np.testing.assert_allclose(found, plain, atol=1e-6)
    shapes = jax.tree.map(jnp.shape, {**layers, **closed})
    assert shapes == jax.tree.map(lambda leaf: leaf.shape, dict(shapes_of(model)))


def test_gates_and_strides_of_routers():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, 3, 4)), jnp.float32)
    router = {"kernel": jnp.asarray(rng.standard_normal((4, 5)), jnp.float32), "bias": jnp.ones(5)}
    plain = router_weights(x, router)
    for last in (None, 4):  # as a layer of its own size, and in a padded buffer
        assert np.array_equal(router_weights(x, router, last), plain)
        closed, half, full = (
            router_weights(x, {**router, "gate": jnp.asarray(gate)}, last)
            for gate in (0.0, 0.5, 1.0)
        )
        assert np.array_equal(closed, jnp.broadcast_to(jnp.eye(5)[-1], closed.shape))
        np.testing.assert_allclose(full, plain, atol=1e-7)
        np.testing.assert_allclose(half, (closed + plain) / 2, atol=1e-7)
        third = router_weights(x, router, last, stride=3)
        assert not np.any(third[..., [1, 2]])
        shares = plain[..., [0, 3, 4]]
        want = shares / shares.sum(-1, keepdims=True)
        np.testing.assert_allclose(third[..., [0, 3, 4]], want, atol=1e-6)
    model = net(depth=DEPTH, memory_stride=2, memory_share=0.9, router_gate=True)
    started = model._first_router(None, 4)  # sources 0, 2 and 3
    np.testing.assert_allclose(started["bias"], [0, 0, 0, np.log(18)], rtol=1e-6)
    assert started["gate"] == 0
    with pytest.raises(VidlatentError, match="memory_norm 'mid' is one of"):
        shapes_of(net(memory_norm="mid"))


def test_what_a_stack_looks_back_to(remembering):
    model, params, given, values = remembering
    blocks = values(params, given)["blocks"]
    channels, model = model.latent_channels, model.clone(text_length=given["text"].shape[1])

    def look(params, given):
        noisy, rest = jnp.split(given["latent"], [channels], axis=-1)
        text = {"states": given["text"], "length": jnp.full(2, given["text"].shape[1])}
        conditions = {"text": text, "image": given["image"], "given": rest}
        rows = jnp.array([1.0, 0.0])
        return model.apply(
            {"params": params},
            noisy,
            given["time"],
            conditions,
            None,
            rows,
            method="memory_weights",
        )

    largest, mean = jax.jit(look, compiler_options=QUICK)(params, given)
    for layer, seen in enumerate(blocks):
        weights = np.asarray(seen["weights"][0])
        assert weights.shape[-1] == layer + 1 and not np.any(largest[layer, layer + 1 :])
        np.testing.assert_allclose(largest[layer, : layer + 1], weights.max(0), atol=1e-5)
        np.testing.assert_allclose(mean[layer, : layer + 1], weights.mean(0), atol=1e-5)


def test_gradient_by_differences():
    """A stack of one matrix a layer in float64, along random directions."""
    depth, width = 4, 3
    stack = Stack(lambda p, x, s: x * s, lambda p, x, m, s: x + jnp.tanh((x + m) @ p) * s)
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        routers = [
            {"kernel": rng.standard_normal((width, n)), "bias": rng.standard_normal(n)}
            for n in range(2, depth + 1)
        ]
        tree = (
            rng.standard_normal((depth, width, width)),
            routers,
            rng.standard_normal((1, 2, width)),
            rng.standard_normal((1, 1, width)),
        )

        @jax.jit
        def value(tree):
            params, routers, x, shared = tree
            return jnp.sum(
                jnp.sin(stack.recomputed(params, pad_routers(routers, width), x, shared))
            )

        grads = jax.jit(jax.grad(value))(tree)
        for _ in range(5):
            way = jax.tree.map(lambda x: rng.standard_normal(x.shape), tree)
            ends = [
                value(jax.tree.map(lambda x, d, h=h: x + h * d, tree, way)) for h in (1e-2, -1e-2)
            ]
            slope = sum(
                np.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (grads, way)), strict=True)
            )
            # Mixtures are float32 by design; the difference's own error is of order h^2.
            np.testing.assert_allclose((ends[0] - ends[1]) / 2e-2, slope, rtol=2e-2, atol=2e-2)


@pytest.mark.slow
def test_training_memory_is_linear_in_depth():
    def temporary(depth):
        model = net(depth=depth, width=48, heads=2)
        given = inputs(model, 2, grid=(4, 8, 8))

        def loss(p):
            return jnp.sum(model.apply({"params": p}, **given))

        compiled = jax.jit(jax.grad(loss)).lower(shapes_of(model)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    sizes = [temporary(depth) for depth in (8, 16, 32)]
    assert all(b / a < 2.2 for a, b in pairwise(sizes)), sizes
