"""The training state: one plain pytree, one way to update it.

``{step, params, opt, ema, extra}``. Random numbers are a function of (seed, stream name, step), so
no generator state exists to be saved.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

__all__ = ["State", "apply_gradients", "new_state", "random_key"]

State = dict[str, Any]


def random_key(seed: int, stream: str, step: int | jax.Array = 0) -> jax.Array:
    """Key of a named stream at a step: ``fold_in(fold_in(key(seed), crc32(stream)), step)``."""
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(stream.encode()))
    return jax.random.fold_in(key, step)


def new_state(params: Any, optimizer: optax.GradientTransformation) -> State:
    """State at step 0; the EMA starts as a copy of the parameters."""
    return {
        "step": jnp.zeros((), jnp.int32),
        "params": params,
        "opt": optimizer.init(params),
        "ema": jax.tree.map(jnp.copy, params),
        # Non-finite steps so far, and how many of them came last in a row.
        "extra": {"bad_steps": jnp.zeros((), jnp.int32), "bad_streak": jnp.zeros((), jnp.int32)},
    }


def apply_gradients(
    state: State,
    grads: Any,
    loss: jax.Array,
    *,
    optimizer: optax.GradientTransformation,
    rate: Callable[[jax.Array], jax.Array],
    ema_decay: float,
) -> tuple[State, dict[str, jax.Array]]:
    """One update. A non-finite loss or gradient leaves everything but ``step`` and counters alone.

    The step advances either way: it is the position in the data stream. The EMA's decay is ramped
    as min(decay, (1 + step) / (10 + step)), so that short runs do not average in the random start.
    """
    norm = optax.global_norm(grads)
    good = jnp.isfinite(loss) & jnp.isfinite(norm)
    lr = rate(state["step"])
    updates, opt = optimizer.update(grads, state["opt"], state["params"])
    params = jax.tree.map(lambda p, u: p - lr * u, state["params"], updates)
    step = state["step"].astype(jnp.float32)
    decay = jnp.minimum(ema_decay, (1.0 + step) / (10.0 + step))
    ema = jax.tree.map(lambda e, p: e + (1.0 - decay) * (p - e), state["ema"], params)

    def keep(new, old):
        return jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)

    bad = (~good).astype(jnp.int32)
    new = {
        "step": state["step"] + 1,
        "params": keep(params, state["params"]),
        "opt": keep(opt, state["opt"]),
        "ema": keep(ema, state["ema"]),
        "extra": {
            **state["extra"],
            "bad_steps": state["extra"]["bad_steps"] + bad,
            "bad_streak": (state["extra"]["bad_streak"] + bad) * bad,
        },
    }
    report = {
        "grad_norm": norm,
        "lr": lr,
        "bad_steps": new["extra"]["bad_steps"],
        "bad_streak": new["extra"]["bad_streak"],
    }
    return new, report
