"""Bradley-Terry with ties (Rao and Kupper 1967): rewards learn from judgements of two videos.

With ``d`` the difference of two rewards and ``k`` the readiness to call a tie, the first is
preferred with probability ``s(d - ln k)``, the second with ``s(-d - ln k)``, and they tie with
``(k^2 - 1)`` times the product of the two (``s`` is the logistic function).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from vidlatent.errors import VidlatentError

__all__ = ["FIRST", "SECOND", "TIE", "UNKNOWN", "count_agreement", "preference_loss"]

# What a judgement may be. 22 is how VideoAlign's files say that nobody judged.
FIRST, TIE, SECOND, UNKNOWN = 1, 0, -1, 22


def preference_loss(
    first: jax.Array, second: jax.Array, judged: jax.Array, ties: float = 5.0
) -> jax.Array:
    """Negative log-likelihood of each judgement; 0 where there is none.

    VideoAlign averages over all entries, those without a judgement among them.

    Args:
      first, second: rewards of the two videos, arrays of one shape, float32 or float64.
      judged: ``FIRST``, ``SECOND``, ``TIE`` or ``UNKNOWN`` of each, same shape.
      ties: ``k``, more than 1; VideoAlign has 5.

    Raises:
      VidlatentError: ``ties`` of 1 or less.
    """
    if ties <= 1:
        raise VidlatentError(f"ties={ties:g}: give more than 1, or two videos could never tie.")
    margin = np.log(ties)
    difference = first - second
    ahead = jax.nn.log_sigmoid(difference - margin)
    behind = jax.nn.log_sigmoid(-difference - margin)
    tied = ahead + behind + np.log(ties**2 - 1)
    likelihood = jnp.select(
        [judged == FIRST, judged == SECOND, judged == TIE], [ahead, behind, tied], 0.0
    )
    return -likelihood


def count_agreement(
    first: jax.Array, second: jax.Array, judged: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Bool arrays: where the larger reward is the preferred video's, and where one is preferred.

    Ties and pairs that nobody judged count as neither; equal rewards never agree.
    """
    decided = (judged == FIRST) | (judged == SECOND)
    return decided & (jnp.sign(first - second) == judged), decided
