"""The arithmetic of GRPO: advantages within groups, the clipped loss, and distances of policies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["KL_KINDS", "clipped_loss", "group_advantages", "mean_distance", "ratio_distance"]

# log_ratio needs no reference network; the others compare with a frozen one.
KL_KINDS = ("log_ratio", "published", "exact")


def group_advantages(
    rewards: jax.Array,
    weights: Sequence[float],
    *,
    unbiased: bool = True,
    eps: float = 1e-8,
) -> tuple[jax.Array, jax.Array]:
    """How much better each sample is than its group: ``(r - mean) / (std + eps)`` per reward.

    Rewards are standardised one by one, so that weights count and not scales, and then summed. A
    group of equal rewards has advantages of exactly 0.

    Args:
      rewards: ``[P, G, R]``: R rewards of G samples of each of P prompts.
      weights: of the rewards; divided by the sum of their sizes.
      unbiased: the deviation with ``G - 1``, as MixGRPO's; False: with ``G`` (Flow-GRPO, which adds
        ``eps`` 1e-4).
      eps: added to the deviation.

    Returns:
      Advantages ``[P, G]``, and those of each reward ``[P, G, R]``.
    """
    # From the first of the group on, because equal numbers need not have an exact mean.
    apart = rewards - rewards[:, :1]
    apart = apart - apart.mean(axis=1, keepdims=True)
    degrees = rewards.shape[1] - int(unbiased)
    std = jnp.sqrt(jnp.square(apart).sum(axis=1, keepdims=True) / degrees)
    each = apart / (std + eps)
    share = jnp.asarray(weights, each.dtype)
    return (each * (share / jnp.abs(share).sum())).sum(axis=-1), each


def clipped_loss(log_ratio: jax.Array, advantage: jax.Array, clip: float, most: float) -> jax.Array:
    """``max(-A r, -A clip(r, 1 - clip, 1 + clip))``, ``r = exp(log_ratio)``, element by element.

    Args:
      log_ratio: of the likelihoods now and when the sample was drawn, any shape.
      advantage: of that shape; its size is cut to ``most`` first.
    """
    advantage = jnp.clip(advantage, -most, most)
    ratio = jnp.exp(log_ratio)
    return jnp.maximum(-advantage * ratio, -advantage * jnp.clip(ratio, 1.0 - clip, 1.0 + clip))


def ratio_distance(log_ratio: jax.Array) -> jax.Array:
    """MixGRPO's ``0.5 (log p_new - log p_old)^2``, element by element."""
    return 0.5 * jnp.square(log_ratio)


def mean_distance(mean: jax.Array, reference: jax.Array, scale: Any) -> jax.Array:
    """``mean((mean - reference)^2) / (2 scale^2)`` of each sample: ``[B, ...] -> [B]``.

    With a step's ``std`` as scale this is the KL divergence of two Gaussians (per element); with
    its ``spread`` it is Flow-GRPO's published term.
    """
    axes = tuple(range(1, mean.ndim))
    return jnp.square(mean - reference).mean(axis=axes) / (2.0 * scale**2)
