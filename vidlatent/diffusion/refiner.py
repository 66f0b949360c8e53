"""Training conditions of a refiner: an imperfect low-resolution latent and how far to trust it.

Used by the task that trains FSVideo's refiner (2.4.2). In sampling the refiner sees the upsampled
output of the base model. In training one evaluation of the base model imitates that output
(eqs. 10-13); frames are shuffled, some are replaced by the ground truth, and a mask says how far
each can be trusted. Latents are ``[B, t, h, w, c]``, masks ``[B, t, h, w, 1]``. The first frame is
the given image and is never changed.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vidlatent.diffusion.flow import interpolate, x0_from_velocity
from vidlatent.errors import VidlatentError
from vidlatent.registry import did_you_mean

__all__ = [
    "MASK_MODES",
    "add_velocity_error",
    "apply_order",
    "deviate",
    "draw_frame_order",
    "draw_real_frames",
    "drop_frames",
    "estimate_confidence",
    "make_condition_mask",
    "use_real_frames",
]

MASK_MODES = ("confidence", "error")


def add_velocity_error(
    z0: jax.Array, eps: jax.Array, v_hat: jax.Array, sigma: jax.Array
) -> jax.Array:
    """``eps - v_hat``, eq. 13: the clean latent plus the base model's error of velocity.

    The paper writes ``z0 + (z0_hat - z0) / sigma``, which is equal but divides by sigma. This form
    needs neither ``z0`` nor ``sigma``; they stay in the signature so that it reads like eq. 13.

    Args:
      z0, eps, v_hat: ``[B, ...]``; sigma: ``[B]``.
    """
    del z0, sigma
    return eps - v_hat


def deviate(base, z0: jax.Array, eps: jax.Array, sigma: jax.Array) -> dict[str, jax.Array]:
    """Eqs. 10-13 with one evaluation of the base model, without a gradient.

    Args:
      base: ``(z [B, ...], sigma [B]) -> velocity``.
      z0: the clean low-resolution latent; eps: noise of its shape.
      sigma: ``[B]``; draw it as in training the base model and clip it to [0.1, 1]: near 0 the
        result is nothing but the latent with noise of unit variance.

    Returns:
      ``z_sigma``, ``velocity``, ``z0_hat`` (eq. 12) and ``z0_tilde`` (eq. 13).
    """
    z = interpolate(z0, eps, sigma)
    # The base model is not trained here: its error is data for the refiner.
    v = jax.lax.stop_gradient(base(z, sigma)).astype(z.dtype)
    tilde = add_velocity_error(z0, eps.astype(z.dtype), v, sigma)
    return {
        "z_sigma": z,
        "velocity": v,
        "z0_hat": x0_from_velocity(z, v, sigma),
        "z0_tilde": tilde,
    }


def estimate_confidence(
    first: jax.Array,
    upsampled: jax.Array,
    low: float = 0.2,
    high: float = 0.8,
    tau: float = 0.5,
    mode: str = "confidence",
    spatial: bool = True,
) -> jax.Array:
    """How far the upsampler can be trusted, from the first frame, where the truth is known.

    ``low + (high - low) exp(-e / tau)`` with ``e`` the mean over channels of
    ``|first - upsampled|``. The paper gives the idea and a range inside (0, 1); the formula and
    the numbers are this project's.

    Args:
      first: ``[B, 1, h, w, c]``, encoding of the high-resolution first frame.
      upsampled: same shape, the upsampler on the encoding of its half-size version.
      mode: ``'confidence'`` falls with the error; ``'error'`` rises with it.
      spatial: one value for each place; False: one for each sample, from the mean error.

    Returns:
      ``[B, 1, h, w, 1]`` in [low, high].
    """
    if mode not in MASK_MODES:
        hint = did_you_mean(mode, MASK_MODES)
        raise VidlatentError(f"mode {mode!r} of estimate_confidence is unknown: {hint}")
    # [B, 1, h, w, c] -> [B, 1, h, w, 1]
    error = jnp.abs(first - upsampled).mean(axis=-1, keepdims=True)
    if not spatial:
        error = jnp.broadcast_to(error.mean(axis=(1, 2, 3), keepdims=True), error.shape)
    trust = jnp.exp(-error / tau)
    return low + (high - low) * (trust if mode == "confidence" else 1.0 - trust)


def make_condition_mask(value: jax.Array, frames: int, channels: int = 4) -> jax.Array:
    """The mask's channels: 1 in the first frame, ``value [B, 1, h, w, 1]`` in all others."""
    batch, _, height, width, _ = value.shape
    rest = jnp.broadcast_to(value, (batch, frames - 1, height, width, 1))
    mask = jnp.concatenate([jnp.ones_like(value), rest], axis=1)
    return jnp.broadcast_to(mask, (batch, frames, height, width, channels))


def draw_frame_order(
    key: jax.Array,
    frames: int,
    rate: float = 0.5,
    odds: tuple[float, float, float] = (6.0, 3.0, 1.0),
    window: tuple[int, int] = (2, 4),
) -> jax.Array:
    """An order of frames for one sample, ``[frames]`` int32; frame 0 stays.

    With ``rate``, by ``odds``: permute a window of adjacent frames, swap two that are not
    adjacent, or permute all. FSVideo states rate and odds, and not the sizes of ``window``, which
    are drawn uniformly. Short clips use smaller windows; with fewer than 4 frames none are swapped.
    """
    keys = jax.random.split(key, 4)
    here = jnp.arange(frames)
    free = frames - 1
    # A single movable frame has only one order.
    if free < 2:
        return here
    choice = jax.random.categorical(keys[0], jnp.log(jnp.asarray(odds, jnp.float32)))
    # All three are drawn and one is taken, because the choice is traced.
    choices = jnp.stack(
        [_window(keys[1], frames, window), _swap(keys[2], frames), _all(keys[2], frames)]
    )
    shuffles = jax.random.bernoulli(keys[3], rate)
    return jnp.where(shuffles, choices[choice], here)


def apply_order(latent: jax.Array, order: jax.Array) -> jax.Array:
    """Frames ``[B, t, ...]`` in the order ``[B, t]``."""
    return jax.vmap(lambda x, i: x[i])(latent, order)


def draw_real_frames(key: jax.Array, frames: int, rate: float = 0.2) -> jax.Array:
    """Which frames of one sample show the truth, ``[frames]`` bool; never frame 0.

    With ``rate``, between 1 and a quarter of the frames, uniform. The paper states neither.
    """
    keys = jax.random.split(key, 3)
    if frames < 2:
        return jnp.zeros(frames, bool)
    count = jax.random.randint(keys[0], (), 1, max(1, frames // 4) + 1)
    count = jnp.where(jax.random.bernoulli(keys[1], rate), count, 0)
    # Places in a random order; frame 0 comes last and is never among the first few.
    draw = jax.random.uniform(keys[2], (frames,)).at[0].set(2.0)
    # The inverse permutation: argsort lists frames by rank, this lists ranks by frame.
    rank = jnp.zeros(frames, jnp.int32).at[jnp.argsort(draw)].set(jnp.arange(frames))
    return rank < count


def use_real_frames(
    condition: jax.Array, mask: jax.Array, real: jax.Array, chosen: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Condition and mask with the chosen frames replaced by the real latent and by 1.

    Apply it after the shuffle, so that a frame marked 1 is the true frame of its time.

    Args:
      condition, real: ``[B, t, h, w, c]``; mask: ``[B, t, h, w, m]``; chosen: ``[B, t]`` bool.
    """
    chosen = chosen[:, :, None, None, None]
    return jnp.where(chosen, real, condition), jnp.where(chosen, 1.0, mask)


def drop_frames(
    condition: jax.Array, mask: jax.Array, dropped: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Condition and mask with all frames but the first set to 0 in the samples of ``dropped``.

    Args:
      dropped: ``[B]`` bool, of ``guidance.drop_masks``.
    """
    later = jnp.arange(condition.shape[1]) > 0
    gone = (dropped[:, None] & later)[:, :, None, None, None]
    return jnp.where(gone, 0.0, condition), jnp.where(gone, 0.0, mask)


def _window(key, frames, sizes):
    """Permute ``size`` adjacent frames, never into the order that they have."""
    keys = jax.random.split(key, 3)
    least, most = (min(s, frames - 1) for s in sizes)
    size = jax.random.randint(keys[0], (), least, most + 1)
    start = jax.random.randint(keys[1], (), 1, frames - size + 1)
    here = jnp.arange(frames)
    inside = (here >= start) & (here < start + size)
    # Sorting by random numbers inside and by place outside permutes the window alone.
    draw = jax.random.uniform(keys[2], (frames,))
    order = jnp.argsort(jnp.where(inside, start + size * draw, here))
    # A permutation drawn at random may be the identity; a rotation then takes its place.
    rolled = jnp.where(inside, start + (here - start + 1) % size, here)
    return jnp.where(jnp.all(order == here), rolled, order)


def _swap(key, frames):
    """Swap frames i < j of 1.. with j - i >= 2."""
    here = jnp.arange(frames)
    # Listed on the host, as the number of frames is static; one index then picks evenly.
    pairs = [(i, j) for i in range(1, frames) for j in range(i + 2, frames)]
    if not pairs:
        return here
    i, j = jnp.asarray(pairs)[jax.random.randint(key, (), 0, len(pairs))]
    return jnp.where(here == i, j, jnp.where(here == j, i, here))


def _all(key, frames):
    # Random numbers from 1 on and 0 in front: sorting leaves frame 0 where it is.
    draw = jax.random.uniform(key, (frames,), minval=1.0, maxval=2.0)
    return jnp.argsort(draw.at[0].set(0.0))
