"""Rows of ``benchmarks.h200``: their type, and the sections ceilings, products and attention.

Predictions are milliseconds on an H200. Those of the kernel study were made for this project from
compiled programs, data sheets and published figures, by a few rules:

* a matrix product reaches 0.9 of the ceiling, times the share of 132 multiprocessors that its last
  wave of 128 x 256 tiles keeps busy; in fp8 it reaches 1250 TFLOP/s;
* fused attention with heads of 128 reaches 585 TFLOP/s forward and 485 backward at 7440 tokens; the
  plain form adds four passes over float32 scores;
* an operation bound by memory takes as many passes over its tensor as the compiled program makes.

Without a figure of the study the prediction is a bound: see ``h200_report.predicted``.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.h200_report import BANDWIDTH, FLOPS
from vidlatent.kernels.attention import attention
from vidlatent.kernels.fp8 import fp8_product, quantise_fp8

HALF = jnp.bfloat16
NO_TRITON = {"xla_gpu_enable_triton_gemm": False}


@dataclasses.dataclass
class Case:
    """A function to time.

    Attributes:
      function, arguments: the function (to be jitted) and its arguments, the first an array.
      reference: computes the exact result, in float32 unless the row says otherwise.
      keep: called with the result.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    reference: Callable[[], Any] | None = None
    keep: Callable[[Any], None] | None = None


@dataclasses.dataclass(frozen=True)
class Row:
    """Something to time.

    Attributes:
      name: in the table.
      make: makes the ``Case``; called just before it is measured.
      bench: instead of ``make``: ``repeats -> figures`` of ``vidlatent.bench.run``.
      flops, bytes: least operations and bytes of one run; 0: not counted.
      study: milliseconds of the kernel study at full size; 0: none.
      options: of the compiler.
      looped: shorter than its launch, so runs are repeated inside one program.
      part: ``(total, form, times)``: a total of ``h200_report`` that it counts in, ``times`` times.
    """

    name: str
    make: Callable[[], Case] | None = None
    bench: Callable[[int], dict[str, Any]] | None = None
    flops: float = 0.0
    bytes: float = 0.0
    study: float = 0.0
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    looped: bool = False
    part: tuple[str, str, float] | None = None


def random_key(seed: int) -> jax.Array:
    """A key of the hardware's own generator, whose programs compile in a fraction of the time."""
    return jax.random.key(seed, impl="rbg")


def normal(*shape: int, dtype: Any = HALF, seed: int = 0) -> jax.Array:
    return jax.random.normal(random_key(seed), shape, dtype)


def exact(function: Callable[..., Any], *arguments: Any) -> Any:
    """``function`` of the arguments in float32, with products in full precision."""

    def whole(leaf):
        return leaf.astype(jnp.float32) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    with jax.default_matmul_precision("highest"):
        return jax.jit(function)(*jax.tree.map(whole, arguments))


def case(function: Callable[..., Any], *arguments: Any) -> Case:
    """A case of a function that computes in its arguments' type; its reference is float32."""
    return Case(function, arguments, functools.partial(exact, function, *arguments))


# -- sections: scale (1 whole, more for a toy) -> rows --------------------------------------------


def ceilings(scale: int) -> Iterator[Row]:
    """The ceilings that everything else is compared with."""
    side, length = 8192 // scale, 2**28 // scale**2

    def product():
        return Case(jnp.dot, (normal(side, side), normal(side, side, seed=1)))

    def copy():
        return Case(lambda x: x + 1, (jnp.ones((length,), jnp.float32),))

    flops, moved = 2 * side**3, 2 * 4 * length
    title = f"ceiling: product of {side} x {side}"
    yield Row(title, product, flops=flops, study=1e3 * flops / FLOPS)
    title = f"ceiling: copy of {4 * length / 1e9:.3g} GB"
    yield Row(title, copy, bytes=moved, study=1e3 * moved / BANDWIDTH)


def products(scale: int) -> Iterator[Row]:
    """Matrix products of a layer in bfloat16 and 8 bits, with and without Triton's kernels.

    1872 and 3744 are the base's tokens padded to a multiple of 16.
    """
    counts = (1860, 7440, 3720, 1872, 3744)
    sizes = ((5120, 5120), (5120, 10240), (5120, 13824), (13824, 5120))
    if scale > 1:
        counts, sizes = counts[:1], sizes[-1:]
    for ending, options in (("", {}), (", without Triton", NO_TRITON)):
        for rows in counts:
            for width, out in sizes:
                m, k, n = rows // scale, width // scale, out // scale

                def half(m=m, k=k, n=n):
                    return case(jnp.dot, normal(m, k), normal(k, n, seed=1))

                def eighth(m=m, k=k, n=n):
                    x, kernel = normal(m, k), normal(k, n, seed=1)
                    rounded = jax.jit(quantise_fp8)(kernel)
                    reference = functools.partial(exact, jnp.dot, x, kernel)
                    return Case(lambda x, w: fp8_product(x, w, HALF), (x, rounded), reference)

                flops = 2.0 * m * k * n
                title = f"product {m} x {k} x {n}"
                shared = {"flops": flops, "options": options}
                best = 1e3 * flops / (0.9 * FLOPS * _last_wave(m, n))
                yield Row(f"{title}, bfloat16{ending}", half, study=best, **shared)
                yield Row(f"{title}, 8 bits{ending}", eighth, study=1e3 * flops / 1250e12, **shared)


def _last_wave(rows: int, columns: int) -> float:
    """Share of 132 multiprocessors that tiles of 128 x 256 keep busy."""
    tiles = math.ceil(rows / 128) * math.ceil(columns / 256)
    return tiles / (132 * math.ceil(tiles / 132))


def attentions(scale: int) -> Iterator[Row]:
    """Attention forward, forward with backward, and the plain form."""
    cases = [  # batch, queries, keys, heads, head width, the study's ms forward, both
        (2, 1860, 1860, 40, 128, 0.276, 0.0),
        (1, 7440, 7440, 40, 128, 1.94, 7.78),
        (1, 7440, 512, 40, 128, 0.0, 0.0),
        (1, 7440, 257, 40, 128, 0.0, 0.0),
        (1, 4096, 4096, 30, 64, 0.0, 0.0),
        (1, 4096, 4096, 16, 72, 0.0, 0.0),
    ]
    for batch, queries, keys, heads, dim, forward, both in cases:
        queries, keys, heads = queries // scale, keys // scale, max(1, heads // scale)
        shape = (batch, queries, keys, heads, dim)
        flops = 4.0 * math.prod(shape)
        # Of queries, keys, values and the result.
        moved = 2.0 * batch * heads * dim * 2 * (queries + keys)
        title = f"attention {batch} x {queries} to {keys}, {heads} x {dim}"
        # Attention to text and image takes no longer than its launch.
        shared = {"flops": flops, "bytes": moved, "looped": keys < 1000 // scale}
        yield Row(title, functools.partial(_attend, shape), study=forward, **shared)
        back = functools.partial(_attend, shape, backward=True)
        more = {"flops": 3.5 * flops, "bytes": 3 * moved}
        yield Row(f"{title}, with gradients", back, study=both, **more)
        plain = functools.partial(_attend, shape, form="xla")
        scores = 4 * 4 * math.prod(shape[:4])
        study = 1e3 * (flops / FLOPS + scores / BANDWIDTH)
        yield Row(f"{title}, plain form", plain, study=study, **shared)


def _attend(shape: tuple[int, ...], form: str = "auto", backward: bool = False) -> Case:
    batch, queries, keys, heads, dim = shape
    sizes = enumerate((queries, keys, keys))
    arrays = tuple(normal(batch, size, heads, dim, seed=seed) for seed, size in sizes)

    def function(form):
        def run(q, k, v):
            return attention(q, k, v, implementation=form).astype(q.dtype)

        def gradients(q, k, v):
            value, back = jax.vjp(run, q, k, v)
            return back(value)

        return gradients if backward else run

    reference = functools.partial(exact, function("xla"), *arrays)
    return Case(function(form), arrays, reference)
