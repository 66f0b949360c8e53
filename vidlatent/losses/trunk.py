"""An adversarial loss on a generator's own trunk, without parameters of its own.

Adversarial score identity distillation (Zhou et al. 2025) lets the fake score network judge: the
tokens that its head reads are averaged, and each average is a logit, above 0 for real samples.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vidlatent.errors import VidlatentError
from vidlatent.registry import did_you_mean

__all__ = ["LIMIT", "POOLINGS", "binary_cross_entropy", "pool_logits"]

# Over what the tokens are averaged: the logits are one a channel, or one a token.
POOLINGS = ("tokens", "channels")
LIMIT = 10.0  # of a logit's size (published)


def pool_logits(tokens: jax.Array, pooling: str = "tokens") -> jax.Array:
    """Logits from the tokens ``[B, N, D]`` that a head reads, float32.

    Args:
      tokens: ``[B, N, D]``.
      pooling: ``'tokens'``: means over tokens, ``[B, D]`` (published for transformers); or
        ``'channels'``: means over channels, ``[B, N]`` (published for U-Nets).

    Raises:
      VidlatentError: unknown pooling.
    """
    if pooling not in POOLINGS:
        hint = did_you_mean(pooling, POOLINGS)
        raise VidlatentError(f"unknown pooling of the trunk {pooling!r}: {hint}")
    return tokens.astype(jnp.float32).mean(axis=1 + POOLINGS.index(pooling))


def binary_cross_entropy(logits: jax.Array, real: bool) -> jax.Array:
    """``-log p`` of the right answer, averaged over a sample's logits: ``[B, K] -> [B]``.

    Logits count as at most 10 from 0; beyond that there is no gradient. At 0 the loss is ln 2.
    """
    held = jnp.clip(logits, -LIMIT, LIMIT)
    return jax.nn.softplus(-held if real else held).mean(axis=-1)
