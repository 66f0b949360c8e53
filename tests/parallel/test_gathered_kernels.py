"""Kernels of transformers are gathered once per pass, and their gradients reduce-scattered."""

import re
from collections import Counter
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.wan_nets import input_shapes, net, running, shapes_of
from vidlatent.kernels.dispatch import prefer
from vidlatent.layers.dense import Mlp
from vidlatent.layers.scan import run_stacked
from vidlatent.parallel.mesh import AXES, make_mesh
from vidlatent.parallel.sharding import (
    batch_sharding,
    gathered,
    replicated,
    shardings,
    with_shardings,
)

_RESULT = re.compile(r" = (.*?) (all-gather|all-reduce|reduce-scatter)(?:-start)?\(")


def found(text):
    """Elements of what is ``gathered``, ``scattered`` and ``reduced``, each with how often.

    The TPU compiler writes a reduce-scatter as a fusion of that name around an all-reduce.
    """
    inside, counts = "", {kind: Counter() for kind in ("gathered", "scattered", "reduced")}
    for line in text.splitlines():
        if line and not line[0].isspace():
            inside = line
        elif match := _RESULT.search(line):
            kind = {"all-gather": "gathered", "reduce-scatter": "scattered"}.get(
                match[2], "reduced"
            )
            if inside.startswith("%all-reduce-scatter"):
                kind = "scattered"
            for sizes in re.findall(r"\[([\d,]+)\]\{", match[1]):
                counts[kind][prod(map(int, sizes.split(",")))] += 1
    return counts["gathered"], counts["scattered"], counts["reduced"]


def normal(shape):
    return jnp.asarray(0.3 * np.random.default_rng(0).standard_normal(shape), jnp.float32)


def mesh_of(devices, **sizes):
    return make_mesh({axis: sizes.get(axis, 1) for axis in AXES}, devices)


@pytest.mark.parametrize("sizes", [{"fsdp": 4, "context": 2}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_a_stack_gathers_twice_and_is_the_stack_on_one_device(sizes):
    """A kernel is gathered once in the forward and once in the backward loop, remat or not."""
    mlp, width, hidden = Mlp(48, 32), 32, 48
    sizes_of = {
        "fc1": {"kernel": (3, width, hidden), "bias": (3, hidden)},
        "fc2": {"kernel": (3, hidden, width), "bias": (3, width)},
    }
    params = jax.tree.map(normal, sizes_of, is_leaf=lambda x: isinstance(x, tuple))
    x = normal((8, 6, width))

    def loss(params, x):
        return jnp.sum(
            jnp.sin(run_stacked(lambda x, own: x + mlp.apply({"params": own}, x), x, params))
        )

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    mesh = mesh_of(jax.devices()[:8], **sizes)
    with jax.set_mesh(mesh):
        spread = (
            jax.device_put(params, shardings(params, mesh)),
            jax.device_put(x, batch_sharding(mesh)),
        )
        compiled = run.lower(*spread).compile()
        eight = jax.device_get(compiled(*spread))
    kernel = width * hidden // sizes.get("tensor", 1)
    assert found(compiled.as_text())[0][kernel] == 2 * 2
    for a, b in zip(*map(jax.tree.leaves, (eight, run(params, x))), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


def test_what_is_left_alone():
    """Unchanged without a mesh, for a replicated batch, and for a replicated parameter."""
    kernel = jnp.ones((8, 4))
    assert gathered(kernel, "fc1/kernel", 4) is kernel
    with jax.set_mesh(mesh_of(jax.devices()[:4], fsdp=4)):
        assert gathered(kernel, "fc1/kernel", 1) is kernel
        assert gathered(kernel, "fc1/bias", 4) is kernel
        assert gathered(kernel[:6], "fc1/kernel", 4).shape == (6, 4)
    with jax.set_mesh(mesh_of(jax.devices()[:4], data=4)):
        assert gathered(kernel, "fc1/kernel", 4) is kernel


def test_a_tensor_axis_sums_results_and_leaves_the_layer_memory_where_it_is():
    """Tensor-parallel outputs are summed after the next kernels; states are replicated."""
    model = net(width=32, heads=4, hidden=64, depth=5, image_dim=0)
    mesh = mesh_of(jax.devices()[:4], tensor=4)
    params, given = shapes_of(model), input_shapes(model)
    params, given = (
        with_shardings(params, shardings(params, mesh)),
        with_shardings(given, replicated(mesh)),
    )
    with jax.set_mesh(mesh):
        text = running(model).lower(params, given).compile().as_text()
    gathers, _, reductions = found(text)
    states = 2 * 12 * 32
    assert max(gathers) <= states, gathers  # the buffer holds five of them
    assert reductions[states] >= 3, reductions


@pytest.mark.slow
def test_a_training_step_on_tpus_scatters_every_gradient(topology_devices):
    """The transformer with layer memory, compiled for TPU in bfloat16."""
    model = net(jnp.bfloat16, width=256, heads=2, hidden=640, depth=2, image_dim=0, text_dim=16)
    mesh = mesh_of(topology_devices("v5p:2x2x2"), fsdp=4, context=2)
    params = shapes_of(model)
    params = with_shardings(params, shardings(params, mesh))
    given = with_shardings(input_shapes(model, 8, (4, 4, 4), 16), batch_sharding(mesh))

    def loss(params, given):
        return jnp.mean(jnp.sin(model.apply({"params": params}, **given)))

    forms = dict.fromkeys(("attention", "layer_mix", "qk_norm_rope"), "xla")
    with jax.set_mesh(mesh), prefer(**forms):  # which kernels compute in between matters little
        where = jax.tree.map(lambda leaf: leaf.sharding, params)
        run = jax.jit(jax.grad(loss), out_shardings=where)
        gathers, scatters, reductions = found(run.lower(params, given).compile().as_text())
    kernels = {256 * 256: 8, 256 * 640: 2}  # of a layer: elements, how many
    for size, count in kernels.items():
        assert gathers[size] >= 2 * count and gathers[size] <= 2 * count + 4, (gathers, size)
        assert scatters[size] >= count, scatters
    assert max(reductions) < min(kernels), reductions
