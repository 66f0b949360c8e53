"""The losses of score distillation, by kind: what generator and fake score learn from.

Both kinds compare the clean samples that two networks predict from the generator's sample with
noise: the teacher, which has seen the data, and the fake score, which learns from the generator's
samples. The fake score's trunk is also the discriminator (``losses.trunk``).

``sida``  score identity distillation (Zhou et al. 2024) and its adversarial form (Zhou et al.
          2025): losses are sums over a sample's values, gradients flow through both networks
``dmd``   distribution matching distillation (Yin et al. 2024, DMD2): losses are means, and the
          difference of the two predictions is the gradient
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vidlatent.diffusion.distillation import (
    Network,
    ScoreMatch,
    distribution_matching_loss,
    score_identity_loss,
)
from vidlatent.errors import VidlatentError
from vidlatent.registry import did_you_mean

__all__ = ["KINDS", "ScoreLosses", "find_losses", "tidy_gradients"]

# What an infinite gradient counts as (published).
_HUGE = 1e5


class ScoreLosses(NamedTuple):
    """The losses of one kind, per sample.

    Attributes:
      match: ``(teacher, fake, x, eps, sigma) -> ScoreMatch``.
      generator: ``(match, bce [B], size, adversarial weight) -> [B]``, from the cross-entropy of
        the generator's samples as real ones.
      fake: ``(flow [B], bce [B], size, adversarial weight) -> [B]``, from flow matching on the
        generator's samples (a sum) and the mean cross-entropy of real and generated samples.
    """

    match: Callable[..., ScoreMatch]
    generator: Callable[..., jax.Array]
    fake: Callable[..., jax.Array]


def find_losses(options: Mapping[str, Any]) -> ScoreLosses:
    """The losses of ``config.distill.score``.

    Raises:
      VidlatentError: unknown kind.
    """
    kind = options["kind"]
    if kind not in KINDS:
        raise VidlatentError(f"config.distill.score.kind {kind!r}: {did_you_mean(kind, KINDS)}")
    return KINDS[kind](options)


def _score_identity(options: Mapping[str, Any]) -> ScoreLosses:
    def match(teacher: Network, fake: Network, *sample: jax.Array) -> ScoreMatch:
        return score_identity_loss(
            teacher, fake, *sample, alpha=options["alpha"], weighting=options["weighting"]
        )

    def generator(match, bce, size, adversarial):
        # The cross-entropy is a mean over logits; times the size of a sample it is of the order of
        # the other loss, which is a sum.
        return 0.5 * (
            options["score_weight"] * match.loss + adversarial * match.weight * size * bce
        )

    def fake(flow, bce, size, adversarial):
        return flow + adversarial * size * bce

    return ScoreLosses(match, generator, fake)


def _distribution_matching(options: Mapping[str, Any]) -> ScoreLosses:
    def generator(match, bce, size, adversarial):
        return options["score_weight"] * match.loss / size + adversarial * bce

    def fake(flow, bce, size, adversarial):
        # Published as the sum over real and generated samples, not their mean.
        return flow / size + adversarial * 2.0 * bce

    return ScoreLosses(distribution_matching_loss, generator, fake)


KINDS = {"sida": _score_identity, "dmd": _distribution_matching}


def tidy_gradients(grads: Any, clip: float = 0.0) -> Any:
    """Gradients without NaN (0 in its place) and infinity (1e5), and cut to ``clip`` if not 0."""

    def tidy(leaf):
        leaf = jnp.nan_to_num(leaf, nan=0.0, posinf=_HUGE, neginf=-_HUGE)
        return jnp.clip(leaf, -clip, clip) if clip else leaf

    return jax.tree.map(tidy, grads)
