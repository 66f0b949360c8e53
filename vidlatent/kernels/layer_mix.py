"""Weighted sums over a buffer of layer states that is only partly filled (FSVideo 2.3.1).

In a scanned stack the number of filled slots is traced, so plain XLA reads the whole buffer and
multiplies most of it by zero. The Pallas forms for TPUs fetch only the slots in a range.

* ``layer_mix``: ``sum_j w[..., j] X_j``, the mixture;
* ``layer_dots``: ``<X_j, g>`` for every slot, the cotangent of the weights.

Each is the derivative of the other, in every form and to any order. The cotangent of the buffer is
written in full, which costs as much as the buffer itself; ``wan.layer_memory`` avoids that by
collecting it in another way.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec as P

from vidlatent.kernels.dispatch import Names, choose, needs_manual
from vidlatent.parallel.sharding import split_axes
from vidlatent.spec import check_shape

__all__ = ["layer_dots", "layer_mix"]

_AUTO = {"tpu": "pallas", "default": "xla"}
_ROWS = 256  # tokens of a block: [256, 5120] float32 is 5 MiB of vector memory
# Bytes of vector memory that the kernel may use, above the compiler's default of 16 MiB: v5p and
# TPU7x have 64 MiB a core, v5e and v6e 128.
_SCRATCH = 48 << 20
Interpret = bool | pltpu.InterpretParams


class _Run(NamedTuple):
    """The form that runs; its derivatives use the same one."""

    form: str
    interpret: Interpret


def layer_mix(
    states: jax.Array,
    weights: jax.Array,
    first: jax.Array | int,
    end: jax.Array | int,
    *,
    implementation: Names = "auto",
    interpret: Interpret = False,
) -> jax.Array:
    """``sum_j weights[..., j] states[j]`` over the slots ``first <= j < end``, float32 sums.

    Args:
      states: ``[L, B, N, D]``.
      weights: ``[B, N, L]`` float32.
      first, end: int32 scalars, may be traced; at least one slot.
      implementation: ``'auto'``, ``'xla'``, ``'pallas'`` or several, see ``dispatch``.
      interpret: run the Pallas form on any platform, slowly, for tests.

    Returns:
      ``[B, N, D]`` float32.
    """
    sizes = check_shape(states, "L B N D")
    check_shape(weights, "B N L", **{name: sizes[name] for name in "BNL"})
    run = _Run(choose("layer_mix", implementation, _AUTO).name, interpret)
    return _mix(run, states, weights, _range(first, end))


def layer_dots(
    states: jax.Array,
    cotangent: jax.Array,
    first: jax.Array | int,
    end: jax.Array | int,
    *,
    implementation: Names = "auto",
    interpret: Interpret = False,
) -> jax.Array:
    """``<states[j], cotangent>`` for the slots ``first <= j < end``, 0 for the others.

    Args as for ``layer_mix``; ``cotangent`` is ``[B, N, D]``.

    Returns:
      ``[B, N, L]`` float32.
    """
    sizes = check_shape(states, "L B N D")
    check_shape(cotangent, "B N D", **{name: sizes[name] for name in "BND"})
    run = _Run(choose("layer_mix", implementation, _AUTO).name, interpret)
    return _dots(run, states, cotangent, _range(first, end))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mix(run, states, weights, limits):
    if run.form == "pallas":
        return _spread(functools.partial(_mix_rows, run.interpret), states, weights, limits)
    # [L, B, N, 1] times [L, B, N, D], summed over the slots.
    return jnp.sum(_column(weights, limits) * states.astype(jnp.float32), axis=0)


def _mix_kept(run, states, weights, limits):
    return _mix(run, states, weights, limits), (states, weights, limits)


def _mix_backward(run, kept, cotangent):
    states, weights, limits = kept
    # d/dX_j = w_j g for every slot, and d/dw_j = <X_j, g>, which is the other kernel.
    to_states = _column(weights, limits) * cotangent
    to_weights = _dots(run, states, cotangent, limits)
    # Nothing flows into the limits, which are integers.
    return to_states.astype(states.dtype), to_weights.astype(weights.dtype), None


_mix.defvjp(_mix_kept, _mix_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _dots(run, states, tokens, limits):
    if run.form == "pallas":
        return _spread(functools.partial(_dots_rows, run.interpret), states, tokens, limits)
    # [L, B, N]: one dot product per slot and token.
    dots = jnp.sum(states.astype(jnp.float32) * tokens.astype(jnp.float32), axis=-1)
    return jnp.where(_within(states.shape[0], limits), jnp.moveaxis(dots, 0, -1), 0.0)


def _dots_kept(run, states, tokens, limits):
    return _dots(run, states, tokens, limits), (states, tokens, limits)


def _dots_backward(run, kept, cotangent):
    states, tokens, limits = kept
    to_states = _column(cotangent, limits) * tokens.astype(jnp.float32)
    to_tokens = _mix(run, states, cotangent, limits)
    return to_states.astype(states.dtype), to_tokens.astype(tokens.dtype), None


_dots.defvjp(_dots_kept, _dots_backward)


def _within(depth: int, limits: jax.Array) -> jax.Array:
    """Which slots lie in the range, bool ``[L]``."""
    slots = jnp.arange(depth)
    return (slots >= limits[0]) & (slots < limits[1])


def _column(weights: jax.Array, limits: jax.Array) -> jax.Array:
    """``[B, N, L]`` to ``[L, B, N, 1]``, 0 for slots that are not in the range."""
    weights = jnp.where(_within(weights.shape[-1], limits), weights, 0.0)
    return jnp.moveaxis(weights, -1, 0)[..., None]


def _range(first: Any, end: Any) -> jax.Array:
    # One array, because Pallas prefetches it to find the blocks to fetch.
    return jnp.stack([jnp.asarray(first, jnp.int32), jnp.asarray(end, jnp.int32)])


def _spread(local: Any, states: jax.Array, tokens: jax.Array, limits: jax.Array) -> jax.Array:
    """``local`` on every device's share of samples and tokens; these do not interact."""
    if not needs_manual():
        return local(states, tokens, limits)
    axes = split_axes("batch", tokens.shape[0]), split_axes("tokens", tokens.shape[1])
    # check_vma is off: a Pallas call does not say over which mesh axes its result varies.
    return jax.shard_map(
        local, in_specs=(P(None, *axes), P(*axes), P()), out_specs=P(*axes), check_vma=False
    )(states, tokens, limits)


def _sweep(
    term: Callable[..., jax.Array],
    states: jax.Array,
    tokens: jax.Array,
    limits: jax.Array,
    channels: int,
    interpret: Interpret,
) -> jax.Array:
    """Sum of ``term(k, state, token)`` over the slots in the range, for each block of tokens.

    ``state`` is ``[rows, D]`` float32, ``token`` ``[rows, C]``; the result has ``channels``.
    """
    depth, batch, count, width = states.shape
    # bfloat16 is stored in tiles of 16 rows, so a block has a multiple of them.
    rows = min(_ROWS, -(-count // 16) * 16)

    def body(limits, state, token, out):
        k = pl.program_id(2)

        @pl.when(k == 0)
        def _():
            out[...] = jnp.zeros_like(out)

        @pl.when((k >= limits[0]) & (k < limits[1]))
        def _():
            out[0] += term(k, state[0, 0].astype(jnp.float32), token[0])

    def slot(b, i, k, limits):
        # Outside the range the nearest slot inside is named again: Pallas skips a repeated fetch.
        return jnp.clip(k, limits[0], limits[1] - 1), b, i, 0

    spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1,
        # Slots are the innermost axis: the output block stays in vector memory while its sum grows.
        grid=(batch, pl.cdiv(count, rows), depth),
        in_specs=[
            pl.BlockSpec((1, 1, rows, width), slot),
            pl.BlockSpec((1, rows, tokens.shape[-1]), _block),
        ],
        out_specs=pl.BlockSpec((1, rows, channels), _block),
    )
    # The number of slots fetched is traced. Over the scan of a stack it grows from one to all, so
    # the scheduler gets the mean.
    fetched = batch * count * width * (depth + 1) // 2
    rest = tokens.size * tokens.dtype.itemsize + batch * count * channels * 4
    cost = pl.CostEstimate(
        flops=2 * fetched,
        transcendentals=0,
        bytes_accessed=fetched * states.dtype.itemsize + rest,
    )
    return pl.pallas_call(
        body,
        grid_spec=spec,
        out_shape=jax.ShapeDtypeStruct((batch, count, channels), jnp.float32),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=_SCRATCH
        ),
        cost_estimate=cost,
        interpret=interpret,
    )(limits, states, tokens)


def _block(b, i, k, limits):
    return b, i, 0


def _mix_rows(interpret, states, weights, limits):
    def term(k, state, weight):
        # k is traced, so lane k is picked by a mask and a sum.
        lane = jax.lax.broadcasted_iota(jnp.int32, weight.shape, 1)
        return jnp.sum(jnp.where(lane == k, weight, 0.0), axis=1, keepdims=True) * state

    return _sweep(term, states, weights, limits, states.shape[-1], interpret)


def _dots_rows(interpret, states, cotangent, limits):
    depth = states.shape[0]

    def term(k, state, grad):
        # Slot k adds to lane k of [rows, L] and leaves the other lanes as they are.
        lane = jax.lax.broadcasted_iota(jnp.int32, (state.shape[0], depth), 1)
        dots = jnp.sum(state * grad.astype(jnp.float32), axis=1, keepdims=True)
        return jnp.where(lane == k, dots, 0.0)

    return _sweep(term, states, cotangent, limits, depth, interpret)
