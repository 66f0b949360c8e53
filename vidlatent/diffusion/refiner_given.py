"""What FSVideo's refiner is given: mask and condition latent, in training and in sampling (2.4.2).

Frame 0 is the high-resolution picture, with mask 1. The later frames are the upsampled latent of
the small video, with a mask below 1 that says how far the upsampler can be trusted. In training the
small video is the clip's own, moved by the error that the base model makes on it; then frames are
shuffled, some are replaced by the truth, and in some samples all are left out, in this order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vidlatent.diffusion.refiner import (
    apply_order,
    deviate,
    draw_frame_order,
    draw_real_frames,
    drop_frames,
    estimate_confidence,
    make_condition_mask,
    use_real_frames,
)

__all__ = ["Given", "GivenOptions", "give_for_sampling", "give_for_training"]

Upsample = Callable[[jax.Array], jax.Array]
Base = Callable[[jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class GivenOptions:
    """``config.refiner``; the paper states ``shuffle_rate`` and ``shuffle_odds`` alone.

    Attributes:
      mask_mode, mask_low, mask_high, mask_tau: see ``refiner.estimate_confidence``.
      mask_map: ``'spatial'``, one value for each place, or ``'sample'``, one for each sample.
      mask_channels: channels of the mask.
      shuffle_rate, shuffle_odds, shuffle_window: see ``refiner.draw_frame_order``.
      real_rate: share of samples in which some frames show the truth.
      low_drop: share of samples without the small video.
      least_sigma: least noise level of the base model's evaluation.
    """

    mask_mode: str = "confidence"
    mask_low: float = 0.2
    mask_high: float = 0.8
    mask_tau: float = 0.5
    mask_map: str = "spatial"
    mask_channels: int = 4
    shuffle_rate: float = 0.5
    shuffle_odds: tuple[float, float, float] = (6.0, 3.0, 1.0)
    shuffle_window: tuple[int, int] = (2, 4)
    real_rate: float = 0.2
    low_drop: float = 0.1
    least_sigma: float = 0.1


class Given(NamedTuple):
    """What the refiner is given, and how it came about.

    Attributes:
      condition: ``[B, t, h, w, c]``; mask: ``[B, t, h, w, m]``.
      order: ``[B, t]``, the frame of the small video that stands at each place.
      real: ``[B, t]`` bool, frames that show the truth; never frame 0, which always does.
      dropped: ``[B]`` bool, samples without the small video.
    """

    condition: jax.Array
    mask: jax.Array
    order: jax.Array
    real: jax.Array
    dropped: jax.Array

    def join(self) -> jax.Array:
        """``[B, t, h, w, m + c]``: the generator's condition ``'given'``."""
        return jnp.concatenate([self.mask, self.condition], axis=-1)


def give_for_sampling(
    first_high: jax.Array,
    first_low: jax.Array,
    low: jax.Array,
    upsample: Upsample,
    options: GivenOptions,
) -> Given:
    """What the refiner is given when the base model's sample is refined; no noise, no randomness.

    Args:
      first_high: ``[B, 1, 2 h, 2 w, c]``, the encoded picture; first_low: ``[B, 1, h, w, c]``, the
        encoded half-size picture. Both tell how well the upsampler does on this picture.
      low: ``[B, t, h, w, c]``, the base model's sample, or any small video.
      upsample: ``[B, t, h, w, c] -> [B, t, 2 h, 2 w, c]``.
      options: of the mask.
    """
    batch, frames = low.shape[:2]
    condition = _put_first(first_high, upsample(low))
    mask = _make_mask(first_high, first_low, frames, upsample, options)
    return Given(
        condition,
        mask,
        jnp.broadcast_to(jnp.arange(frames), (batch, frames)),
        jnp.zeros((batch, frames), bool),
        jnp.zeros((batch,), bool),
    )


def give_for_training(
    key: jax.Array,
    low: jax.Array,
    high: jax.Array,
    sigma: jax.Array,
    base: Base,
    upsample: Upsample,
    options: GivenOptions,
    *,
    augment: bool = True,
) -> Given:
    """What the refiner is given in training: eqs. 10-13, upsampling, shuffle, real frames, dropout.

    No gradient passes through it: base model and upsampler are frozen.

    Args:
      key: of all random numbers.
      low: ``[B, t, h, w, c]``, the clip at half size; high: ``[B, t, 2 h, 2 w, c]``.
      sigma: ``[B]``, noise levels drawn as in training the base model.
      base: ``(z [B, t, h, w, c], sigma [B]) -> velocity``, with its conditions.
      upsample: ``[B, t, h, w, c] -> [B, t, 2 h, 2 w, c]``.
      options: rates and ranges.
      augment: False leaves out shuffle, real frames and dropout, for evaluation.
    """
    keys = jax.random.split(key, 4)
    batch, frames = low.shape[:2]
    noise = jax.random.normal(keys[0], low.shape, jnp.float32)
    sigma = jnp.clip(sigma, options.least_sigma, 1.0)
    # z0_tilde: the small latent with the velocity error that the base model makes at sigma.
    moved = deviate(base, low, noise, sigma)["z0_tilde"]
    given = give_for_sampling(high[:, :1], low[:, :1], moved, upsample, options)
    if augment:
        given = _augment(keys[1:], given, high, options)
    return jax.lax.stop_gradient(given)


def _augment(keys: jax.Array, given: Given, high: jax.Array, options: GivenOptions) -> Given:
    batch, frames = high.shape[:2]

    def order_of(key):
        rate, odds = options.shuffle_rate, options.shuffle_odds
        return draw_frame_order(key, frames, rate, odds, options.shuffle_window)

    order = jax.vmap(order_of)(jax.random.split(keys[0], batch))
    real = jax.vmap(lambda key: draw_real_frames(key, frames, options.real_rate))(
        jax.random.split(keys[1], batch)
    )
    dropped = jax.random.bernoulli(keys[2], options.low_drop, (batch,))
    # The truth comes after the shuffle: a frame with mask 1 is the true frame of its own time.
    condition = apply_order(given.condition, order)
    condition, mask = use_real_frames(condition, given.mask, high, real)
    condition, mask = drop_frames(condition, mask, dropped)
    return Given(condition, mask, order, real, dropped)


def _put_first(first: jax.Array, rest: jax.Array) -> jax.Array:
    return jnp.concatenate([first.astype(rest.dtype), rest[:, 1:]], axis=1)


def _make_mask(
    first_high: jax.Array,
    first_low: jax.Array,
    frames: int,
    upsample: Upsample,
    options: GivenOptions,
) -> jax.Array:
    """The dynamic mask ``[B, t, 2 h, 2 w, m]``.

    The paper compares "the low-resolution first frame latent and its upsampled output", which have
    different sizes. Here the first frame at full size is compared with the upsampled one of half
    size: both exist in sampling, too.
    """
    confidence = estimate_confidence(
        first_high,
        upsample(first_low),
        low=options.mask_low,
        high=options.mask_high,
        tau=options.mask_tau,
        mode=options.mask_mode,
        spatial=options.mask_map == "spatial",
    )
    return make_condition_mask(confidence, frames, options.mask_channels)
