"""The optimizer: AdamW whose learning rate is a function of the training step alone.

The learning rate multiplies the update outside optax's chain, so it follows ``state['step']``:
a skipped step or a restored optimizer can never shift the schedule.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vidlatent.errors import VidlatentError
from vidlatent.losses.schedule import ramp
from vidlatent.parallel.sharding import path_name
from vidlatent.registry import did_you_mean
from vidlatent.train.freeze import frozen_paths

__all__ = ["learning_rate", "make_optimizer"]

_SHAPES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "constant": lambda progress: jnp.ones_like(progress),
    "cosine": lambda progress: 0.5 * (1.0 + jnp.cos(math.pi * progress)),
    "linear": lambda progress: 1.0 - progress,
}


def learning_rate(optim: Mapping[str, Any], steps: int) -> Callable[[jax.Array], jax.Array]:
    """``step -> learning rate``: linear warm-up, then the schedule down to ``final_lr_share``."""
    if optim["schedule"] not in _SHAPES:
        hint = did_you_mean(optim["schedule"], _SHAPES)
        raise VidlatentError(f"config.optim.schedule {optim['schedule']!r} is unknown: {hint}")
    shape = _SHAPES[optim["schedule"]]
    warmup, final = optim["warmup_steps"], optim["final_lr_share"]

    def rate(step: jax.Array) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        progress = jnp.clip((step - warmup) / max(1, steps - warmup), 0.0, 1.0)
        decayed = final + (1.0 - final) * shape(progress)
        factor = ramp(step, optim["ramp"]) if optim["ramp"] else 1.0
        return optim["lr"] * jnp.minimum((step + 1) / max(1, warmup), 1.0) * decayed * factor

    return rate


def make_optimizer(optim: Mapping[str, Any]) -> optax.GradientTransformation:
    """Clipping by global norm, Adam moments, decoupled weight decay; no learning rate.

    Weight decay applies to kernels only, but for those of ``no_decay``. Updates come out as the
    direction to subtract. Parameters that ``frozen`` matches get none, and no moments are kept for
    them.
    """

    no_decay = _expression("no_decay", optim["no_decay"])

    def decayed(params):
        def match(path, _):
            name = path_name(path)
            return name.endswith("kernel") and not (no_decay and no_decay.match(name))

        return jax.tree_util.tree_map_with_path(match, params)

    steps = [
        _clipping(optim["clip_norm"], optim["clip_after"]),
        optax.scale_by_adam(b1=optim["b1"], b2=optim["b2"], eps=optim["eps"]),
        optax.add_decayed_weights(optim["weight_decay"], mask=decayed),
    ]
    if optim["lr_factors"]:
        steps.append(_scaling(optim["lr_factors"]))
    trained = optax.chain(*steps)
    if not optim["freeze"]:
        return trained

    def labels(params):
        frozen = frozen_paths(params, optim["freeze"])
        return jax.tree.map(lambda stays: "frozen" if stays else "trained", frozen)

    return optax.partition({"trained": trained, "frozen": optax.set_to_zero()}, labels)


def _expression(key: str, pattern: str) -> re.Pattern[str] | None:
    try:
        return re.compile(pattern) if pattern else None
    except re.error as error:
        raise VidlatentError(
            f"config.optim.{key} {pattern!r} is not an expression: {error}."
        ) from error


def _clipping(norm: float, after: int) -> optax.GradientTransformation:
    """Clipping by global norm, from the update after ``after`` others on."""
    if not norm:
        return optax.identity()
    clip = optax.clip_by_global_norm(norm)
    if not after:
        return clip

    def update(grads, count, params=None):
        clipped, _ = clip.update(grads, optax.EmptyState(), params)
        late = count >= after
        chosen = jax.tree.map(lambda c, g: jnp.where(late, c, g), clipped, grads)
        return chosen, count + 1

    return optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)


def _scaling(factors: Any) -> optax.GradientTransformation:
    """Updates times the factor of the first expression that matches their path, or 1."""
    rows = [(_expression("lr_factors", pattern), float(factor)) for pattern, factor in factors]

    def scaled(updates, params=None):
        del params
        found = set()

        def scale(path, update):
            name = path_name(path)
            for row, (expression, factor) in enumerate(rows):
                if expression is not None and expression.match(name):
                    found.add(row)
                    return factor * update
            return update

        result = jax.tree_util.tree_map_with_path(scale, updates)
        for row, (pattern, _) in enumerate(factors):
            if row not in found:
                raise VidlatentError(f"config.optim.lr_factors {pattern!r} matches no parameter.")
        return result

    return optax.stateless(scaled)
