"""States, saves and comparisons shared by the checkpoint tests and their helper processes."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np

from vidlatent.checkpoint.manager import Checkpointer
from vidlatent.spec import FrameRule, LatentSpec

SPEC = LatentSpec("toy", 8, 4, 8, 8, FrameRule(1, 4))


def make_state(seed, size=64):
    """A small state with the container types that training uses; a pure function of the seed."""
    rng = np.random.default_rng(seed)

    def array(*shape, dtype=jnp.float32):
        return jnp.asarray(rng.standard_normal(shape), dtype)

    params = {"encoder": {"kernel": array(size, 32), "bias": array(32)}, "scale": array()}
    moments = (
        {"mu": jax.tree.map(lambda x: x * 2, params), "count": jnp.int32(seed)},
        (),
    )  # Optax states hold empty tuples.
    return {
        "step": jnp.int32(seed),
        "params": params,
        "opt": moments,
        "ema": jax.tree.map(lambda x: x.astype(jnp.bfloat16), params),
        "extra": {"skipped": jnp.int32(seed + 1)},
    }


def abstract(state, sharding=None):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding or x.sharding), state
    )


def save(checkpointer, step, state=None, **kwargs):
    state = make_state(step) if state is None else state
    kwargs = {"iterator": {"step": step}, "spec": SPEC, "config_hash": "c0ffee", **kwargs}
    return checkpointer.save(step, state, **{"force": True, **kwargs})


def open_run(path, **kwargs):
    return Checkpointer(path, **{"every": 1, "keep_latest": 3, **kwargs})


def same(a, b):
    """Bitwise equality of two trees, structure and dtypes included."""
    if jax.tree.structure(a) != jax.tree.structure(b):
        return False
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(
        x.dtype == y.dtype
        and x.shape == y.shape
        and np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in pairs
    )


def start_helper(script, *args, **kwargs):
    """Start a script of tests/checkpoint in a process that imports the package under test."""
    here = pathlib.Path(__file__).parents[1] / "checkpoint"
    paths = [str(here.parents[1]), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, str(here / script), *map(str, args)]
    return subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, **kwargs)
