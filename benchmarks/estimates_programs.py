"""Programs of ``benchmarks.estimates``: a transformer's layer and a decoder's blocks."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from jax import lax

from vidlatent.kernels.layer_mix import layer_dots, layer_mix
from vidlatent.layers import attention as token_attention
from vidlatent.layers.positions import rope_tables
from vidlatent.models.generators.wan.block import WanBlock
from vidlatent.models.generators.wan.layer_memory import router_weights
from vidlatent.models.tokenizers.fsvideo.blocks import ResBlock

__all__ = ["CONTEXT", "Row", "rows"]

HALF = jnp.bfloat16
CONTEXT = {"text": 512, "image": 257}  # tokens
_HEAD = 128  # width of an attention head in Wan's 14 B transformer
_PLAIN = {"attention": "splash", "qk_norm_rope": "xla"}
_FUSED = {"attention": "splash", "qk_norm_rope": "pallas"}

Program = tuple[Callable[..., Any], tuple[Any, ...]]
_ALWAYS = contextlib.nullcontext


@dataclasses.dataclass(frozen=True)
class Row:
    """A program in one form.

    Attributes:
      what: the program; its first row is the one that the others are compared with.
      form: which form of it this is.
      program: makes the function and the shapes of its arguments.
      preferred: kernel -> form, for ``kernels.dispatch.prefer``.
      earlier: chip -> ratio to the first form in an earlier study.
      attention: 'forward' or 'both' directions of attention, whose operations the compiler does not
        count; '' for none.
      around: context manager in which it is traced.
      given_up: positions of donated arguments.
    """

    what: str
    form: str
    program: Callable[[], Program]
    preferred: Mapping[str, str] = dataclasses.field(default_factory=dict)
    earlier: Mapping[str, float] = dataclasses.field(default_factory=dict)
    attention: str = ""
    around: Callable[[], Any] = _ALWAYS
    given_up: tuple[int, ...] = ()


def rows(tokens: int, width: int) -> Iterator[Row]:
    """All rows, those of a program one after the other."""
    yield from _layers(tokens, width)
    yield from _memory(tokens, width)
    yield from _chains()


def _layers(tokens: int, width: int) -> Iterator[Row]:
    # Without attention, over XLA's form: 12.61 to 11.62 ms forward, 36.96 to 35.06 with backward.
    study = {"forward": 11.62 / 12.61, "both": 35.06 / 36.96}
    for directions, label in (("forward", "forward"), ("both", "forward and backward")):
        make = functools.partial(_layer, tokens, width, directions == "both")
        what = f"layer, {tokens} tokens of {width}, {label}"
        earlier = {"v5p": study[directions]}
        yield Row(what, "plain", make, _PLAIN, attention=directions)
        yield Row(what, "own norm and rotation", make, _FUSED, earlier, directions)
        form = "own norm and rotation, variance in two passes"
        yield Row(what, form, make, _FUSED, attention=directions, around=_two_passes)
        bare = f"{what}, attention left out"
        yield Row(bare, "plain", make, _PLAIN, around=_no_attention)
        yield Row(bare, "own norm and rotation", make, _FUSED, earlier, around=_no_attention)


def _memory(tokens: int, width: int, depth: int = 40) -> Iterator[Row]:
    for label, make in (
        ("forward", functools.partial(_remembering, tokens, width, depth)),
        ("backward", functools.partial(_remembered, tokens, width, depth)),
    ):
        what = f"layer with {depth} remembered states, attention left out, {label}"
        for form, name in (("plain mixtures", "xla"), ("own mixtures", "pallas")):
            forms = {**_FUSED, "layer_mix": name}
            yield Row(what, form, make, forms, around=_no_attention, given_up=(2, 3))


def _chains() -> Iterator[Row]:
    study = {
        (128, 16, False): {"v5p": 15.3 / 24.5, "v6e": 8.7 / 21.5},
        (512, 8, False): {"v5p": 27.4 / 33.5},
        (128, 8, True): {"v5p": 27.9 / 34.2},
    }
    for (channels, frames, backward), earlier in study.items():
        size = (frames, 192, 320) if channels == 128 else (frames, 96, 160)
        what = f"residual blocks, {channels} channels, {'x'.join(map(str, size))}"
        what += ", forward and backward" if backward else ", forward"
        for form, name in (("3D convolution", "native"), ("time taps as channels", "fold2d")):
            make = functools.partial(_chain, channels, size, name, backward)
            yield Row(what, form, make, earlier=earlier if name == "fold2d" else {})


def _shape(*sizes: int, dtype: Any = HALF) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


def _two_passes() -> Any:
    """Layer norms in the form of platforms other than TPUs."""
    return mock.patch("vidlatent.kernels.norms.current_platform", lambda: "cpu")


def _no_attention() -> Any:
    """Replace attention by a sum, which reads queries, keys and values once.

    The compiler counts no operations of an attention kernel, but it does count copies around it.
    """

    def added(queries, keys, values, lengths=None):
        if keys.shape == queries.shape:
            return queries + keys + values
        return queries + jnp.mean(keys + values, axis=1, keepdims=True)

    return mock.patch.object(token_attention, "attention", added)


def _block(tokens: int, width: int) -> tuple[Callable[..., Any], Any, Any, Any]:
    """A block of FSVideo's transformer: its function, parameters, time embedding and context."""
    heads = width // _HEAD
    block = WanBlock(width, heads, 27 * width // 10, True, residual_dtype="bfloat16", dtype=HALF)
    tables = rope_tables((1, 1, tokens), _HEAD)
    x, time = _shape(1, tokens, width), _shape(1, 6, width, dtype=jnp.float32)
    pairs = {name: (_shape(1, n, heads, _HEAD),) * 2 for name, n in CONTEXT.items()}
    embedded = {name: _shape(1, 1, width) for name in pairs}

    def init(x, time, embedded):
        return block.init(jax.random.key(0), x, None, time, embedded, tables)["params"]

    params = jax.eval_shape(init, x, time, embedded)
    params = jax.tree.map(lambda leaf: _shape(*leaf.shape), params)

    def call(params, method, *args):
        given = (*args, tables) if method == "attend" else args
        return block.apply({"params": params}, *given, method=method)

    return call, params, time, pairs


def _layer(tokens: int, width: int, backward: bool) -> Program:
    """A block whose keys and values read a mixture; text and image come from the cache."""
    call, params, time, pairs = _block(tokens, width)
    x = _shape(1, tokens, width)

    def forward(params, x, mixture, time, pairs):
        return call(params, "attend", x, mixture, time, pairs)

    def both(*arguments):
        value, back = jax.vjp(forward, *arguments)
        return back(value)

    return (both if backward else forward), (params, x, x, time, pairs)


def _router(tokens: int, width: int, depth: int) -> tuple[Any, Any, Any]:
    """A router, a buffer of states and a state."""
    router = {"kernel": _shape(width, depth), "bias": _shape(depth)}
    return router, _shape(depth, 1, tokens, width), _shape(1, tokens, width)


def _remembering(tokens: int, width: int, depth: int) -> Program:
    """One layer of a scanned stack: its index is traced, the buffer updated in place."""
    call, params, time, pairs = _block(tokens, width)
    router, states, x = _router(tokens, width, depth)

    def step(params, router, states, x, layer, time, pairs):
        states = lax.dynamic_update_index_in_dim(states, x, layer, 0)
        weights = router_weights(call(params, "inputs", x, time), router, layer)
        fused = layer_mix(states, weights, 0, layer + 1).astype(x.dtype)
        return call(params, "attend", x, fused, time, pairs), states

    return step, (params, router, states, x, _shape(dtype=jnp.int32), time, pairs)


def _remembered(tokens: int, width: int, depth: int) -> Program:
    """The same layer in ``Stack.recomputed``'s backward pass, which repeats its forward pass."""
    call, params, time, pairs = _block(tokens, width)
    router, states, x = _router(tokens, width, depth)

    def step(params, router, mixtures, spread, states, x, grad, layer, time, pairs):
        def weigh(params, router, x):
            return router_weights(call(params, "inputs", x, time), router, layer)

        def attend(params, x, fused):
            return call(params, "attend", x, fused, time, pairs)

        weights, to_weights = jax.vjp(weigh, params, router, x)
        fused = layer_mix(states, weights, 0, layer + 1).astype(x.dtype)
        to_params, to_x, to_fused = jax.vjp(attend, params, x, fused)[1](grad)
        more, to_router, x_more = to_weights(layer_dots(states, to_fused, 0, layer + 1))
        mixtures = lax.dynamic_update_index_in_dim(mixtures, to_fused, layer, 0)
        spread = lax.dynamic_update_index_in_dim(spread, weights, layer, 0)
        column = jnp.moveaxis(lax.dynamic_index_in_dim(spread, layer, 3, False), 0, -1)
        total = layer_mix(mixtures, column, layer, depth)
        total = total + to_x.astype(jnp.float32) + x_more.astype(jnp.float32)
        to_params = jax.tree.map(jnp.add, to_params, more)
        return total.astype(x.dtype), mixtures, spread, to_params, to_router

    spread = _shape(depth, 1, tokens, depth, dtype=jnp.float32)
    layer = _shape(dtype=jnp.int32)
    return step, (params, router, states, spread, states, x, x, layer, time, pairs)


def _chain(channels: int, size: tuple[int, int, int], form: str, backward: bool) -> Program:
    """Three of FSAE's residual blocks, ``x + norm(conv2(silu(conv1(x))))``."""
    block = ResBlock(dtype=HALF, implementation=form)
    x = _shape(1, *size, channels)

    def init(x):
        return block.init(jax.random.key(0), x)["params"]

    params = [jax.eval_shape(init, x)] * 3

    def forward(x, params):
        for own in params:
            x = block.apply({"params": own}, x)[0]
        return x

    def both(x, params, grad):
        return jax.vjp(forward, x, params)[1](grad)

    return (both, (x, params, x)) if backward else (forward, (x, params))
