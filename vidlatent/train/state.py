"""The training state, a plain pytree, and the one function that updates it.

The state is ``{step, params, opt, ema, extra}`` and any number of players. A player is a part that
is trained next to the model, such as a discriminator; it is stored under its own name with its own
``params`` and ``opt``. Neither this module nor the loop knows players by name.

Random keys are a function of (seed, stream name, step), so checkpoints hold no random state.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

__all__ = [
    "PlayerUpdate",
    "State",
    "apply_gradients",
    "apply_player_gradients",
    "init_player",
    "init_state",
    "random_key",
]

State = dict[str, Any]


class PlayerUpdate(NamedTuple):
    """The update of one player in one step.

    Attributes:
      grads: gradient with respect to ``state[name]['params']``.
      optimizer: the optimizer whose moments are ``state[name]['opt']``.
      rate: learning rate at this step, float32 scalar.
      values: new values of other entries of ``state[name]``, such as batch statistics.
      active: bool scalar; False leaves the player unchanged.
    """

    grads: Any
    optimizer: optax.GradientTransformation
    rate: jax.Array
    values: Mapping[str, Any] = {}
    active: jax.Array | bool = True


def random_key(seed: int, stream: str, step: int | jax.Array = 0) -> jax.Array:
    """Key of a named stream at a step: ``fold_in(fold_in(key(seed), crc32(stream)), step)``."""
    # crc32, because Python salts its own hash of a string: a resumed run would draw anew.
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(stream.encode()))
    return jax.random.fold_in(key, step)


def init_state(params: Any, optimizer: optax.GradientTransformation, **players: Any) -> State:
    """The state at step 0; the EMA starts as a copy of the parameters.

    Args:
      params: the model's parameters.
      optimizer: the model's optimizer.
      players: by name, each made by ``init_player``.
    """
    return {
        "step": jnp.zeros((), jnp.int32),
        "params": params,
        "opt": optimizer.init(params),
        # A copy, because the step donates both, and one buffer cannot be donated twice.
        "ema": jax.tree.map(jnp.copy, params),
        # Number of non-finite steps so far, and length of the current run of them.
        "extra": {"bad_steps": jnp.zeros((), jnp.int32), "bad_streak": jnp.zeros((), jnp.int32)},
        **players,
    }


def init_player(params: Any, optimizer: optax.GradientTransformation, **values: Any) -> State:
    """The state of a player at step 0; ``values`` are further entries, such as statistics."""
    return {"params": params, "opt": optimizer.init(params), **values}


def apply_gradients(
    state: State,
    grads: Any,
    loss: jax.Array,
    *,
    optimizer: optax.GradientTransformation,
    rate: Callable[[jax.Array], jax.Array],
    ema_decay: float,
    players: Mapping[str, PlayerUpdate] | None = None,
) -> tuple[State, dict[str, jax.Array]]:
    """Apply one update of the model, its EMA and its players.

    If the loss or any gradient, a player's included, is not finite, the whole update is skipped and
    only ``step`` and the counters change. ``step`` advances because it is also the position in the
    data. The EMA decay is min(ema_decay, (1 + step) / (10 + step)), so that the random start does
    not weigh on the average of a short run.

    Returns:
      The new state, and scalars to log.
    """
    players = players or {}
    norm = optax.global_norm(grads)
    norms = {name: optax.global_norm(player.grads) for name, player in players.items()}
    # One value that is not finite makes the whole norm so: this checks every gradient.
    good = jnp.isfinite(loss) & jnp.isfinite(norm)
    for other in norms.values():
        good &= jnp.isfinite(other)
    lr = rate(state["step"])
    updates, opt = optimizer.update(grads, state["opt"], state["params"])
    params = jax.tree.map(lambda p, u: p - lr * u, state["params"], updates)
    step = state["step"].astype(jnp.float32)
    decay = jnp.minimum(ema_decay, (1.0 + step) / (10.0 + step))
    ema = jax.tree.map(lambda e, p: e + (1.0 - decay) * (p - e), state["ema"], params)

    new = {
        "params": _select(good, params, state["params"]),
        "opt": _select(good, opt, state["opt"]),
        "ema": _select(good, ema, state["ema"]),
        **{name: _update_player(state[name], player, good) for name, player in players.items()},
    }
    # Players without an update in this step keep their state.
    state, counts = _count_step({**state, **new}, good)
    report = {
        "grad_norm": norm,
        **{f"{name}_grad_norm": other for name, other in norms.items()},
        "lr": lr,
        **counts,
    }
    return state, report


def apply_player_gradients(
    state: State, name: str, player: PlayerUpdate, loss: jax.Array
) -> tuple[State, dict[str, jax.Array]]:
    """Apply one update of a player in a step in which the model rests, bit for bit.

    As ``apply_gradients``: skipped if the loss or the gradient is not finite. The report's ``lr``
    and ``grad_norm`` are the player's.
    """
    norm = optax.global_norm(player.grads)
    good = jnp.isfinite(loss) & jnp.isfinite(norm)
    new = {name: _update_player(state[name], player, good)}
    state, counts = _count_step({**state, **new}, good)
    return state, {"grad_norm": norm, "lr": jnp.asarray(player.rate, jnp.float32), **counts}


def _count_step(state: State, good: jax.Array) -> tuple[State, dict[str, jax.Array]]:
    """The state after one more step, and its counts of steps that were not finite."""
    bad = (~good).astype(jnp.int32)
    counts = {
        "bad_steps": state["extra"]["bad_steps"] + bad,
        # The product with 0 starts the count anew after a good step.
        "bad_streak": (state["extra"]["bad_streak"] + bad) * bad,
    }
    return {**state, "step": state["step"] + 1, "extra": {**state["extra"], **counts}}, counts


def _select(good: jax.Array, new: Any, old: Any) -> Any:
    # A choice and not a product with 0, since 0 * NaN is NaN.
    return jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)


def _update_player(part: State, player: PlayerUpdate, good: jax.Array) -> State:
    updates, opt = player.optimizer.update(player.grads, part["opt"], part["params"])
    params = jax.tree.map(lambda p, u: p - player.rate * u, part["params"], updates)
    new = {**part, **player.values, "params": params, "opt": opt}
    return _select(good & player.active, new, part)
