"""The optimizer: AdamW whose learning rate is a function of the training step alone.

The learning rate multiplies the update outside optax's chain, so it follows ``state['step']``:
a skipped step or a restored optimizer can never shift the schedule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vidlatent.dist.rules import path_name
from vidlatent.losses.schedule import ramp
from vidlatent.models.freeze import frozen_paths
from vidlatent.registry import did_you_mean
from vidlatent.typing import VidlatentError

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

    Weight decay applies to kernels only. Updates come out as the direction to subtract. Parameters
    that ``frozen`` matches get none, and no moments are kept for them.
    """

    def kernels(params):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: path_name(path).endswith("kernel"), params
        )

    trained = optax.chain(
        optax.clip_by_global_norm(optim["clip_norm"]) if optim["clip_norm"] else optax.identity(),
        optax.scale_by_adam(b1=optim["b1"], b2=optim["b2"], eps=optim["eps"]),
        optax.add_decayed_weights(optim["weight_decay"], mask=kernels),
    )
    if not optim["frozen"]:
        return trained

    def labels(params):
        frozen = frozen_paths(params, optim["frozen"])
        return jax.tree.map(lambda stays: "frozen" if stays else "trained", frozen)

    return optax.partition({"trained": trained, "frozen": optax.set_to_zero()}, labels)
