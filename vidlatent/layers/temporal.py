"""The neighbouring frames of a temporal convolution, and the cache between chunks of a video.

A long video is processed in chunks. The first starts at the true beginning; each later one
continues from a cache of the last input frames. A cache is an ordinary array, an argument and a
result, so that a chunked run can be a ``lax.scan`` over chunks.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from vidlatent.errors import VidlatentError
from vidlatent.kernels.conv3d import conv3d, conv_frames

__all__ = ["TimeRule", "View", "convolve", "merge_taps", "shift_frames", "view_frames"]

# Either frames with their temporal padding [B, pad + T + pad, H, W, C], or one array per tap (None
# for a tap that meets zeros alone).
View = Any


@dataclasses.dataclass(frozen=True)
class TimeRule:
    """How a temporal convolution meets the ends of a clip, and how far it looks ahead.

    Attributes:
      kind: ``'causal'`` (taps t-2, t-1, t), ``'centred'`` (t-1, t, t+1) or ``'group'`` (centred
        taps inside groups of ``group`` frames after a first group of one; a group's last frame
        sees the right border in place of its right neighbour; FSAE-Lite, IV-VAE).
      group: frames in a group.
      padding: what lies beyond the ends: ``'replicate'`` (the end frame) or ``'zeros'``. Only
        ``'replicate'`` makes a static clip decode to a static clip for arbitrary weights.
      future: the same for the right end (of a clip, or of each group); empty: as ``padding``.
        IV-VAE's groups replicate to the left of the video and see zeros to the right.
    """

    kind: str = "causal"
    group: int = 1
    padding: str = "replicate"
    future: str = ""

    def __post_init__(self):
        if self.kind not in ("causal", "centred", "group"):
            raise VidlatentError(f"time rule {self.kind!r}: use 'causal', 'centred' or 'group'.")
        if self.padding not in ("replicate", "zeros"):
            raise VidlatentError(f"time padding {self.padding!r}: use 'replicate' or 'zeros'.")
        if self.future not in ("", "replicate", "zeros"):
            raise VidlatentError(f"future padding {self.future!r}: use 'replicate' or 'zeros'.")

    @property
    def streams(self) -> bool:
        """Whether a clip can be processed chunk by chunk with an unchanged result."""
        return self.kind != "centred"

    def border(self, frame: jax.Array) -> jax.Array:
        """The padding before the first real frame ``frame`` ``[B, 1, H, W, C]``."""
        return frame if self.padding == "replicate" else jnp.zeros_like(frame)

    @property
    def replicates_after(self) -> bool:
        """Whether padding after the last frame (or group) replicates it; otherwise it is zeros."""
        return (self.future or self.padding) == "replicate"

    def border_after(self, frame: jax.Array) -> jax.Array:
        """The padding after the last real frame ``frame`` ``[B, 1, H, W, C]``."""
        return frame if self.replicates_after else jnp.zeros_like(frame)


def _next_frames(x: jax.Array, rule: TimeRule, first: bool) -> jax.Array:
    """Right neighbours ``[B, T, H, W, C]`` under a centred or group rule."""
    # In groups of one every frame ends its group.
    if rule.kind == "group" and rule.group == 1:
        return rule.border_after(x)
    frames = x.shape[1]
    after = jnp.concatenate([x[:, 1:], rule.border_after(x[:, -1:])], axis=1)
    if rule.kind == "centred":
        return after
    # Place of each frame in its group. At the start of a stream frame 0 is a group of its own.
    place = jnp.arange(frames) - (1 if first else 0)
    ends = place % rule.group == rule.group - 1
    if first:
        ends = ends.at[0].set(True)
    return jnp.where(ends[None, :, None, None, None], rule.border_after(x), after)


def shift_frames(
    x: jax.Array, cache: jax.Array | None, rule: TimeRule
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], jax.Array | None]:
    """Left neighbour, frame and right neighbour of every frame, and the new cache.

    Args:
      x: ``[B, T, H, W, C]``.
      cache: the frame before ``x`` ``[B, 1, H, W, C]``, or None at the start of a stream.
      rule: a causal rule has no right neighbour: the frame itself stands there.
    """
    first = cache is None
    before = rule.border(x[:, :1]) if first else cache.astype(x.dtype)
    left = jnp.concatenate([before, x[:, :-1]], axis=1)
    right = x if rule.kind == "causal" else _next_frames(x, rule, first)
    # A centred rule cannot resume, so it keeps nothing.
    return (left, x, right), (x[:, -1:] if rule.streams else None)


def view_frames(
    x: jax.Array, cache: jax.Array | None, rule: TimeRule, taps: int, stride: int = 1
) -> tuple[View, jax.Array | None]:
    """``x`` with the frames that a convolution of ``taps`` taps reads beyond its ends.

    Args:
      x: ``[B, T, H, W, C]``; with a stride, T = 1 + stride * m at the start of a stream and
        stride * m later.
      cache: the previous chunk's, or None at the start of a stream.
      rule: neighbourhood rule.
      taps: temporal kernel size; 1 needs nothing, the non-causal rules are defined for 3.
      stride: temporal step of the convolution.

    Returns:
      A view for ``convolve`` and the cache for the next chunk: the last ``taps - stride`` frames
      (causal), the last frame (group), None where nothing is remembered.
    """
    if taps == 1:
        return x, None
    # A single image reads the same frame by several taps, which merge_taps adds up.
    if cache is None and x.shape[1] == 1:
        return _lone_frame(x, rule, taps, stride)
    if rule.kind == "causal":
        if cache is None:
            start = rule.border(x[:, :1])
            x = jnp.concatenate([start] * (taps - 1) + [x], axis=1)
        else:
            x = jnp.concatenate([cache.astype(x.dtype), x], axis=1)
        # The next output ends `stride` frames later; of its taps this many lie in this chunk.
        keep = taps - stride
        return x, (x[:, x.shape[1] - keep :] if keep > 0 else None)
    if taps != 3 or stride != 1:
        raise VidlatentError(f"a {rule.kind} convolution has 3 taps and stride 1 in time.")
    if rule.kind == "centred":
        ends = rule.border(x[:, :1]), rule.border_after(x[:, -1:])
        return jnp.concatenate([ends[0], x, ends[1]], axis=1), None
    (left, _, right), cache = shift_frames(x, cache, rule)
    # None, so that merge_taps drops the tap that would read zeros.
    if rule.group == 1 and not rule.replicates_after:
        right = None
    return (left, x, right), cache


def _lone_frame(
    x: jax.Array, rule: TimeRule, taps: int, stride: int
) -> tuple[View, jax.Array | None]:
    """``view_frames`` of a single image: its neighbours are copies of itself or zeros."""
    before = x if rule.padding == "replicate" else None
    if rule.kind == "causal":
        keep = taps - stride
        # The same cache as after any first chunk: the last frames, with the padding at its start.
        past = [rule.border(x)] * (taps - 1) + [x]
        kept = jnp.concatenate(past[len(past) - keep :], axis=1) if keep > 0 else None
        # The same array for every past tap, because merge_taps compares by identity.
        return (before,) * (taps - 1) + (x,), kept
    if taps != 3 or stride != 1:
        raise VidlatentError(f"a {rule.kind} convolution has 3 taps and stride 1 in time.")
    after = x if rule.replicates_after else None
    return (before, x, after), (x if rule.streams else None)


def merge_taps(view: View, kernel: jax.Array) -> tuple[View, jax.Array]:
    """Add up neighbouring taps of a kernel ``[kt, kh, kw, I, O]`` that read the same frames.

    Taps that read zeros are dropped. That saves a third of the work in groups of one, and leaves a
    single 2-D convolution of three for an image. Arrays are compared by identity, so call it before
    anything is done to them.
    """
    if not isinstance(view, tuple):
        return view, kernel
    frames: list[jax.Array] = []
    taps: list[jax.Array] = []
    for number, x in enumerate(view):
        tap = kernel[number : number + 1]
        if x is None:
            continue
        if frames and x is frames[-1]:
            taps[-1] = taps[-1] + tap
        else:
            frames.append(x)
            taps.append(tap)
    if len(frames) == len(view):
        return view, kernel
    return tuple(frames), jnp.concatenate(taps)


def convolve(
    view: View,
    kernel: jax.Array,
    strides: tuple[int, int, int] = (1, 1, 1),
    padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0)),
    groups: int = 1,
    implementation: str = "auto",
) -> jax.Array:
    """Convolve a view: no padding in time, explicit zero padding of H and W.

    Returns:
      ``[B, T', H', W', O]`` for a kernel ``[kt, kh, kw, I / groups, O]``.
    """
    view, kernel = merge_taps(view, kernel)
    if isinstance(view, tuple):
        return conv_frames(
            view, kernel, strides[1:], padding, groups, implementation=implementation
        )
    return conv3d(view, kernel, strides, ((0, 0), *padding), groups, implementation=implementation)
