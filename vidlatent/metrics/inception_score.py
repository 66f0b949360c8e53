"""Inception score of a set of clips, from a classifier's probabilities."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from vidlatent.errors import VidlatentError

__all__ = ["InceptionScore", "inception_score"]


class InceptionScore(NamedTuple):
    """Mean and (population) standard deviation over ``splits`` parts of ``n`` clips."""

    mean: float
    std: float
    n: int
    splits: int


def inception_score(probabilities: Any, splits: int = 10, seed: int | None = 42) -> InceptionScore:
    """``exp(mean KL(p(y|x) || p(y)))`` of each part, ``p(y)`` being the part's own mean.

    The rows are shuffled by NumPy's legacy generator, as the video scores of StyleGAN-V and after
    are. The score depends on their order, so several processes bring them into one order first.

    Args:
      probabilities: ``[n, K]``, rows summing to 1.
      splits: parts of nearly equal size.
      seed: of the shuffle; None to keep the order.

    Raises:
      VidlatentError: fewer rows than parts, or rows that are no distributions.
    """
    rows = np.array(probabilities, np.float64)
    if rows.ndim != 2 or not 1 <= splits <= len(rows):
        raise VidlatentError(
            f"an inception score in {splits} parts needs [n, K] probabilities of {splits} clips "
            f"or more, not an array {rows.shape}."
        )
    if not (rows >= 0).all() or np.abs(rows.sum(axis=1) - 1).max() > 1e-3:
        raise VidlatentError("an inception score takes probabilities: rows of sum 1, none below 0.")
    if seed is not None:
        np.random.RandomState(seed).shuffle(rows)
    scores = []
    for part in range(splits):
        p = rows[part * len(rows) // splits : (part + 1) * len(rows) // splits]
        q = np.broadcast_to(p.mean(axis=0), p.shape)
        # 0 log 0 = 0: a class that a clip excludes adds nothing.
        terms = np.where(p > 0, p * np.log(np.where(p > 0, p / np.where(q > 0, q, 1), 1)), 0)
        scores.append(np.exp(terms.sum(axis=1).mean()))
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)), len(rows), splits)
