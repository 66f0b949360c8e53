"""The training state: one plain pytree, one way to update it.

``{step, params, opt, ema, extra}``, and where a recipe has them ``helpers`` (trainable parameters
of loss terms) and ``discriminator``. Random numbers are a function of (seed, stream name, step),
so no generator state exists to be saved.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

__all__ = ["Player", "State", "apply_gradients", "new_player", "new_state", "random_key"]

State = dict[str, Any]


class Player(NamedTuple):
    """What one step does to a part of the state that is trained beside the model.

    Attributes:
      grads: of ``state[name]['params']``.
      optimizer: the one whose moments are ``state[name]['opt']``.
      rate: learning rate now, float32 scalar.
      values: new values of further entries of ``state[name]``, such as batch statistics.
      active: bool scalar; False leaves all of it as it is.
    """

    grads: Any
    optimizer: optax.GradientTransformation
    rate: jax.Array
    values: Mapping[str, Any] = {}
    active: jax.Array | bool = True


def random_key(seed: int, stream: str, step: int | jax.Array = 0) -> jax.Array:
    """Key of a named stream at a step: ``fold_in(fold_in(key(seed), crc32(stream)), step)``."""
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(stream.encode()))
    return jax.random.fold_in(key, step)


def new_state(params: Any, optimizer: optax.GradientTransformation, **players: Any) -> State:
    """State at step 0; the EMA starts as a copy of the parameters.

    ``players`` are further parts that are trained, each made by ``new_player``.
    """
    return {
        "step": jnp.zeros((), jnp.int32),
        "params": params,
        "opt": optimizer.init(params),
        "ema": jax.tree.map(jnp.copy, params),
        # Non-finite steps so far, and how many of them came last in a row.
        "extra": {"bad_steps": jnp.zeros((), jnp.int32), "bad_streak": jnp.zeros((), jnp.int32)},
        **players,
    }


def new_player(params: Any, optimizer: optax.GradientTransformation, **values: Any) -> State:
    """A part of the state with an optimizer of its own, at step 0."""
    return {"params": params, "opt": optimizer.init(params), **values}


def apply_gradients(
    state: State,
    grads: Any,
    loss: jax.Array,
    *,
    optimizer: optax.GradientTransformation,
    rate: Callable[[jax.Array], jax.Array],
    ema_decay: float,
    players: Mapping[str, Player] | None = None,
) -> tuple[State, dict[str, jax.Array]]:
    """One update. A non-finite loss or gradient leaves everything but ``step`` and counters alone.

    The step advances either way: it is the position in the data stream. The EMA's decay is ramped
    as min(decay, (1 + step) / (10 + step)), so that short runs do not average in the random start.
    ``players`` are updated in the same breath: one that is not finite stops all.
    """
    players = players or {}
    norm = optax.global_norm(grads)
    norms = {name: optax.global_norm(player.grads) for name, player in players.items()}
    good = jnp.isfinite(loss) & jnp.isfinite(norm)
    for other in norms.values():
        good &= jnp.isfinite(other)
    lr = rate(state["step"])
    updates, opt = optimizer.update(grads, state["opt"], state["params"])
    params = jax.tree.map(lambda p, u: p - lr * u, state["params"], updates)
    step = state["step"].astype(jnp.float32)
    decay = jnp.minimum(ema_decay, (1.0 + step) / (10.0 + step))
    ema = jax.tree.map(lambda e, p: e + (1.0 - decay) * (p - e), state["ema"], params)

    bad = (~good).astype(jnp.int32)
    new = {
        "step": state["step"] + 1,
        "params": _keep(good, params, state["params"]),
        "opt": _keep(good, opt, state["opt"]),
        "ema": _keep(good, ema, state["ema"]),
        "extra": {
            **state["extra"],
            "bad_steps": state["extra"]["bad_steps"] + bad,
            "bad_streak": (state["extra"]["bad_streak"] + bad) * bad,
        },
        **{name: _advanced(state[name], player, good) for name, player in players.items()},
    }
    report = {
        "grad_norm": norm,
        **{f"{name}_grad_norm": other for name, other in norms.items()},
        "lr": lr,
        "bad_steps": new["extra"]["bad_steps"],
        "bad_streak": new["extra"]["bad_streak"],
    }
    # What took no part in this step stays as it was.
    return {**state, **new}, report


def _keep(good: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)


def _advanced(part: State, player: Player, good: jax.Array) -> State:
    updates, opt = player.optimizer.update(player.grads, part["opt"], part["params"])
    params = jax.tree.map(lambda p, u: p - player.rate * u, part["params"], updates)
    new = {**part, **player.values, "params": params, "opt": opt}
    return _keep(good & player.active, new, part)
