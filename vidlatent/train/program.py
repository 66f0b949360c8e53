"""The training step as a compiled program: shardings of its arguments, and what is donated.

The loop, ``--mode=plan`` and ``--mode=bench`` all compile this same program.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vidlatent.parallel.sharding import batch_sharding, replicated, shardings, with_shardings
from vidlatent.train.optim import give_length
from vidlatent.train.state import random_key
from vidlatent.train.tasks.base import Task

__all__ = ["describe_length", "describe_state", "jit_train_step"]


def describe_state(task: Task, seed: int, mesh: Mesh) -> Any:
    """The state that ``task.init`` makes, as ShapeDtypeStructs with shardings on ``mesh``."""
    # Only traced: a whole state may be larger than the memory of one device.
    abstract = jax.eval_shape(lambda: task.init(random_key(seed, "params")))
    whole = [name for name, player in task.players.items() if player.whole]
    return with_shardings(abstract, shardings(abstract, mesh, whole))


def describe_length(mesh: Mesh) -> jax.ShapeDtypeStruct:
    """The last argument of the step: the run's number of steps."""
    return with_shardings(jax.ShapeDtypeStruct((), jnp.float32), replicated(mesh))


def jit_train_step(task: Task, state: Any, frozen: Any, mesh: Mesh, steps: int) -> Any:
    """``(state, batch, frozen, length) -> (state, metrics)``, compiled on its first call.

    The state is donated: its memory is reused for the new state, so do not read it afterwards.
    ``length`` is ``np.float32(steps)``: an argument, so that a run which goes on for more steps
    takes the program from the cache.

    Args:
      task: what is trained.
      state, frozen: arrays or ShapeDtypeStructs with shardings.
      mesh: mesh over which batches are sharded.
      steps: of the whole run.
    """

    def train_step(state: Any, batch: Any, frozen: Any, length: jax.Array) -> Any:
        with give_length(steps, length):
            return task.train_step(state, batch, frozen)

    where, places = jax.tree.map(lambda leaf: leaf.sharding, (state, frozen))
    return jax.jit(
        train_step,
        # One sharding stands for all arrays of the batch, and one for all metrics.
        in_shardings=(where, batch_sharding(mesh), places, replicated(mesh)),
        out_shardings=(where, replicated(mesh)),
        donate_argnums=0,
    )
