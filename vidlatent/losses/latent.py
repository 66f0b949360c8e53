"""Losses on the latent distribution."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vidlatent.errors import VidlatentError
from vidlatent.losses.base import Term, mean_over_samples
from vidlatent.losses.reconstruction import check_choice
from vidlatent.models.tokenizers.base import LOGVAR_RANGE, Posterior

__all__ = ["KL_REDUCTIONS", "kl", "kl_term"]

KL_REDUCTIONS = ("sum_per_clip", "sum_per_frame", "sum_at_256", "mean")


def kl(
    posterior: Posterior,
    mask: jax.Array,
    reduction: str = "sum_per_clip",
    pixels: int = 256 * 256,
) -> jax.Array:
    """Divergence of the posterior from the unit normal, averaged over the real samples.

    Args:
      posterior: ``[B, t, h, w, c]``; the log-variance counts within [-30, 20].
      reduction: ``'sum_per_clip'`` (sum over t, h, w, c: Reducio and ProMAG, whose weights 1e-6 and
        1e-12 stand beside reconstruction means), ``'sum_per_frame'`` (sum over h, w, c and mean
        over t: latent diffusion's image VAE), ``'sum_at_256'`` (the same times ``256^2 / pixels``:
        IV-VAE eq. 5) or ``'mean'`` over all elements.
      pixels: H times W of the clip.

    Raises:
      VidlatentError: unknown reduction, or a deterministic tokenizer.
    """
    check_choice("kl", reduction, KL_REDUCTIONS)
    if posterior.logvar is None:
        raise VidlatentError(
            "config.loss.kl: this tokenizer's latent has no variance; leave the term out."
        )
    mean = posterior.mean.astype(jnp.float32)
    logvar = jnp.clip(posterior.logvar.astype(jnp.float32), *LOGVAR_RANGE)
    # exp(v) - 1 - v by expm1: near the unit normal the difference cancels to a few digits.
    each = 0.5 * (jnp.square(mean) + jnp.expm1(logvar) - logvar)
    if reduction == "mean":
        return mean_over_samples(each, mask)
    # [B, t, h, w, c] -> [B, t]
    per_frame = each.sum(axis=(2, 3, 4))
    if reduction == "sum_per_clip":
        return mean_over_samples(per_frame.sum(axis=1), mask)
    scale = 256.0 * 256.0 / pixels if reduction == "sum_at_256" else 1.0
    return scale * mean_over_samples(per_frame, mask)


def kl_term(reduction: str = "sum_per_clip") -> Term:
    """``loss.kl``."""
    check_choice("kl", reduction, KL_REDUCTIONS)

    def value(inputs, params, networks):
        pixels = inputs.target.shape[2] * inputs.target.shape[3]
        return kl(inputs.posterior, inputs.mask, reduction, pixels)

    return Term(value)
