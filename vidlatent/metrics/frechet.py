"""Fréchet distance between two sets of features, as content-debiased FVD computes it.

``fvd.py`` makes it a metric: which network the features are from belongs in the score's name.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vidlatent.errors import VidlatentError

__all__ = ["FeatureSums", "frechet_distance", "frechet_from_moments", "frechet_of_sums", "moments"]


class FeatureSums:
    """Sums of features and of their outer products, which give mean and biased covariance.

    Features may be added in pieces of any size. The sums are float64. Two objects that saw
    different clips merge into what one would hold that saw them all.

    Attributes:
      n: number of clips added.
    """

    def __init__(self, width: int):
        self.n = 0
        self._total = np.zeros(width)
        self._products = np.zeros((width, width))

    def add(self, features: Any, mask: Any = None) -> None:
        """Add ``[B, D]``; rows where ``mask`` ``[B]`` is 0 are padding and do not count.

        Raises:
          VidlatentError: features of another width, or not finite.
        """
        # float64: the covariance is a small difference of large sums.
        rows = np.asarray(features, np.float64)
        if mask is not None:
            rows = rows[np.asarray(mask) > 0]
        if rows.ndim != 2 or rows.shape[1] != len(self._total):
            raise VidlatentError(
                f"features [B, {len(self._total)}] are summed, not an array {rows.shape}."
            )
        if not np.isfinite(rows).all():
            raise VidlatentError(
                f"features of clips {self.n} to {self.n + len(rows) - 1} are not finite: a Fréchet "
                "distance of them has no meaning."
            )
        self.n += len(rows)
        self._total += rows.sum(axis=0)
        self._products += rows.T @ rows

    def merge(self, other: FeatureSums) -> None:
        """Add everything that ``other`` holds."""
        self.n += other.n
        self._total += other._total
        self._products += other._products

    def pack(self) -> np.ndarray:
        """Everything as one float64 vector, to be sent to another process or written."""
        return np.concatenate([[self.n], self._total, self._products.ravel()])

    @classmethod
    def unpack(cls, vector: np.ndarray) -> FeatureSums:
        """Inverse of ``pack``."""
        # 1 + D + D^2 numbers, solved for D and rounded.
        width = int((np.sqrt(4 * len(vector) - 3) - 1) / 2 + 0.5)
        sums = cls(width)
        sums.n = int(vector[0])
        sums._total += vector[1 : 1 + width]
        sums._products += vector[1 + width :].reshape(width, width)
        return sums

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean ``[D]`` and covariance ``[D, D]``, divided by n (biased).

        Raises:
          VidlatentError: nothing was added.
        """
        if not self.n:
            raise VidlatentError("no clip was added: a Fréchet distance needs some on both sides.")
        mean = self._total / self.n
        return mean, self._products / self.n - np.outer(mean, mean)


def frechet_of_sums(a: FeatureSums, b: FeatureSums) -> float:
    """Fréchet distance of two streamed sets of features."""
    return frechet_from_moments(*a.moments(), *b.moments())


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean ``[D]`` and biased covariance ``[D, D]`` (divided by n) of ``[n, D]``, float64."""
    features = np.asarray(features, np.float64)
    mean = features.mean(axis=0)
    centred = features - mean
    return mean, centred.T @ centred / len(features)


def frechet_from_moments(
    mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray
) -> float:
    """``|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))``.

    The trace of the root is computed from the symmetric product ``A C_b A`` with ``A = C_a^(1/2)``,
    which has the same eigenvalues and stays real with fewer clips than dimensions.
    """
    values, vectors = np.linalg.eigh(cov_a)
    # With fewer clips than dimensions many eigenvalues are 0, which rounding may make negative.
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    shared = np.linalg.eigvalsh(root @ cov_b @ root)
    cross = np.sqrt(np.maximum(shared, 0)).sum()
    gap = np.sum((mean_a - mean_b) ** 2)
    return float(gap + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Distance of two feature sets ``[n, D]`` and ``[m, D]``.

    With fewer samples than dimensions the value is dominated by the sample size: compare only
    within one n.
    """
    return frechet_from_moments(*moments(a), *moments(b))
