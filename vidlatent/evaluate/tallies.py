"""How what was measured in batches becomes the scores of a set of clips.

Every process is shown the rows of all of them, in batches of its own order; the results are those
of the set, whatever the order.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vidlatent.errors import VidlatentError
from vidlatent.metrics import FeatureSums, frechet_of_sums, inception_score

__all__ = ["FrechetTally", "InceptionTally"]

_FEWEST = 2  # rows of a split: a single one always scores 1


class FrechetTally:
    """Streamed moments of the features of originals and of reconstructions."""

    def __init__(self):
        self._sums: tuple[FeatureSums, FeatureSums] | None = None

    def add(self, seen: Any, mask: Any, clips: Any, starts: Any) -> None:
        """Take in ``[2, B, pieces, D]``; rows with ``mask`` ``[B]`` 0 are padding."""
        del clips, starts  # sums have no order
        seen = np.asarray(seen)[:, np.asarray(mask) > 0]
        width = seen.shape[-1]
        if self._sums is None:
            self._sums = FeatureSums(width), FeatureSums(width)
        for sums, features in zip(self._sums, seen, strict=True):
            sums.add(features.reshape(-1, width))

    def result(self, name: str) -> tuple[dict[str, float], dict[str, Any]]:
        """{name: distance}, and how many clips (or pieces of them) and dimensions it is of.

        Raises:
          VidlatentError: nothing was added.
        """
        if self._sums is None:
            raise VidlatentError(f"{name}: no clip was added.")
        originals, restored = self._sums
        # A distance of few clips rounds to either side of zero.
        distance = max(0.0, frechet_of_sums(originals, restored))
        width = len(originals.moments()[0])
        return {name: distance}, {"n": originals.n, "dimensions": width}


class InceptionTally:
    """Class probabilities of originals and reconstructions, kept until all are there.

    Args:
      splits: parts of the clips, each scored by itself; at least 1.
    """

    def __init__(self, splits: int = 10):
        if splits < 1:
            raise VidlatentError(
                f"config.eval.is_splits is {splits}: an inception score needs 1 part or more."
            )
        self._splits = splits
        self._rows: dict[tuple[int, float, int], np.ndarray] = {}

    def add(self, seen: Any, mask: Any, clips: Any, starts: Any) -> None:
        """Take in ``[2, B, pieces, K]`` of windows that begin at ``starts`` of ``clips``."""
        seen = np.asarray(seen)
        for row in np.flatnonzero(mask):
            for piece in range(seen.shape[2]):
                key = (int(clips[row]), float(starts[row]), piece)
                self._rows[key] = seen[:, row, piece]

    def result(self, name: str) -> tuple[dict[str, float], dict[str, Any]]:
        """The score of the reconstructions, its spread over the splits, and the originals' score.

        With fewer than two clips for each split there is one split; the name says how many.

        Raises:
          VidlatentError: nothing was added.
        """
        if not self._rows:
            raise VidlatentError(f"{name}: no clip was added.")
        # The score depends on the order, and the order in which processes deliver on their number.
        rows = np.stack([self._rows[key] for key in sorted(self._rows)])
        splits = self._splits if len(rows) >= _FEWEST * self._splits else 1
        originals, restored = (inception_score(rows[:, i], splits) for i in range(2))
        name = f"{name}_splits{splits}"
        found = {name: restored.mean, f"{name}_of_originals": originals.mean}
        about = {"n": len(rows), "splits": splits, "std_over_splits": restored.std}
        return found, {**about, "std_over_splits_of_originals": originals.std}
