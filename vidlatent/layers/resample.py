"""Down- and upsampling by 2 in space and time, with shortcuts that have no parameters.

The downsampling shortcut moves pixels (and frames) into channels and averages runs of consecutive
channels; the upsampling shortcut repeats channels and moves them back (DC-AE; FSVideo 2.2.1).
``order`` names the channel sub-index from slowest to fastest: ``'hwt'`` (time fastest) keeps
frame 0 and static clips equal to the image model; ``'thw'`` is the order of LTX and DC-AE-V.

The first frame of a video stands alone: downsampling pairs it with itself, upsampling drops its
first copy. Hence 1 + 2m frames <-> 1 + m; later chunks of a stream hold whole pairs only.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from einops import rearrange

from vidlatent.errors import VidlatentError

__all__ = [
    "channel_to_space",
    "double_frames",
    "down_shortcut",
    "group_mean",
    "lead_frame",
    "nearest",
    "repeat_channels",
    "space_to_channel",
    "up_shortcut",
]


def lead_frame(x: jax.Array, first: bool) -> jax.Array:
    """Put a copy of frame 0 before ``[B, T, H, W, C]`` if ``first``: frames then come in pairs."""
    return jnp.concatenate([x[:, :1], x], axis=1) if first else x


def double_frames(x: jax.Array, first: bool) -> jax.Array:
    """Repeat each frame of ``[B, T, H, W, C]``; at the start of a stream drop the first copy."""
    y = jnp.repeat(x, 2, axis=1)
    return y[:, 1:] if first else y


def nearest(x: jax.Array) -> jax.Array:
    """Double H and W of ``[B, T, H, W, C]`` by repetition.

    A broadcast and a reshape, where ``jax.image.resize`` would gather.
    """
    batch, time, height, width, channels = x.shape
    # [B, T, H, 1, W, 1, C] -> [B, T, H, 2, W, 2, C]
    y = jnp.broadcast_to(x[:, :, :, None, :, None], (batch, time, height, 2, width, 2, channels))
    return y.reshape(batch, time, 2 * height, 2 * width, channels)


def group_mean(x: jax.Array, features: int) -> jax.Array:
    """Mean over runs of consecutive channels: ``[..., C] -> [..., features]``."""
    _divide(x.shape[-1], features, "averaging shortcut")
    if x.shape[-1] == features:
        return x
    return jnp.mean(x.reshape(*x.shape[:-1], features, -1), axis=-1)


def repeat_channels(x: jax.Array, features: int) -> jax.Array:
    """Repeat each channel the same number of times in a row: ``[..., C] -> [..., features]``."""
    _divide(features, x.shape[-1], "repeating shortcut")
    return jnp.repeat(x, features // x.shape[-1], axis=-1)


def space_to_channel(x: jax.Array, time: bool = False, order: str = "hwt") -> jax.Array:
    """2x2 (2x2x2 with ``time``) pixels into channels, the old channel slowest.

    ``[B, T, H, W, C] -> [B, T, H/2, W/2, 4C]`` or ``[B, T/2, H/2, W/2, 8C]``.
    """
    into = _sub_index(order)
    return rearrange(
        x, f"b (T t) (H h) (W w) c -> b T H W (c {into})", t=2 if time else 1, h=2, w=2
    )


def channel_to_space(x: jax.Array, time: bool = False, order: str = "hwt") -> jax.Array:
    """Inverse of ``space_to_channel``: ``[B, T, H, W, 4C] -> [B, T, 2H, 2W, C]``, or with time."""
    out = _sub_index(order)
    return rearrange(x, f"b T H W (c {out}) -> b (T t) (H h) (W w) c", t=2 if time else 1, h=2, w=2)


def down_shortcut(
    x: jax.Array, features: int, *, time: bool = False, order: str = "hwt", first: bool = True
) -> jax.Array:
    """Shortcut of a down operation: ``[B, T, H, W, C] -> [B, T', H/2, W/2, features]``.

    Args:
      x: T = 1 + 2m at the start of a stream (``first``), else 2m, when ``time`` is halved.
      features: output channels; must divide 4C (8C with time).
      time: halve the frame count too.
      order: channel sub-index order of the temporal form.
      first: ``x`` starts the stream.
    """
    channels = x.shape[-1]
    if not time:
        return _down_space(x, features)
    if order == "hwt" and (4 * channels) % features == 0:
        # Time is the fastest sub-index: the groups average both frames of a pair first.
        pairs = lead_frame(x, first)
        pairs = pairs.reshape(x.shape[0], -1, 2, *x.shape[2:])
        return _down_space(jnp.mean(pairs, axis=2), features)
    # With time fastest frame 0 is only averaged with its own copy: no special case.
    if not first or order == "hwt":
        return group_mean(space_to_channel(lead_frame(x, first), True, order), features)
    # With space fastest a frame and its copy land in different channels. The image model has no
    # such step, so frame 0 takes its 2-D shortcut.
    alone = _down_space(x[:, :1], features)
    if x.shape[1] == 1:
        return alone
    rest = group_mean(space_to_channel(x[:, 1:], True, order), features)
    return jnp.concatenate([alone, rest], axis=1)


def up_shortcut(
    x: jax.Array, features: int, *, time: bool = False, order: str = "hwt", first: bool = True
) -> jax.Array:
    """Shortcut of an up operation: ``[B, T, H, W, C] -> [B, T', 2H, 2W, features]``.

    Args:
      x: input frames.
      features: output channels; C must divide 4 (8 with time) times it.
      time: double the frame count too (1 + m -> 1 + 2m at the start of a stream, else m -> 2m).
      order: channel sub-index order of the temporal form.
      first: ``x`` starts the stream.
    """
    # Each copy of a frame gets the same channels, so doubling frames is the whole shuffle.
    if time and order == "hwt" and (4 * features) % x.shape[-1] == 0:
        return double_frames(_up_space(x, features), first)
    if not time:
        return _up_space(x, features)
    y = channel_to_space(repeat_channels(x, 8 * features), True, order)
    if not first or order == "hwt":
        return y[:, 1:] if first else y
    # Frame 0 as the image model has it; both copies of later frames by the 3-D shuffle.
    return jnp.concatenate([_up_space(x[:, :1], features), y[:, 2:]], axis=1)


def _down_space(x, features):
    batch, time, height, width, channels = x.shape
    _divide(4 * channels, features, "averaging shortcut")
    y = x.reshape(batch, time, height // 2, 2, width // 2, 2, channels)
    # Cases in which means replace the shuffle: less memory traffic, the same numbers.
    if channels % features == 0:
        return group_mean(jnp.mean(y, axis=(3, 5)), features)
    if 2 * channels == features:
        # An output channel is the mean of two columns: [B, T, h, 2, w, C] -> [B, T, h, w, C, 2].
        y = jnp.moveaxis(jnp.mean(y, axis=5), 3, 5)
        return y.reshape(batch, time, height // 2, width // 2, features)
    return group_mean(space_to_channel(x), features)


def _up_space(x, features):
    channels = x.shape[-1]
    _divide(4 * features, channels, "repeating shortcut")
    if features % channels == 0:
        # All four pixels read the same channel.
        return nearest(repeat_channels(x, features))
    if 2 * features == channels:
        batch, time, height, width, _ = x.shape
        # Two channels become the upper and the lower row; both columns of a row are equal.
        y = jnp.moveaxis(x.reshape(batch, time, height, width, features, 2), 5, 3)
        y = jnp.broadcast_to(y[:, :, :, :, :, None], (batch, time, height, 2, width, 2, features))
        return y.reshape(batch, time, 2 * height, 2 * width, features)
    return channel_to_space(repeat_channels(x, 4 * features))


def _sub_index(order: str) -> str:
    """``'hwt' -> 'h w t'``, the channel sub-index from slowest to fastest."""
    if sorted(order) != ["h", "t", "w"]:
        raise VidlatentError(f"shortcut order {order!r}: use 'hwt' or 'thw'.")
    return " ".join(order)


def _divide(large: int, small: int, what: str) -> None:
    if small <= 0 or large % small:
        raise VidlatentError(
            f"the {what} cannot join {large} and {small} channels: one must divide the other; "
            "change the stage widths."
        )
