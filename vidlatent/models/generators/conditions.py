"""What generators read beside the noisy latent: conditions by name, replacements for missing ones,
and the given frames of image-to-video generators (Wan2.1; FSVideo 2.3, 2.4.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vidlatent.errors import VidlatentError

__all__ = [
    "Conditions",
    "Drop",
    "apply_drop",
    "count_samples",
    "get_condition",
    "join_input",
    "make_frame_mask",
    "mark_first_frame",
    "pad_text",
    "read_guidance",
    "read_labels",
    "read_text",
]

Conditions = Mapping[str, Any]
Drop = Mapping[str, jax.Array] | None

# Pixel frames in a latent frame, except the first: the temporal compression of Wan2.1 and FSAE.
_STEP = 4


def make_frame_mask(given: jax.Array, channels: int = _STEP) -> jax.Array:
    """A mask of given pixel frames on the grid of latent frames (Wan2.1).

    Args:
      given: ``[..., F]``, 1 for a given frame, with ``F = 1 + 4 k``.
      channels: 4 for a channel per pixel frame (the first frame fills all four); 1 for their mean.

    Returns:
      ``[..., 1 + k, channels]`` float32.

    Raises:
      VidlatentError: another number of frames or channels.
    """
    frames = given.shape[-1]
    if frames % _STEP != 1:
        raise VidlatentError(f"a mask of {frames} frames: latents hold 1 + 4 k frames.")
    if channels not in (1, _STEP):
        raise VidlatentError(f"config.generator.mask_channels {channels}: use 1 or {_STEP}.")
    given = given.astype(jnp.float32)
    # The first latent frame holds one pixel frame, repeated to fill its four channels.
    first = jnp.repeat(given[..., :1], _STEP - 1, axis=-1)
    mask = jnp.concatenate([first, given], axis=-1)
    # [..., 3 + F] -> [..., 1 + k, 4]
    mask = mask.reshape(*given.shape[:-1], -1, _STEP)
    return mask if channels == _STEP else jnp.mean(mask, axis=-1, keepdims=True)


def mark_first_frame(frame: jax.Array, frames: int, channels: int = _STEP) -> jax.Array:
    """Mask and given latent of a video whose first frame is known.

    Args:
      frame: ``[B, 1, h, w, c]``, the standardised latent of the image.
      frames: latent frames of the video.
      channels: of the mask, 1 or 4.

    Returns:
      ``[B, frames, h, w, channels + c]``; later frames are zeros.
    """
    # Wan2.1 makes the mask on pixel frames: one, then four for each later latent frame.
    known = jnp.zeros((1 + _STEP * (frames - 1),)).at[0].set(1.0)
    mask = make_frame_mask(known, channels).astype(frame.dtype)
    batch, _, height, width, _ = frame.shape
    # [t, m] -> [B, t, h, w, m]
    mask = jnp.broadcast_to(mask[None, :, None, None], (batch, frames, height, width, channels))
    # Zeros, the mean of standardised latents (FSVideo 2.4.2), so no grey frames are encoded as
    # Wan2.1 does.
    later = ((0, 0), (0, frames - 1), (0, 0), (0, 0), (0, 0))
    return jnp.concatenate([mask, jnp.pad(frame, later)], axis=-1)


def join_input(noisy: jax.Array, given: jax.Array | None = None) -> jax.Array:
    """Noisy latent, then mask and given latent, on channels: ``[B, t, h, w, C]``."""
    return noisy if given is None else jnp.concatenate([noisy, given], axis=-1)


def pad_text(tokens: jax.Array, lengths: jax.Array, total: int = 512) -> jax.Array:
    """Encoded text ``[B, S, D]`` padded to ``[B, total, D]``, with zeros beyond each text's end.

    Raises:
      VidlatentError: more than ``total`` tokens.
    """
    batch, size, _ = tokens.shape
    if size > total:
        raise VidlatentError(f"{size} text tokens, but the generator reads {total}: cut the text.")
    # Encoders leave arbitrary states at padding; zero them so that they cannot matter.
    seen = jnp.arange(size) < jnp.reshape(lengths, (batch, 1))
    return jnp.pad(jnp.where(seen[..., None], tokens, 0), ((0, 0), (0, total - size), (0, 0)))


def get_condition(conditions: Conditions, name: str, reads: Sequence[str]) -> Any:
    """``conditions[name]``; None means that no sample has this condition.

    Raises:
      VidlatentError: the generator reads ``name`` and it is not there.
    """
    if name not in conditions:
        raise VidlatentError(
            f"the generator reads {', '.join(reads)}, but the conditions lack {name}: give it, or "
            "None for no condition."
        )
    return conditions[name]


def count_samples(conditions: Conditions, reads: Sequence[str]) -> int:
    """Batch size of the conditions that are not None.

    Raises:
      VidlatentError: one is absent, or all are None.
    """
    found = jax.tree.leaves([get_condition(conditions, name, reads) for name in reads])
    if not found:
        raise VidlatentError("there is nothing to cache of conditions that are all None.")
    return found[0].shape[0]


def apply_drop(x: jax.Array, null: Any, drop: Drop, name: str) -> jax.Array:
    """``x`` ``[B, ...]`` with ``null`` (broadcast) where ``drop[name]`` ``[B]`` is true."""
    if drop is None or name not in drop:
        return x
    # [B] -> [B, 1, ...]
    mask = drop[name].reshape(-1, *[1] * (x.ndim - 1))
    return jnp.where(mask, null, x)


def read_labels(conditions: Conditions, drop: Drop, reads: Sequence[str], batch: int) -> jax.Array:
    """Labels ``[B]`` int32, -1 where a sample has none or it is dropped."""
    labels = get_condition(conditions, "label", reads)
    if labels is None:
        return jnp.full((batch,), -1, jnp.int32)
    return apply_drop(jnp.asarray(labels, jnp.int32), -1, drop, "label")


def read_text(
    conditions: Conditions, drop: Drop, reads: Sequence[str], batch: int, width: int
) -> tuple[jax.Array, jax.Array]:
    """States ``[B, N, D]`` and lengths ``[B]`` of the texts; dropped ones are the null text.

    The null text is ``conditions['null_text']``, ``{'states' [1 or B, M, D], 'length' [1 or B]}``,
    such as the encoded empty text; without that entry it is one token of zeros.
    """
    text = get_condition(conditions, "text", reads)
    if "null_text" in conditions and conditions["null_text"] is not None:
        null, null_length = (conditions["null_text"][key] for key in ("states", "length"))
    else:
        # One token of zeros rather than none: a softmax needs at least one key.
        null, null_length = jnp.zeros((1, 1, width)), jnp.ones((1,), jnp.int32)
    if text is None:
        states = jnp.broadcast_to(null, (batch, *null.shape[1:]))
        return states, jnp.broadcast_to(null_length, (batch,))
    states, length = text["states"], text["length"]
    if drop is None or "text" not in drop:
        return states, length
    # Both may have any number of tokens: the shorter is padded, which its length hides.
    total = max(states.shape[1], null.shape[1])
    states, null = (jnp.pad(x, ((0, 0), (0, total - x.shape[1]), (0, 0))) for x in (states, null))
    return apply_drop(states, null.astype(states.dtype), drop, "text"), apply_drop(
        length, null_length, drop, "text"
    )


def read_guidance(conditions: Conditions, batch: int, initializing: bool) -> jax.Array:
    """Guidance scales ``[B]`` of a generator that has them as an input (``guidance_embed``).

    Args:
      conditions: ``'guidance'`` ``[B]`` is among them.
      batch: B.
      initializing: the model's parameters are being made, with any scale.

    Raises:
      VidlatentError: there is none.
    """
    if "guidance" in conditions:
        return jnp.asarray(conditions["guidance"], jnp.float32)
    if not initializing:
        raise VidlatentError(
            "config.generator.guidance_embed makes the guidance scale an input, and none is given: "
            "train this generator by the task distill_guidance, or set it to False."
        )
    return jnp.ones((batch,))
