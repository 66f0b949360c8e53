"""Down and up operations: a learned path beside a shortcut without parameters (DC-AE)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vidlatent.errors import VidlatentError
from vidlatent.kernels.upconv import EVEN, ODD, fold_taps, interleave, subpixel_conv
from vidlatent.layers.conv import Conv
from vidlatent.layers.dense import fan_in
from vidlatent.layers.resample import (
    channel_to_space,
    double_frames,
    down_shortcut,
    lead_frame,
    nearest,
    space_to_channel,
    up_shortcut,
)
from vidlatent.layers.temporal import TimeRule, convolve, merge_taps, shift_frames, view_frames

__all__ = ["Down", "Up"]

_PAD = ((1, 1), (1, 1))


class Down(nn.Module):
    """Halve H and W (and T): convolution plus averaging shortcut (DC-AE; FSVideo 2.2.1).

    Attributes:
      features: output channels.
      time: halve the frame count too; 1 + 2m frames -> 1 + m at the start of a stream, 2m -> m
        later.
      temporal_kernel: 3, or 1 for the image model.
      kind: ``'conv'`` (a strided convolution) or ``'shuffle'`` (a convolution to a fraction of the
        channels, then pixels into channels).
      shortcut: add the shortcut; False only for an image model's first operation.
      order: channel sub-index order of the temporal shuffles.
    """

    features: int
    time: bool = False
    temporal_kernel: int = 3
    kind: str = "conv"
    shortcut: bool = True
    order: str = "hwt"
    rule: TimeRule = TimeRule()
    dtype: Any = jnp.float32
    implementation: str = "auto"

    @nn.compact
    def __call__(self, x: jax.Array, cache: Any = None) -> tuple[jax.Array, Any]:
        """``[B, T, H, W, C] -> [B, T', H/2, W/2, features]`` and the cache."""
        first = cache is None
        strided = self.kind == "conv"
        # A shuffle turns channels into 2x2 pixels, in time into 2x2x2.
        fraction = 1 if strided else (8 if self.time else 4)
        _check_kind(self.kind, "conv")
        if self.features % fraction:
            low = self.features // fraction * fraction
            near = f"{low} or {low + fraction}" if low else f"{fraction}"
            raise VidlatentError(
                f"a shuffle down operation needs widths divisible by {fraction}, and "
                f"{self.features} is not: use {near}."
            )
        step = 2 if strided else 1
        conv = Conv(
            self.features // fraction,
            (self.temporal_kernel, 3, 3),
            (step if self.time else 1, step, step),
            time=self.rule,
            dtype=self.dtype,
            implementation=self.implementation,
            name="conv",
        )
        y, kept = conv(x, None if first else cache["conv"])
        if not strided:
            y = lead_frame(y, first) if self.time else y
            y = space_to_channel(y, self.time, self.order)
        if self.shortcut:
            skip = down_shortcut(x, self.features, time=self.time, order=self.order, first=first)
            y = y + skip.astype(y.dtype)
        return y, {"conv": kept}


class Up(nn.Module):
    """Double H and W (and T): nearest or shuffle, convolution, repeating shortcut.

    Attributes:
      features: output channels.
      time: double the frame count too; 1 + m frames -> 1 + 2m at the start of a stream, m -> 2m
        later.
      temporal_kernel: 3, or 1 for the image model.
      kind: ``'interpolate'`` (nearest, then convolution) or ``'shuffle'`` (convolution to more
        channels, then channels into pixels).
      form: ``'nearest'`` convolves the doubled tensor; ``'subpixel'`` computes the same without
        ever making it (needs replicate padding in time when time is doubled). The
        caches of the two forms differ.
      shortcut, order: as in ``Down``.
      rule: neighbourhood rule at the output's frame rate.
    """

    features: int
    time: bool = False
    temporal_kernel: int = 3
    kind: str = "interpolate"
    form: str = "nearest"
    shortcut: bool = True
    order: str = "hwt"
    rule: TimeRule = TimeRule()
    dtype: Any = jnp.float32
    implementation: str = "auto"

    @nn.compact
    def __call__(self, x: jax.Array, cache: Any = None) -> tuple[jax.Array, Any]:
        """``[B, T, H, W, C] -> [B, T', 2H, 2W, features]`` and the cache."""
        first = cache is None
        kept = None if first else cache["conv"]
        x = x.astype(self.dtype)
        factor = 1 if self.kind == "interpolate" else (8 if self.time else 4)
        _check_kind(self.kind, "interpolate")
        # Bare weights, because each form convolves with them in its own way.
        weights = _UpWeights(
            self.features * factor, (self.temporal_kernel, 3, 3), self.dtype, name="conv"
        )
        kernel, bias = weights(x.shape[-1])
        if self.kind == "shuffle":
            # This convolution runs before time is doubled.
            view, kept = view_frames(x, kept, self._low_rate_rule(), self.temporal_kernel)
            y = convolve(view, kernel, (1, 1, 1), _PAD, 1, self.implementation) + bias
            y = channel_to_space(y, self.time, self.order)
            # Of frame 0 the first copy is dropped: 1 + m frames become 1 + 2m.
            y = y[:, 1:] if self.time and first else y
        elif self.form == "subpixel" and self.time:
            y, kept = self._subpixel_in_time(x, kept, kernel)
            y = y + bias
        else:
            frames = double_frames(x, first) if self.time else x
            # The cache is taken before the spatial doubling: a quarter of the memory.
            view, kept = view_frames(frames, kept, self.rule, self.temporal_kernel)
            y = self._double_space(view, kernel) + bias
        if self.shortcut:
            skip = up_shortcut(x, self.features, time=self.time, order=self.order, first=first)
            y = y + skip
        return y, {"conv": kept}

    def _low_rate_rule(self) -> TimeRule:
        """The rule at the input's frame rate."""
        if not self.time or self.rule.kind != "group":
            return self.rule
        return TimeRule("group", max(1, self.rule.group // 2), self.rule.padding)

    def _double_space(self, view: Any, kernel: jax.Array) -> jax.Array:
        view, kernel = merge_taps(view, kernel)
        if self.form == "subpixel":
            return subpixel_conv(
                lambda part, pad: convolve(view, part, (1, 1, 1), pad, 1, self.implementation),
                kernel,
            )
        if self.form != "nearest":
            raise VidlatentError(f"up form {self.form!r}: use 'nearest' or 'subpixel'.")
        view = jax.tree.map(nearest, view)
        return convolve(view, kernel, (1, 1, 1), _PAD, 1, self.implementation)

    def _subpixel_in_time(self, x, kept, kernel):
        """Frames 2j-1 and 2j of latent frame j, each with two temporal taps."""
        rule = self._low_rate_rule()
        if rule.padding != "replicate":
            raise VidlatentError("up form 'subpixel' needs time_padding 'replicate'.")
        # Left and right neighbours at the input's frame rate; two of the three taps of an output
        # frame always read the same one of them.
        (left, centre, right), new = shift_frames(x, kept, rule)
        if rule.kind == "causal":
            parts = ((ODD, (left, centre)), (EVEN, (left, centre)))
        else:
            parts = ((EVEN, (left, centre)), (ODD, (centre, right)))
        odd, even = (self._double_space(view, fold_taps(kernel, phase, 0)) for phase, view in parts)
        y = interleave(odd, even, axis=1)
        # The first copy of frame 0, as in double_frames.
        return (y[:, 1:] if kept is None else y), new


class _UpWeights(nn.Module):
    """Kernel and bias of an up convolution, in the compute dtype."""

    features: int
    kernel: tuple[int, int, int]
    dtype: Any

    @nn.compact
    def __call__(self, channels: int) -> tuple[jax.Array, jax.Array]:
        shape = (*self.kernel, channels, self.features)
        kernel = self.param("kernel", fan_in, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        return kernel.astype(self.dtype), bias.astype(self.dtype)


def _check_kind(kind: str, plain: str) -> None:
    if kind not in (plain, "shuffle"):
        raise VidlatentError(f"resampling kind {kind!r}: use {plain!r} or 'shuffle'.")
