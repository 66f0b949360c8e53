"""Factors that change with the step: of a weight (an adversarial loss that fades in) or a rate."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

__all__ = ["ramp"]


def ramp(step: jax.Array | int, points: Sequence[tuple[float, float]]) -> jax.Array:
    """Straight lines between ``(step, factor)`` points, constant outside of them.

    ``((0, 0), (1000, 1))`` grows over 1000 steps. Reducio's discriminator learns at ``((4999, 0.1),
    (5999, 1))`` of its rate and its autoencoder at ``((0, 1), (1_000_000, 0.01))``.
    """
    steps, factors = (jnp.asarray(column, jnp.float32) for column in zip(*points, strict=True))
    return jnp.interp(jnp.asarray(step, jnp.float32), steps, factors)
