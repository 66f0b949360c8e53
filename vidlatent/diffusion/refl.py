"""The arithmetic of ReFL (Xu et al. 2023, ImageReward): hinges, and gradients found elsewhere."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["attach_gradient", "hinge"]


def hinge(
    scores: jax.Array, margin: float, mean: float = 0.0, std: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """``relu(margin - (score - mean) / std)``, and its mean over the frames that count.

    A score above its margin has no gradient: what is good enough is left alone.

    Args:
      scores: ``[B, K]``; K is 1 for a score of a whole video.
      margin: of the standardised score; ImageReward's is 2.
      mean, std: by which scores are standardised.

    Returns:
      The loss of each video ``[B]``, and the share of its scores below the margin ``[B]``.
    """
    lacking = margin - (scores - mean) / std
    return jax.nn.relu(lacking).mean(axis=1), (lacking > 0).astype(scores.dtype).mean(axis=1)


@jax.custom_vjp
def attach_gradient(x: Any, value: jax.Array, gradient: Any) -> jax.Array:
    """``value``, a function of ``x`` whose gradient has already been computed.

    Args:
      x: pytree of arrays; value: scalar; gradient: of the value, as ``x``.
    """
    del x, gradient
    return value


def _attach(x, value, gradient):
    return value, gradient


def _pull(gradient, change):
    pulled = jax.tree.map(lambda leaf: (change * leaf).astype(leaf.dtype), gradient)
    return pulled, jnp.zeros_like(change), jax.tree.map(jnp.zeros_like, gradient)


attach_gradient.defvjp(_attach, _pull)
