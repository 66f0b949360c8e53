"""Fréchet distance between two sets of features: the core of FVD (content-debiased FVD).

Which network makes the features is the caller's choice and belongs in the score's name.
"""

from __future__ import annotations

import numpy as np

__all__ = ["frechet_distance", "frechet_from_moments", "moments"]


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

    The root's trace is taken from the symmetric product ``A C_b A`` with ``A = C_a^(1/2)``, which
    has the same eigenvalues and stays real when there are fewer clips than dimensions.
    """
    values, vectors = np.linalg.eigh(cov_a)
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
