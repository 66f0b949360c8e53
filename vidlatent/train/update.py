"""The step of a task that has one loss: its gradient over the batch, then the update."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from vidlatent.train.microbatches import accumulate_gradients
from vidlatent.train.state import PlayerUpdate, State, apply_gradients, random_key

__all__ = ["LossFunction", "make_slice_keys", "update_by_loss"]

# (params, slice of the batch, its number) -> the loss, and what to log beside it; float32 scalars.
LossFunction = Callable[[Any, Any, Any], tuple[jax.Array, dict[str, jax.Array]]]


def update_by_loss(
    state: State,
    batch: Mapping[str, jax.Array],
    compute_loss: LossFunction,
    *,
    config: ConfigDict,
    optimizer: optax.GradientTransformation,
    rate: Callable[[jax.Array], jax.Array],
    players: Mapping[str, PlayerUpdate] | None = None,
) -> tuple[State, dict[str, jax.Array]]:
    """One update of the model by the gradient of a loss.

    Args:
      state, batch: as ``Task.train_step`` has them.
      compute_loss: of one of ``config.optim.accumulate`` equal slices of the batch; the loss, what
        is logged and the gradients are averaged over the slices.
      config: of the run.
      optimizer, rate: of the model.
      players: updates of what is trained beside the model, see ``apply_gradients``.

    Returns:
      The new state, and scalars to log.
    """

    def differentiate(rows, number):
        return jax.value_and_grad(compute_loss, has_aux=True)(state["params"], rows, number)

    (loss, terms), gradients = accumulate_gradients(differentiate, batch, config.optim.accumulate)
    state, report = apply_gradients(
        state,
        gradients,
        loss,
        optimizer=optimizer,
        rate=rate,
        ema_decay=config.optim.ema_decay,
        players=players,
    )
    return state, {"loss": loss, **terms, **report}


def make_slice_keys(
    seed: int, step: int | jax.Array, number: int | jax.Array
) -> Callable[[str], jax.Array]:
    """Random keys of a slice of the batch, by the names of their streams.

    Each depends only on the seed, the stream's name, the step and the slice's number.
    """

    def make_key(stream: str) -> jax.Array:
        return jax.random.fold_in(random_key(seed, stream, step), number)

    return make_key
