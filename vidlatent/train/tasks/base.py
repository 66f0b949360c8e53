"""Steps: pure functions ``init``, ``train_step`` and ``eval_step`` for each kind of model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from vidlatent.train.state import State

__all__ = ["SHARE", "Step"]

# Beside a metric that only some steps compute (0 in the others), under its name with this ending:
# 1 where it was computed and 0 where not. Its mean over steps is the sum over that of the shares.
SHARE = "/share"


class Step(NamedTuple):
    """What the loop needs of a model.

    Attributes:
      init: ``key -> state``.
      train_step: ``(state, batch, networks) -> (state, metrics)``; metrics are float32 scalars;
        those with ``SHARE`` at the end of their names tell where others count.
      eval_step: measurements of one batch, as the step's own exam (``train.exams``) calls it.
      load_networks: reads the parameters of frozen networks, by name, that every ``train_step``
        is given; their shapes are ``models.pretrained.network_shapes``.
      arrays: of a batch that ``train_step`` is given; the first, ``[B, T, ...]``, is what it learns
        from.
    """

    init: Callable[[jax.Array], State]
    train_step: Callable[[State, Any, Any], tuple[State, dict[str, jax.Array]]]
    eval_step: Callable[..., dict[str, jax.Array]]
    load_networks: Callable[[], Any]
    arrays: tuple[str, ...] = ("video", "mask")
