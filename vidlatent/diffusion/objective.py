"""Noise and loss of a training step, by the same calls for flow matching and for DDPM."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vidlatent.diffusion.ddpm import Diffusion
from vidlatent.diffusion.flow import (
    HUBER_C0,
    Flow,
    interpolate,
    network_time,
    velocity,
    velocity_loss,
)
from vidlatent.diffusion.vlb import diffusion_loss

__all__ = ["Draw", "add_noise", "draw", "fixed_levels", "sample_loss"]


class Draw(NamedTuple):
    """A noised batch.

    Attributes:
      x: noisy samples ``[B, ..., C]`` float32.
      time: ``[B]`` float32, the network's time input.
      level: ``[B]``, sigma (flow) or the step (DDPM, int32).
      noise: like ``x``.
    """

    x: jax.Array
    time: jax.Array
    level: jax.Array
    noise: jax.Array


def draw(
    schedule: Flow | Diffusion, key: jax.Array, x0: jax.Array, level: jax.Array | None = None
) -> Draw:
    """Noise a batch; a pure function of the key.

    Args:
      x0: clean samples ``[B, ..., C]``, standardised.
      level: ``[B]`` in place of random ones, for evaluation (``fixed_levels``).
    """
    # Two keys, so that given levels leave the noise unchanged.
    of_level, of_noise = jax.random.split(key)
    noise = jax.random.normal(of_noise, x0.shape, jnp.float32)
    batch = x0.shape[0]
    if level is None:
        random = schedule.sample_sigma if isinstance(schedule, Flow) else schedule.sample_times
        level = random(of_level, batch)
    return add_noise(schedule, x0, noise, level)


def add_noise(
    schedule: Flow | Diffusion, x0: jax.Array, noise: jax.Array, level: jax.Array
) -> Draw:
    """The batch ``x0`` with given noise (of its shape) at given levels ``[B]``."""
    if isinstance(schedule, Flow):
        return Draw(interpolate(x0, noise, level), network_time(level), level, noise)
    return Draw(schedule.add_noise(x0, noise, level), schedule.network_time(level), level, noise)


def sample_loss(
    schedule: Flow | Diffusion,
    drawn: Draw,
    output: jax.Array,
    x0: jax.Array,
    huber_reduction: str = "sample",
    huber_c0: float = HUBER_C0,
) -> jax.Array:
    """Loss of each sample, ``[B]`` float32: pseudo-Huber of the velocity, or IDDPM's objective.

    Args:
      drawn: from ``draw``.
      output: the network's, ``[B, ..., C]``, or ``[B, ..., 2 C]`` with a learned variance.
      x0: clean samples ``[B, ..., C]``.
      huber_reduction, huber_c0: of ``flow.velocity_loss``.
    """
    if isinstance(schedule, Flow):
        return velocity_loss(output, velocity(x0, drawn.noise), huber_reduction, huber_c0)
    return diffusion_loss(schedule, output, x0, drawn.noise, drawn.level).loss


def fixed_levels(schedule: Flow | Diffusion, count: int) -> jax.Array:
    """Rising levels ``[count]`` of equal weight in training, for the loss in evaluation."""
    if isinstance(schedule, Flow):
        return jnp.asarray(schedule.fixed_sigmas(count), jnp.float32)
    return jnp.asarray(schedule.fixed_times(count), jnp.int32)
