"""What a network predicts, and how the clean sample follows from it.

A noisy sample is ``x = alpha x0 + sigma eps``: ``alpha = 1 - sigma`` on the flow-matching path
(FSVideo eq. 10), ``alpha^2 + sigma^2 = 1`` in DDPM. Everything here is linear in ``x`` and in the
network's output.
"""

from __future__ import annotations

from typing import Any

from vidlatent.errors import VidlatentError
from vidlatent.registry import did_you_mean

__all__ = ["PREDICTIONS", "check_prediction", "data_weights", "per_sample", "target_weights"]

PREDICTIONS = ("velocity", "epsilon", "x0", "v")


def check_prediction(prediction: str) -> None:
    """Raise unless the name is one of ``PREDICTIONS``."""
    if prediction not in PREDICTIONS:
        hint = did_you_mean(prediction, PREDICTIONS)
        raise VidlatentError(f"unknown prediction {prediction!r}: {hint}")


def data_weights(prediction: str, alpha: Any, sigma: Any) -> tuple[Any, Any]:
    """``(a, b)`` with ``x0 = a x + b output``.

    Args:
      prediction: ``'velocity'`` (``eps - x0``; only where ``alpha + sigma = 1``), ``'epsilon'``,
        ``'x0'`` or ``'v'`` (``alpha eps - sigma x0``; only where ``alpha^2 + sigma^2 = 1``).
      alpha, sigma: numbers or arrays of one shape, NumPy's or JAX's.
    """
    check_prediction(prediction)
    if prediction == "velocity":
        # 0 * sigma lends the constant sigma's shape and kind of array.
        return 1.0 + 0.0 * sigma, -sigma
    if prediction == "epsilon":
        return 1.0 / alpha, -sigma / alpha
    if prediction == "x0":
        return 0.0 * sigma, 1.0 + 0.0 * sigma
    return alpha, -sigma


def target_weights(prediction: str, alpha: Any, sigma: Any) -> tuple[Any, Any]:
    """``(a, b)`` with ``target = a x0 + b eps``; names as in ``data_weights``."""
    check_prediction(prediction)
    zero = 0.0 * sigma
    if prediction == "velocity":
        return zero - 1.0, zero + 1.0
    if prediction == "epsilon":
        return zero, zero + 1.0
    if prediction == "x0":
        return zero + 1.0, zero
    return -sigma, alpha


def per_sample(values: Any, like: Any) -> Any:
    """``[B]`` reshaped to ``[B, 1, ...]`` to multiply ``like`` ``[B, ...]``; a scalar stays."""
    if values.ndim == 0:
        return values
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))
