"""LPIPS over the frames of a clip."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from vidlatent.losses.base import Term, mean_over_samples
from vidlatent.losses.frames import map_frames
from vidlatent.losses.reconstruction import pixel_scale
from vidlatent.models.pretrained import network_apply

__all__ = ["lpips", "lpips_alex_term", "lpips_term", "lpips_tiny_term", "lpips_vgg_term"]


def lpips(
    apply: Callable[[Any, jax.Array, jax.Array], jax.Array],
    params: Any,
    prediction: jax.Array,
    target: jax.Array,
    mask: jax.Array,
    frames_at_once: int = 4,
) -> jax.Array:
    """Perceptual distance of each frame, averaged over frames and real samples.

    Frames pass a few at a time and are recomputed for the gradient. The value is exact, and the
    memory is that of a slice, which FSVideo's stages with long clips need.

    Args:
      apply: ``(params, x, y) -> [N]`` for images ``[N, H, W, 3]`` in [-1, 1].
      params: of that network.
      prediction, target: ``[B, T, H, W, 3]``.
      mask: ``[B]``.
      frames_at_once: of each sample.
    """
    # No gradient to the clip: XLA then skips half of the backward pass.
    target = lax.stop_gradient(target.astype(jnp.float32))
    distance = functools.partial(apply, params)
    prediction = prediction.astype(jnp.float32)
    return mean_over_samples(map_frames(distance, prediction, target, at_once=frames_at_once), mask)


def lpips_term(
    network: str, frames_at_once: int = 4, reduction: str = "mean", dtype: str = "float32"
) -> Term:
    """LPIPS by a frozen network as a term.

    Args:
      network: name in ``models.pretrained``.
      frames_at_once: of each sample; memory against speed.
      reduction: ``'mean'``, or ``'sum_at_256'`` of IV-VAE eq. 5, where the distance of a frame
        counts for each of its pixels and channels.
      dtype: compute dtype of the network.
    """
    pixel_scale(reduction, (3,), network)  # refuses an unknown one before anything is compiled

    def value(inputs, params, networks):
        scale = pixel_scale(reduction, inputs.target.shape, network)
        apply, weights = network_apply(network, jnp.dtype(dtype)), networks[network]
        return scale * lpips(apply, weights, *inputs[:3], frames_at_once=frames_at_once)

    return Term(value, networks=(network,))


lpips_vgg_term = functools.partial(lpips_term, "lpips_vgg")
lpips_alex_term = functools.partial(lpips_term, "lpips_alex")
# A tiny network with random weights, for tests and for trying things without downloads.
lpips_tiny_term = functools.partial(lpips_term, "lpips_tiny")
