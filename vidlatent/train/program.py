"""The training step as a program: where its arguments live, and what is handed over.

The loop runs it; ``--mode=plan`` and ``--mode=bench`` compile the very same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from vidlatent.parallel.sharding import batch_sharding, replicated, shardings
from vidlatent.train.state import random_key
from vidlatent.train.tasks.base import Step

__all__ = ["abstract_state", "jit_train_step", "placed"]


def placed(abstract: Any, where: Any) -> Any:
    """ShapeDtypeStructs with shardings: one for all leaves, or a tree of them."""
    if isinstance(where, jax.sharding.Sharding):
        where = jax.tree.map(lambda _: where, abstract)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        where,
    )


def abstract_state(step: Step, seed: int, mesh: Mesh) -> Any:
    """The state that ``step.init`` makes, as ShapeDtypeStructs with their shardings on ``mesh``."""
    abstract = jax.eval_shape(lambda: step.init(random_key(seed, "params")))
    return placed(abstract, shardings(abstract, mesh))


def jit_train_step(step: Step, state: Any, mesh: Mesh) -> Callable[..., Any]:
    """``(state, batch, networks) -> (state, metrics)``, compiled on its first call.

    Args:
      step: of the model that is trained.
      state: arrays or ShapeDtypeStructs that say where the state lives.
      mesh: over which batches are spread.
    """
    where = jax.tree.map(lambda leaf: leaf.sharding, state)
    whole = replicated(mesh)
    return jax.jit(
        step.train_step,
        in_shardings=(where, batch_sharding(mesh), whole),
        out_shardings=(where, whole),
        donate_argnums=0,
    )
