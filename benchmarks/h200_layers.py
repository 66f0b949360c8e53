"""Rows of ``benchmarks.h200``: elementwise operations, layer memory, residual chains."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.h200_report import BANDWIDTH
from benchmarks.h200_rows import HALF, Case, Row, case, normal, random_key
from vidlatent.kernels.layer_mix import layer_mix
from vidlatent.kernels.norms import layer_norm
from vidlatent.kernels.qk_norm_rope import qk_norm_rope, rotate_halves
from vidlatent.layers.norms import ChannelNorm, apply_affine, group_affine, modulate
from vidlatent.layers.positions import rope_tables, rotate_pairs
from vidlatent.models.generators.wan.layer_memory import mix
from vidlatent.models.tokenizers.fsvideo.blocks import ResBlock

__all__ = ["convolutions", "elementwise", "mixtures"]

_PASS_MS = 1e3 * 2 * 7440 * 5120 / BANDWIDTH  # over the tokens of the refiner


def elementwise(scale: int) -> Iterator[Row]:
    """Norms, gates and rotations between the products, in the package's forms and in others."""
    count, width = 7440 // scale, 5120 // scale
    heads = max(2, 40 // scale)
    size = 2.0 * count * width
    tables = rope_tables((1, 1, count), width // heads)

    def row(title, function, passes, least, *arguments):
        def make():
            shapes = [(1, count, width), *arguments]
            made = [normal(*shape, seed=seed) for seed, shape in enumerate(shapes)]
            return case(function, *made)

        return Row(title, make, bytes=least * size, study=passes * _PASS_MS, looped=True)

    yield row("layer norm", lambda x: layer_norm(x).astype(x.dtype), 38 / 17.7, 2)
    yield row("layer norm, its variance in one pass", _norm_in_one_pass, 3, 2)
    more = ((1, count, width), *[(1, 1, width)] * 3)
    title = "gated residual and modulated norm"
    yield row(title, functools.partial(_residual, False), 6, 4, *more)
    yield row(f"{title}, a barrier between", functools.partial(_residual, True), 5, 4, *more)

    def half_turns(x, scale):
        return qk_norm_rope(x, scale, tables, heads)

    def rounded_late(x, scale):
        return rotate_halves(_by_head(x, scale, heads), tables).astype(x.dtype)

    def pair_turns(x, scale):
        return rotate_pairs(_by_head(x, scale, heads).astype(x.dtype), tables)

    title = "queries: norm, rotation, heads"
    yield row(title, half_turns, 4.05, 2, (width,))
    yield row(f"{title}, rounded at the end", rounded_late, 6.05, 2, (width,))
    yield row(f"{title}, pairs of neighbours", pair_turns, 4.05, 2, (width,))
    yield from _decoder_norms(scale)


def _norm_in_one_pass(x: jax.Array) -> jax.Array:
    """``layer_norm`` from the means of ``x`` and its square, a form that the package lacks."""
    h = x.astype(jnp.float32)
    mean = jnp.mean(h, axis=-1, keepdims=True)
    square = jnp.mean(jnp.square(h), axis=-1, keepdims=True)
    inverse = lax.rsqrt(jnp.maximum(square - jnp.square(mean), 0) + 1e-6)
    return ((h - mean) * inverse).astype(x.dtype)


def _residual(barrier: bool, x, h, gate, scale, shift):
    """The gated residual that ends a sub-layer and the modulated norm that begins the next."""
    total = x.astype(jnp.float32) + gate * h.astype(jnp.float32)
    total = total.astype(x.dtype)
    total = lax.optimization_barrier(total) if barrier else total
    return total, modulate(total, scale, shift).astype(x.dtype)


def _by_head(x: jax.Array, scale: jax.Array, heads: int) -> jax.Array:
    """Queries normalised over their width in float32, then split into heads."""
    norm = ChannelNorm(1e-6, use_bias=False)
    return norm.apply({"params": {"scale": scale}}, x).reshape(*x.shape[:-1], heads, -1)


def _decoder_norms(scale: int) -> Iterator[Row]:
    """Norms of a decoder, on a part of its feature maps."""
    shape = (1, 16, 192 // scale, 320 // scale, 128 // scale)
    groups = 32 if scale == 1 else 1
    size = 2.0 * math.prod(shape)

    def pixel(x):
        norm = ChannelNorm(dtype=x.dtype)
        ones = jnp.ones(shape[-1])
        return jax.nn.silu(norm.apply({"params": {"scale": ones, "bias": 0 * ones}}, x))

    def group(x):
        return jax.nn.silu(apply_affine(x, group_affine(x, groups)))

    of = f"of {'x'.join(map(str, shape[1:]))}, SiLU"
    for title, function, passes in (
        (f"pixel norm {of}", pixel, 2),
        (f"mean-free group norm {of}", group, 3),
    ):

        def make(function=function):
            return case(function, normal(*shape))

        study = 1e3 * passes * size / BANDWIDTH
        yield Row(title, make, bytes=passes * size, study=study, looped=True)


def mixtures(scale: int) -> Iterator[Row]:
    """The layer memory's mixture of 20 states; the buffer of a scanned stack has 40."""
    count, width = 7440 // scale, 5120 // scale
    size = 2.0 * count * width

    def weights(states):
        return jax.nn.softmax(normal(1, count, states, dtype=jnp.float32))

    def listed(states):
        arrays = [normal(1, count, width, seed=seed) for seed in range(states)]
        return case(mix, weights(states), arrays)

    def buffered(end):
        def run(w, s):
            return layer_mix(s[:end], w[..., :end], 0, 20).astype(s.dtype)

        return case(run, weights(40), normal(40, 1, count, width))

    for title, make, moved, passes in (
        ("mixture of a list of 20", functools.partial(listed, 20), 21, 21),
        ("mixture of a list of 40", functools.partial(listed, 40), 41, 41.7),
        ("mixture of 20 slots, cut out of 40", functools.partial(buffered, 20), 21, 21),
        ("mixture of 20 slots, all 40 read", functools.partial(buffered, 40), 21, 41),
    ):
        yield Row(title, make, bytes=moved * size, study=passes * _PASS_MS, looped=True)


def convolutions(scale: int) -> Iterator[Row]:
    """Three residual blocks in each form of convolution; the best one is 'auto' on GPUs."""
    forms = (
        ("native", "native", {}),
        ("native, channels last", "native", {"xla_gpu_force_conv_nhwc": True}),
        ("fold2d", "fold2d", {}),
        ("taps", "taps", {}),
    )
    for frames, height, width, channels in ((16, 192, 320, 128), (8, 96, 160, 512)):
        shape = (1, frames, height // scale, width // scale, channels // scale)
        size = math.prod(shape)
        chain = _Chain(shape)
        for name, form, options in forms:
            title = f"residual chain {'x'.join(map(str, shape[1:]))}, {name}"
            # Six convolutions, and each block's input and output once.
            counts = {"flops": 6 * 2.0 * 27 * size * shape[-1], "bytes": 3 * 2 * 2.0 * size}
            yield Row(title, functools.partial(chain.case, form), options=options, **counts)


class _Chain:
    """Three of FSAE's residual blocks with shared parameters, and their result in float32."""

    def __init__(self, shape: tuple[int, ...]):
        self._shape = shape

    def case(self, form: str) -> Case:
        arguments = (normal(*self._shape), self._params)
        reference = functools.partial(self._exact, *arguments)
        return Case(functools.partial(self._run, form, HALF), arguments, reference)

    @functools.cached_property
    def _params(self) -> Any:
        few = jnp.zeros((1, 2, 2, 2, self._shape[-1]))
        return jax.jit(lambda key: ResBlock().init(key, few)["params"])(random_key(1))

    def _run(self, form: str, dtype: Any, x: jax.Array, params: Any) -> jax.Array:
        block = ResBlock(dtype=dtype, implementation=form)
        for _ in range(3):
            x, _ = block.apply({"params": params}, x)
        return x

    @functools.cached_property
    def _whole(self) -> Any:
        return jax.jit(functools.partial(self._run, "taps", jnp.float32))

    def _exact(self, x: jax.Array, params: Any) -> jax.Array:
        with jax.default_matmul_precision("highest"):
            return self._whole(x.astype(jnp.float32), params)
