"""The optimizer: AdamW with a learning rate that depends on the training step alone.

The learning rate multiplies the update outside optax's chain and follows ``state['step']``, so a
skipped step or a restored optimizer can never shift the schedule.

``config`` is anything with a section ``optim``: the config of a run for its model, or
``config.discriminator`` for the discriminator.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from vidlatent.errors import VidlatentError
from vidlatent.parallel.paths import match_path, path_name
from vidlatent.registry import did_you_mean
from vidlatent.train.freeze import mark_frozen

__all__ = [
    "find_length",
    "give_length",
    "interpolate_ramp",
    "make_learning_rate",
    "make_optimizer",
]

# (number of steps, the same as an argument of the program that is being traced)
_given: contextvars.ContextVar[tuple[int, jax.Array] | None] = contextvars.ContextVar(
    "given", default=None
)

# Kernels, and the factors of adapted ones.
_DECAYED = ("kernel", "kernel/lora_a", "kernel/lora_b")

# ``config.optim.schedule``: fraction of the peak learning rate as a function of progress, which
# runs from 0 (end of warm-up) to 1 (end of the run).
_SCHEDULES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "constant": lambda progress: jnp.ones_like(progress),
    "cosine": lambda progress: 0.5 * (1.0 + jnp.cos(math.pi * progress)),
    "linear": lambda progress: 1.0 - progress,
}


def make_learning_rate(
    config: ConfigDict, steps: int, stages: int = 1
) -> Callable[[jax.Array], jax.Array]:
    """``step -> learning rate``, float32 scalar.

    Linear warm-up, then the schedule down to ``final_lr_share`` of the peak, times the factor of
    ``config.optim.ramp``.

    Args:
      config: has a section ``optim``.
      steps: number of steps of the run.
      stages: they share the steps evenly, and each has the whole schedule.

    Raises:
      VidlatentError: unknown schedule.
    """
    if config.optim.schedule not in _SCHEDULES:
        hint = did_you_mean(config.optim.schedule, _SCHEDULES)
        raise VidlatentError(f"config.optim.schedule {config.optim.schedule!r} is unknown: {hint}")
    decay = _SCHEDULES[config.optim.schedule]
    warmup, final = config.optim.warmup_steps, config.optim.final_lr_share

    def rate(step: jax.Array) -> jax.Array:
        last = find_length(steps, stages)
        step = jnp.asarray(step if stages == 1 else step % last, jnp.float32)
        progress = jnp.clip((step - warmup) / jnp.maximum(1.0, last - warmup), 0.0, 1.0)
        decayed = final + (1.0 - final) * decay(progress)
        factor = interpolate_ramp(step, config.optim.ramp) if config.optim.ramp else 1.0
        # + 1, because a rate of 0 at step 0 would waste that step.
        warm = jnp.minimum((step + 1) / max(1, warmup), 1.0)
        return config.optim.lr * warm * decayed * factor

    return rate


@contextlib.contextmanager
def give_length(steps: int, argument: jax.Array) -> Iterator[None]:
    """Within: schedules that end at ``steps`` end at ``argument``, float32, which has that value.

    So the number is no constant of the program that is traced within.
    """
    token = _given.set((steps, argument))
    try:
        yield
    finally:
        _given.reset(token)


def find_length(steps: int, stages: int = 1) -> int | jax.Array:
    """Steps of each of ``stages`` equal parts of a run of ``steps``, an integer.

    Within ``give_length`` of that number it comes from the argument: a run that goes on for more
    steps is then the same program, and need not be compiled again.
    """
    given = _given.get()
    if given is None or given[0] != steps:
        return steps // stages
    # Lengths are whole, and float32 holds them up to 16 million.
    return given[1].astype(jnp.int32) // stages


def interpolate_ramp(step: jax.Array | int, points: Sequence[tuple[float, float]]) -> jax.Array:
    """Piecewise linear interpolation of ``(step, factor)`` points, constant outside of them.

    ``((0, 0), (1000, 1))`` rises over the first 1000 steps. Reducio scales the learning rate of its
    discriminator by ``((4999, 0.1), (5999, 1))`` and that of its autoencoder by
    ``((0, 1), (1_000_000, 0.01))``.
    """
    steps, factors = (jnp.asarray(column, jnp.float32) for column in zip(*points, strict=True))
    return jnp.interp(jnp.asarray(step, jnp.float32), steps, factors)


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Clipping by global norm, Adam, decoupled weight decay; the learning rate is applied outside.

    The updates are to be subtracted, after multiplication with the learning rate. Weight decay
    applies only to kernels that ``config.optim.no_decay`` does not match. Parameters that
    ``config.optim.freeze`` matches get no update and no Adam moments.
    """

    def mark_decayed(params):
        def decays(path, _):
            name = path_name(path)
            spared = match_path(config.optim.no_decay, name, "config.optim.no_decay")
            return name.endswith(_DECAYED) and not spared

        return jax.tree_util.tree_map_with_path(decays, params)

    steps = [
        _make_clipping(config.optim.clip_norm, config.optim.clip_after),
        optax.scale_by_adam(b1=config.optim.b1, b2=config.optim.b2, eps=config.optim.eps),
        # After Adam: weight decay must not be divided by its second moments (AdamW).
        optax.add_decayed_weights(config.optim.weight_decay, mask=mark_decayed),
    ]
    # Expressions for the whole model may match no adapter of some of its kernels.
    partly = "lora" in config.optim and config.optim.lora.rank > 0
    if config.optim.lr_factors:
        # Last, so that the factor acts like a learning rate, on the weight decay too.
        steps.append(_scale_by_path(config.optim.lr_factors, partly))
    trained = optax.chain(*steps)
    if not config.optim.freeze:
        return trained

    def label(params):
        frozen = mark_frozen(params, config.optim.freeze, partly)
        return jax.tree.map(lambda stays: "frozen" if stays else "trained", frozen)

    # Not optax.masked, which hands the gradients of the other parameters on as updates.
    return optax.partition({"trained": trained, "frozen": optax.set_to_zero()}, label)


def _make_clipping(norm: float, after: int) -> optax.GradientTransformation:
    """Clipping by global norm that starts after the first ``after`` updates."""
    if not norm:
        return optax.identity()
    clip = optax.clip_by_global_norm(norm)
    if not after:
        return clip

    def update(grads, count, params=None):
        # Clipping has no state of its own, so the count is all that is kept.
        clipped, _ = clip.update(grads, optax.EmptyState(), params)
        late = count >= after
        chosen = jax.tree.map(lambda c, g: jnp.where(late, c, g), clipped, grads)
        return chosen, count + 1

    return optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)


def _scale_by_path(
    factors: Sequence[tuple[str, float]], partly: bool
) -> optax.GradientTransformation:
    """Multiply each update by the factor of the first expression that matches its path, else 1.

    ``partly`` allows expressions that match no path.
    """

    def scale_all(updates, params=None):
        del params
        found = set()

        def scale(path, update):
            name = path_name(path)
            for row, (pattern, factor) in enumerate(factors):
                if match_path(pattern, name, "config.optim.lr_factors"):
                    found.add(row)
                    return float(factor) * update
            return update

        result = jax.tree_util.tree_map_with_path(scale, updates)
        for row, (pattern, _) in enumerate(factors):
            # A misspelt path would silently train at the full rate.
            if row not in found and not partly:
                raise VidlatentError(f"config.optim.lr_factors {pattern!r} matches no parameter.")
        return result

    return optax.stateless(scale_all)
