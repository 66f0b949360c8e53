"""Equal blocks with their parameters stacked on the first axis, run by ``lax.scan``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from jax import lax

__all__ = ["run_stacked", "stack_params"]

Params = Any


def stack_params(
    module: nn.Module, name: str, init: Callable[[jax.Array], Params], depth: int
) -> Params:
    """The parameter ``name``: ``depth`` blocks, each initialised independently by ``init(key)``.

    Every leaf is ``[depth, ...]``. Existing parameters are returned unchecked, because fp8 adds
    leaves to them.
    """
    if module.has_variable("params", name):
        return module.get_variable("params", name)
    return module.param(name, lambda key: jax.vmap(init)(jax.random.split(key, depth)))


def run_stacked(
    step: Callable[[Any, Params], Any],
    x: Any,
    layers: Params,
    *,
    remat: bool = True,
    unroll: int = 1,
) -> Any:
    """``step(x, layer)`` for every entry on the first axis of ``layers``.

    Args:
      step: pure; its result replaces ``x``.
      x: state, a pytree.
      layers: pytree with the layers on the first axis of every leaf.
      remat: keep only the states between layers for the backward pass.
      unroll: layers in one iteration of the loop.
    """

    def body(x, own):
        return step(x, own), None

    # XLA cannot merge work of a loop's body with that of the forward pass, so the barrier that
    # keeps recomputation apart is only needed where the loop is unrolled.
    body = jax.checkpoint(body, prevent_cse=unroll > 1) if remat else body
    return lax.scan(body, x, layers, unroll=unroll)[0]
