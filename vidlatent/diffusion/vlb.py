"""IDDPM's objective: squared error of the prediction and the variational bound for its variance.

Values are per sample, ``[B]``; those of the bound are in bits per dimension.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vidlatent.diffusion.ddpm import Diffusion

__all__ = ["DiffusionLoss", "diffusion_loss", "gaussian_kl", "log_likelihood_of_bins", "vb_term"]


class DiffusionLoss(NamedTuple):
    """Per sample, ``[B]`` float32.

    Attributes:
      loss: what is minimised, ``mse + vb``.
      mse: mean squared error of the prediction.
      vb: the bound's term, 0 for a fixed variance.
    """

    loss: jax.Array
    mse: jax.Array
    vb: jax.Array


def diffusion_loss(
    diffusion: Diffusion,
    output: jax.Array,
    x0: jax.Array,
    noise: jax.Array,
    t: jax.Array,
    vb_weight: float = 1.0,
) -> DiffusionLoss:
    """The hybrid objective (IDDPM eq. 16) of a network's output at ``diffusion.add_noise(...)``.

    The bound trains only the variance: the predicted mean is a constant in it (IDDPM 3.1).

    Args:
      output: ``[B, ..., 2C]`` with a learned variance, else ``[B, ..., C]``.
      x0, noise: ``[B, ..., C]``.
      t: ``[B]`` int.
      vb_weight: of the bound; 1 where the squared error is not rescaled (Reducio-DiT, Latte).
    """
    channels = x0.shape[-1]
    x0, output = x0.astype(jnp.float32), output.astype(jnp.float32)
    mean = output[..., :channels]
    mse = _per_sample(jnp.square(diffusion.target(x0, noise, t) - mean))
    if diffusion.variance != "learned_range":
        diffusion.check_channels(output, channels)
        return DiffusionLoss(mse, mse, jnp.zeros_like(mse))
    # The squared error trains the mean, the bound only the variance (IDDPM 3.1).
    held = jnp.concatenate([jax.lax.stop_gradient(mean), output[..., channels:]], axis=-1)
    vb = vb_term(diffusion, held, x0, diffusion.add_noise(x0, noise, t), t)
    return DiffusionLoss(mse + vb_weight * vb, mse, vb)


def vb_term(
    diffusion: Diffusion, output: jax.Array, x0: jax.Array, x: jax.Array, t: jax.Array
) -> jax.Array:
    """One term of the variational bound, ``[B]`` in bits per dimension.

    ``KL(q(x_{t-1} | x_t, x0) | p(x_{t-1} | x_t))``, for ``t = 0`` the negative log-likelihood of
    ``x0`` in bins of 8-bit pixels (DDPM eq. 13; IDDPM's code does so for latents as well).
    """
    step = diffusion.step(x, output, t)
    true_mean = diffusion.posterior_mean(x0, x, t)
    true_log_variance = diffusion.at("log_small", t, x)
    kl = _per_sample(gaussian_kl(true_mean, true_log_variance, step.mean, step.log_variance))
    bins = log_likelihood_of_bins(x0, step.mean, 0.5 * step.log_variance)
    # Nats to bits.
    return jnp.where(t == 0, -_per_sample(bins), kl) / math.log(2.0)


def gaussian_kl(mean1, log_variance1, mean2, log_variance2) -> jax.Array:
    """``KL(N(mean1, ..) | N(mean2, ..))`` elementwise, in nats; all arrays ``[B, ..., C]``."""
    apart = log_variance1 - log_variance2
    square = jnp.square(mean1 - mean2) * jnp.exp(-log_variance2)
    # expm1: exp(a) - 1 would cancel for nearly equal variances.
    return 0.5 * (jnp.expm1(apart) - apart + square)


def log_likelihood_of_bins(x: jax.Array, mean: jax.Array, log_std: jax.Array) -> jax.Array:
    """Log-probability of the bin of width 2/255 around ``x``, elementwise, ``[B, ..., C]``.

    The bins at -1 and 1 reach to infinity (DDPM eq. 13).
    """
    centred = x - mean
    scale = jnp.exp(-log_std)
    above, below = scale * (centred + 1.0 / 255.0), scale * (centred - 1.0 / 255.0)
    # The difference is taken in the tail where the distribution function is small, so that it does
    # not cancel against numbers near 1.
    flip = centred > 0
    inside = jnp.where(flip, _cdf(-below) - _cdf(-above), _cdf(above) - _cdf(below))
    # 8-bit pixels are 2/255 apart, so only those at -1 and 1 pass these bounds.
    probability = jnp.where(x < -0.999, _cdf(above), jnp.where(x > 0.999, _cdf(-below), inside))
    return jnp.log(jnp.maximum(probability, 1e-12))


def _cdf(x: jax.Array) -> jax.Array:
    """The tanh approximation of the normal distribution function that GELU and IDDPM's code use."""
    return jax.nn.sigmoid(2.0 * math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3))


def _per_sample(x: jax.Array) -> jax.Array:
    return x.mean(axis=tuple(range(1, x.ndim)))
