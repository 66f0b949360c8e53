"""Mixtures of the layer memory: each form against a sum over the slots that exist."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.kernels.forms import STRICT, check, devices, normal
from vidlatent.kernels.layer_mix import layer_dots, layer_mix
from vidlatent.models.generators.wan import layer_memory
from vidlatent.models.generators.wan.layer_memory import Stack, pad_routers

FIRST, END, DEPTH = 1, 3, 4


def mixed(states, weights):
    return jnp.einsum("lbnd,bnl->bnd", states[FIRST:END], weights[..., FIRST:END])


def dotted(states, tokens):
    dots = jnp.einsum("lbnd,bnd->bnl", states[FIRST:END], tokens)
    return jnp.pad(dots, ((0, 0), (0, 0), (FIRST, DEPTH - END)))


def form(op, implementation="pallas", interpret=True):
    """``op`` as a function of its two arrays."""
    return lambda states, tokens: op(
        states, tokens, FIRST, END, implementation=implementation, interpret=interpret
    )


def arrays(op, batch=2, tokens=40):
    last = DEPTH if op is layer_mix else 128
    return normal(0, DEPTH, batch, tokens, 128), normal(1, batch, tokens, last)


@pytest.mark.parametrize(
    "op, implementation, tokens, dtype",
    [
        (layer_mix, "pallas", 40, "float32"),
        (layer_dots, "pallas", 270, "bfloat16"),  # a second block of 14 tokens
        (layer_mix, "xla", 5, "float32"),
        (layer_dots, "xla", 5, "float32"),
        pytest.param(layer_mix, "pallas", 270, "bfloat16", marks=pytest.mark.slow),
        pytest.param(layer_dots, "pallas", 40, "float32", marks=pytest.mark.slow),
        pytest.param(layer_mix, "xla", 5, "bfloat16", marks=pytest.mark.slow),
        pytest.param(layer_dots, "xla", 5, "bfloat16", marks=pytest.mark.slow),
    ],
)
def test_values_and_gradients_in_each_form(op, implementation, tokens, dtype):
    reference, half = (mixed, 1) if op is layer_mix else (dotted, 2)
    check(form(op, implementation), reference, arrays(op, tokens=tokens), dtype, half)


def test_slots_out_of_the_range_are_never_touched():
    """Unwritten memory of a TPU may hold NaN, and so do these empty slots."""
    states, weights = arrays(layer_mix, batch=1)
    states[[0, 3]] = np.nan
    tokens = normal(2, 1, 40, 128)
    for op, reference, other in ((layer_mix, mixed, weights), (layer_dots, dotted, tokens)):
        got = jax.jit(form(op, interpret=STRICT))(states, other)
        np.testing.assert_allclose(got, reference(states, other), atol=1e-4)


def test_on_eight_devices():
    """Samples and tokens are sharded; devices along ``tensor`` do the same work."""
    with jax.set_mesh(devices(data=2, context=2, tensor=2)):
        check(form(layer_mix), mixed, arrays(layer_mix))


@pytest.mark.slow
@pytest.mark.parametrize("op, reference", [(layer_mix, mixed), (layer_dots, dotted)])
def test_under_vmap(op, reference):
    inputs = tuple(np.stack([a, 2 * a[::-1]]) for a in arrays(op))
    check(jax.vmap(form(op)), jax.vmap(reference), inputs)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["xla", "pallas"])
def test_second_derivatives(implementation):
    def penalty(run):
        def score(states, weights):
            grads = jax.grad(lambda *a: jnp.sum(jnp.sin(run(*a))), argnums=(0, 1))(states, weights)
            return sum(jnp.sum(g**2) for g in grads)[None]

        return score

    inputs = arrays(layer_mix, batch=1, tokens=16)
    check(penalty(form(layer_mix, implementation)), penalty(mixed), inputs)


@pytest.mark.parametrize("kind", ["recomputed", pytest.param("scanned", marks=pytest.mark.slow)])
def test_a_stack_through_the_kernels(kind, monkeypatch):
    """As on a TPU, interpreted, with traced ends: the gradients are those of a list of states."""
    depth, width = 3, 128
    stack = Stack(
        lambda p, x, s: jnp.sin(x @ p * 0.1 + s),
        lambda p, x, m, s: x + jnp.tanh((x + m) @ p * 0.1) * s,
    )
    routers = [
        {"kernel": 0.1 * normal(n, width, n), "bias": normal(n + 9, n)} for n in range(2, depth + 1)
    ]
    given = normal(0, depth, width, width), normal(1, 1, 24, width), normal(2, 1, 1, width)

    def run(kind, params, x, shared):
        if kind == "unrolled":
            return stack.unrolled(params, routers, x, shared)[0]
        return getattr(stack, kind)(params, pad_routers(routers, width), x, shared)

    for name in ("layer_mix", "layer_dots"):
        kernel = functools.partial(
            getattr(layer_memory, name), implementation="pallas", interpret=True
        )
        monkeypatch.setattr(layer_memory, name, kernel)
    check(functools.partial(run, kind), functools.partial(run, "unrolled"), given)
