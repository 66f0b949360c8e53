"""Checks of the devices at hand: every kernel's forms, and steps over all of them against one."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vidlatent import config as configs
from vidlatent.kernels.attention import attention
from vidlatent.kernels.conv3d import DENSE_FORMS, DEPTHWISE_FORMS, conv3d
from vidlatent.kernels.dispatch import FORMS, current_platform
from vidlatent.kernels.layer_mix import layer_mix
from vidlatent.kernels.norms import layer_norm
from vidlatent.kernels.qk_norm_rope import qk_norm_rope
from vidlatent.latents.contract import LatentSpace
from vidlatent.latents.space import Latents, generator_of
from vidlatent.parallel.mesh import make_mesh
from vidlatent.parallel.multihost import to_global
from vidlatent.parallel.sharding import batch_sharding
from vidlatent.selftest.check import Skipped, register
from vidlatent.spec import FrameRule, LatentSpec
from vidlatent.train.program import describe_state, jit_train_step
from vidlatent.train.state import random_key
from vidlatent.train.tasks.generator import GeneratorTask
from vidlatent.train.tasks.tokenizer import TokenizerTask

# Where a form runs; all others run everywhere. On CPUs Pallas kernels are interpreted.
_ONLY_ON = {"splash": ("tpu", "cpu"), "pallas": ("tpu", "cpu"), "cudnn": ("gpu",)}
# Relative L2 distance to the plain form in float32: values and gradients. bfloat16 rounds each
# value by at most 0.2 %.
_TOLERANCE = {"float32": 2e-5, "bfloat16": 1e-2}


def _normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def _distance(got: Any, want: Any) -> float:
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    if not np.isfinite(got).all():
        return math.nan
    return float(np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-30))


def _compare(form: Callable, plain: Callable, inputs: tuple, half: int) -> tuple[float, float]:
    """Distances of value and gradients, the latter the largest; and the tolerance.

    On accelerators the first ``half`` inputs are bfloat16, as kernels get them there. The plain
    form computes in float32 on the same rounded numbers.
    """
    dtype = "float32" if current_platform() == "cpu" else "bfloat16"
    rounded = [x.astype(dtype if i < half else jnp.float32) for i, x in enumerate(inputs)]
    exact = [x.astype(jnp.float32) for x in rounded]

    def both(function):
        def run(*arrays):
            value, back = jax.vjp(function, *arrays)
            weights = jnp.cos(jnp.arange(value.size, dtype=jnp.float32)).reshape(value.shape)
            return (value, *back(weights.astype(value.dtype)))

        return jax.jit(run)

    # TPUs round the factors of float32 products to bfloat16 unless they are told not to.
    with jax.default_matmul_precision("highest"):
        want = both(plain)(*exact)
    got = both(form)(*rounded)
    worst = max(_distance(*pair) for pair in zip(got, want, strict=True))
    return worst, _TOLERANCE[dtype]


def _list_kernels() -> Iterator[tuple[str, tuple[str, ...], Callable, tuple, int]]:
    """Kernel, its forms from the plain one on, ``form -> function``, inputs, halves of them."""
    interpret = current_platform() == "cpu"
    qkv = tuple(_normal(i, 2, 256, 2, 64) for i in range(3))
    keys = {"splash": {"interpret": interpret}, "pallas": {"interpret": interpret}}

    def attend(form):
        return functools.partial(attention, implementation=form, **keys.get(form, {}))

    yield "attention", FORMS["attention"], attend, qkv, 3
    tables = tuple(np.asarray(_normal(3 + i, 128, 64)) for i in range(2))

    def rotate(form):
        run = functools.partial(qk_norm_rope, implementation=form, interpret=interpret)
        return lambda x, scale: run(x, scale, tables, 2)

    inputs = (_normal(0, 2, 128, 256), 1 + _normal(1, 256))
    yield "qk_norm_rope", FORMS["qk_norm_rope"], rotate, inputs, 1

    def mix(form):
        run = functools.partial(layer_mix, implementation=form, interpret=interpret)
        return lambda states, weights: run(states, weights, 1, 3)

    yield (
        "layer_mix",
        FORMS["layer_mix"],
        mix,
        (_normal(0, 4, 2, 128, 128), _normal(1, 2, 128, 4)),
        1,
    )

    def convolve(form, groups):
        padding = ((2, 0), (1, 1), (1, 1))
        return lambda x, k: conv3d(x, k, (1, 1, 1), padding, groups, implementation=form)

    x = _normal(0, 1, 5, 12, 12, 16)
    dense = functools.partial(convolve, groups=1)
    yield "conv3d", DENSE_FORMS, dense, (x, _normal(1, 3, 3, 3, 16, 8)), 2
    deep = functools.partial(convolve, groups=16)
    yield "conv3d by channel", DEPTHWISE_FORMS, deep, (x, _normal(1, 3, 3, 3, 1, 16)), 2


@register("kernels")
def check_kernels() -> Iterator[tuple[str, float, float, float]]:
    """Each form of each kernel that can run here against the plain one: values and gradients."""
    platform = current_platform()
    for kernel, forms, make, inputs, half in _list_kernels():
        for form in (*forms, "auto"):
            if platform in _ONLY_ON.get(form, (platform,)):
                worst, tolerance = _compare(make(form), make(forms[0]), inputs, half)
                yield f"{kernel}: {form}", worst, 0.0, tolerance
    x = _normal(5, 4, 32, 96)
    wide = np.asarray(x, np.float64)
    want = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-6)
    yield "layer_norm", _distance(jax.jit(layer_norm)(x), want), 0.0, 2e-5


_ONE = {"data": 1, "fsdp": 1, "context": 1, "tensor": 1}  # a mesh of one device

# A generator and a tokenizer whose steps compile in seconds.
_GENERATOR = {"width": 64, "depth": 2, "heads": 4, "hidden": 128, "latent_channels": 4}
_TOKENIZER = {
    "encoder_widths": (8, 16),
    "decoder_widths": (8, 16),
    "encoder_depths": (0, 1),
    "decoder_depths": (0, 1),
    "block_types": ("res", "res"),
    "multiscales": ((), ()),
    "temporal_down": (0,),
    "latent_channels": 4,
    "up_form": "nearest",
}


def _make_generator_task(rows: int) -> tuple[GeneratorTask, dict[str, np.ndarray]]:
    config = _load("latte:demo", "generator", _GENERATOR)
    spec = LatentSpec("selftest", 4, 4, 4, 4, FrameRule(1, 4))
    space = LatentSpace(spec, (0.0,) * 4, (1.0,) * 4)
    latents = Latents(space, ("a", "b"), 8.0)
    task = GeneratorTask(config, generator_of(config), latents)
    rng = np.random.default_rng(0)
    batch = {
        "latent": rng.normal(size=(rows, 2, 8, 8, 4)).astype(np.float32),
        "mask": np.ones(rows, np.float32),
        "label": rng.integers(0, 2, rows).astype(np.int32),
    }
    return task, batch


def _make_tokenizer_task(rows: int) -> tuple[TokenizerTask, dict[str, np.ndarray]]:
    config = _load("fsae:demo", "model", _TOKENIZER)
    with config.unlocked():
        config.loss = ConfigDict({"l1": 1.0})
    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, (rows, 3, 32, 32, 3), np.uint8)
    return TokenizerTask(config), {"video": video, "mask": np.ones(rows, np.float32)}


def _load(name: str, section: str, fields: Mapping[str, Any]) -> ConfigDict:
    config = configs.load(name)
    with config.unlocked():
        config[section].update(fields)
        config.precision.compute = "float32"
        config.optim.warmup_steps = 0
    return config


def _split_devices(count: int) -> dict[str, int]:
    """Sizes of the mesh: as many axes as the number of devices has factors of 2 for."""
    sizes = dict(_ONE)
    for axis in ("fsdp", "context", "tensor"):
        if count % 2 == 0 and count > 1:
            sizes[axis], count = 2, count // 2
    sizes["data"] = count
    return sizes


def _start(task: Any) -> Any:
    """A state whose parameters have moved: new ones let no gradient through layers that are 0."""
    state = task.init(random_key(0, "params"))
    leaves, tree = jax.tree.flatten(state["params"])
    keys = jax.random.split(random_key(1, "params"), len(leaves))
    moved = [
        leaf + 0.05 * jax.random.normal(key, leaf.shape, leaf.dtype)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return {**state, "params": jax.tree.unflatten(tree, moved)}


def _run_step(task: Any, batch: Mapping[str, np.ndarray], mesh: Mesh) -> tuple[float, float]:
    """Loss and gradient norm of the first step."""
    with jax.set_mesh(mesh), jax.default_matmul_precision("highest"):
        where = jax.tree.map(lambda leaf: leaf.sharding, describe_state(task, 0, mesh))
        state = jax.jit(functools.partial(_start, task), out_shardings=where)()
        arrays = to_global({n: batch[n] for n in task.arrays}, batch_sharding(mesh))
        length = task.config.train.steps
        step = jit_train_step(task, state, {}, mesh, length)
        state, report = step(state, arrays, {}, np.float32(length))
    return float(report["loss"]), float(report["grad_norm"])


def _compare_devices(make: Callable) -> Iterator[tuple[str, float, float, float]]:
    devices = jax.devices()
    if len(devices) == 1 or jax.process_count() > 1:
        raise Skipped("one device" if len(devices) == 1 else "several processes")
    sizes = _split_devices(len(devices))
    task, batch = make(4 * sizes["data"] * sizes["fsdp"])
    one = _run_step(task, batch, make_mesh(_ONE, devices[:1]))
    many = _run_step(task, batch, make_mesh(sizes, devices))
    axes = ", ".join(f"{axis} {size}" for axis, size in sizes.items() if size > 1)
    yield f"loss ({axes})", many[0], one[0], 1e-4 * abs(one[0])
    yield "gradient norm", many[1], one[1], 1e-3 * abs(one[1])


@register("generator on all devices")
def check_generator() -> Iterator[tuple[str, float, float, float]]:
    """A training step of a small diffusion transformer on all devices is that on one."""
    yield from _compare_devices(_make_generator_task)


@register("tokenizer on all devices")
def check_tokenizer() -> Iterator[tuple[str, float, float, float]]:
    """A training step of a small tokenizer, frames split by height, is that on one device."""
    yield from _compare_devices(_make_tokenizer_task)
