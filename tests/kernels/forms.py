"""Compares the forms of a kernel with its reference: values and gradients, in any dtype."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import tpu as pltpu

from vidlatent.parallel.mesh import AXES, make_mesh

# Relative L2 distance to the float32 reference: values, gradients. bfloat16 rounds to 2^-9: each
# value is off by at most 0.2 %, a gradient passes through twice as many roundings.
TOLERANCE = {"float32": (1e-5, 1e-5), "bfloat16": (5e-3, 1e-2)}
# A TPU's memories with NaN where nothing has been written; reads that leave an array raise.
STRICT = pltpu.InterpretParams(uninitialized_memory="nan", out_of_bounds_reads="raise")


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def devices(**sizes: int) -> jax.sharding.Mesh:
    """A mesh of fake devices; axes that are not named have one."""
    sizes = {axis: sizes.get(axis, 1) for axis in AXES}
    return make_mesh(sizes, jax.devices()[: math.prod(sizes.values())])


def check(
    form: Callable[..., jax.Array],
    reference: Callable[..., jax.Array],
    inputs: tuple[np.ndarray, ...],
    dtype: str = "float32",
    half: int | None = None,
    gradients: bool = True,
) -> None:
    """``form`` in ``dtype`` against ``reference`` in float32, on the same rounded inputs.

    Args:
      half: how many leading inputs take ``dtype`` (the others stay float32); None for all.
      gradients: compare those of every input, too.
    """
    half = len(inputs) if half is None else half
    rounded = [jnp.asarray(a, dtype if i < half else "float32") for i, a in enumerate(inputs)]
    exact = [a.astype(jnp.float32) for a in rounded]

    def both(function: Callable) -> Callable:
        def run(*arrays: jax.Array) -> tuple[Any, ...]:
            if not gradients:
                return (function(*arrays),)
            value, back = jax.vjp(function, *arrays)
            weights = jnp.cos(jnp.arange(value.size, dtype=jnp.float32)).reshape(value.shape)
            return (value, *back(weights.astype(value.dtype)))

        return jax.jit(run)

    got, want = both(form)(*rounded), both(reference)(*exact)
    value, gradient = TOLERANCE[dtype]
    for number, (a, b) in enumerate(zip(got, want, strict=True)):
        assert a.shape == b.shape, f"output {number}"
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.isfinite(a).all(), f"output {number}"
        distance = np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-12)
        assert distance < (gradient if number else value), (number, distance)
