"""Losses on pixels."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from vidlatent.diffusion.flow import HUBER_C0
from vidlatent.errors import VidlatentError
from vidlatent.losses.base import Term, mean_over_samples
from vidlatent.registry import did_you_mean

__all__ = [
    "HUBER_REDUCTIONS",
    "PIXEL_REDUCTIONS",
    "l1",
    "l1_term",
    "l2",
    "l2_term",
    "outlier",
    "outlier_term",
    "pixel_scale",
    "pseudo_huber",
    "pseudo_huber_term",
]

PIXEL_REDUCTIONS = ("mean", "sum_at_256")
HUBER_REDUCTIONS = ("norm", "scaled_norm", "elementwise")


def l1(prediction: jax.Array, target: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean absolute error over all values of the real samples (the L1 of FSVideo 2.2.1).

    Args:
      prediction, target: ``[B, ...]``.
      mask: ``[B]``, 0 for padding.

    Returns:
      float32 scalar.
    """
    return mean_over_samples(jnp.abs(_difference(prediction, target)), mask)


def l2(prediction: jax.Array, target: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean squared error over all values of the real samples; arguments as of ``l1``."""
    return mean_over_samples(jnp.square(_difference(prediction, target)), mask)


def pseudo_huber(
    prediction: jax.Array,
    target: jax.Array,
    mask: jax.Array,
    reduction: str = "scaled_norm",
    c_per_root: float = HUBER_C0,
) -> jax.Array:
    """Pseudo-Huber distance ``sqrt(|d|^2 + c^2) - c``, averaged over the real samples.

    Args:
      prediction, target: ``[B, ...]`` of ``n`` values a sample.
      reduction: ``'norm'`` (``|d|`` is the Euclidean norm of a sample's difference and
        ``c = c_per_root * sqrt(n)``), ``'scaled_norm'`` (the same divided by ``sqrt(n)``, which
        does not grow with the clip) or ``'elementwise'`` (each value by itself with
        ``c = c_per_root``, then the mean).
    """
    check_choice("pseudo_huber", reduction, HUBER_REDUCTIONS)
    square = jnp.square(_difference(prediction, target))
    if reduction == "elementwise":
        return mean_over_samples(jnp.sqrt(square + c_per_root**2) - c_per_root, mask)
    root = math.sqrt(math.prod(square.shape[1:]))
    # A mean of squares stays in range for long clips; 'norm' gets its factor sqrt(n) at the end.
    mean = square.mean(axis=tuple(range(1, square.ndim)))
    value = jnp.sqrt(mean + c_per_root**2) - c_per_root
    return mean_over_samples(value * root if reduction == "norm" else value, mask)


def outlier(prediction: jax.Array, mask: jax.Array, radius: float = 3.0) -> jax.Array:
    """How far values lie above ``mean + radius * std`` of their frame and channel, on average.

    One-sided, as in the released Reducio-VAE training: only values that are too bright are
    penalised. The standard deviation is the unbiased one over H and W.

    Args:
      prediction: ``[B, T, H, W, C]``.
    """
    x = prediction.astype(jnp.float32)
    count = x.shape[2] * x.shape[3]
    mean = x.mean(axis=(2, 3), keepdims=True)
    variance = jnp.square(x - mean).sum(axis=(2, 3), keepdims=True) / max(count - 1, 1)
    # The root has an infinite slope at 0, the variance of a frame of one colour: NaN in backward.
    positive = variance > 0
    deviation = jnp.where(positive, jnp.sqrt(jnp.where(positive, variance, 1.0)), 0.0)
    return mean_over_samples(jax.nn.relu(x - mean - radius * deviation), mask)


def pixel_scale(reduction: str, shape: tuple[int, ...], term: str) -> float:
    """Factor from a mean over ``[B, T, H, W, C]`` to ``reduction``.

    ``'sum_at_256'`` is IV-VAE eq. 5: the sum over a frame times ``256^2 / (H W)``, which is
    ``256^2 C`` times the mean at every resolution.
    """
    check_choice(term, reduction, PIXEL_REDUCTIONS)
    return 1.0 if reduction == "mean" else 256.0 * 256.0 * shape[-1]


def l1_term(reduction: str = "mean") -> Term:
    """``loss.l1``."""
    return _pixel_term(l1, "l1", reduction)


def l2_term(reduction: str = "mean") -> Term:
    """``loss.l2``."""
    return _pixel_term(l2, "l2", reduction)


def pseudo_huber_term(reduction: str = "scaled_norm", c_per_root: float = HUBER_C0) -> Term:
    """``loss.pseudo_huber``; the options of ``pseudo_huber``."""
    check_choice("pseudo_huber", reduction, HUBER_REDUCTIONS)

    def value(inputs, params, networks):
        return pseudo_huber(*inputs[:3], reduction=reduction, c_per_root=c_per_root)

    return Term(value)


def outlier_term(radius: float = 3.0) -> Term:
    """``loss.outlier``; Reducio gives it the weight 1."""
    return Term(lambda inputs, params, networks: outlier(inputs.prediction, inputs.mask, radius))


def check_choice(term: str, reduction: str, known: tuple[str, ...]) -> None:
    """Raise unless ``reduction`` is one that the term knows."""
    if reduction not in known:
        hint = did_you_mean(reduction, known)
        raise VidlatentError(f"config.loss.{term}.reduction {reduction!r} does not exist: {hint}")


def _pixel_term(loss, name: str, reduction: str) -> Term:
    # Refused here, before anything is compiled.
    check_choice(name, reduction, PIXEL_REDUCTIONS)

    def value(inputs, params, networks):
        scale = pixel_scale(reduction, inputs.target.shape, name)
        return scale * loss(inputs.prediction, inputs.target, inputs.mask)

    return Term(value)


def _difference(prediction: jax.Array, target: jax.Array) -> jax.Array:
    return prediction.astype(jnp.float32) - target.astype(jnp.float32)
