"""Convolution and pooling as in published classifiers, with every padding as explicit numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from vidlatent.layers.dense import exact

__all__ = ["PlainConv", "max_pool", "same_padding"]

Padding = Sequence[tuple[int, int]]
_he = nn.initializers.variance_scaling(2.0, "fan_in", "uniform")


def same_padding(
    size: Sequence[int], window: Sequence[int], strides: Sequence[int]
) -> list[tuple[int, int]]:
    """Padding of TensorFlow's ``SAME``: ``ceil(size / stride)`` outputs, an odd zero at the end."""
    pads = []
    for length, taps, step in zip(size, window, strides, strict=True):
        total = max((-(-length // step) - 1) * step + taps - length, 0)
        pads.append((total // 2, total - total // 2))
    return pads


class PlainConv(nn.Module):
    """Convolution of images or video with given zero padding.

    The kernel always has a time axis, ``[kt, kh, kw, I, O]``; images use its only frame.

    Attributes:
      features: output channels.
      kernel, strides, padding: over T, H and W.
    """

    features: int
    kernel: tuple[int, int, int]
    strides: tuple[int, int, int] = (1, 1, 1)
    padding: Padding = ((0, 0), (0, 0), (0, 0))
    use_bias: bool = True
    dtype: Any = jnp.float32
    kernel_init: Callable[..., jax.Array] = _he

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[N, H, W, I] -> [N, H', W', O]`` or ``[B, T, H, W, I] -> [B, T', H', W', O]``."""
        shape = (*self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32).astype(self.dtype)
        # 1 for images, which lack the time axis, else 0.
        skip = 5 - x.ndim
        axes = "THW"[skip:]
        y = lax.conv_general_dilated(
            x.astype(self.dtype),
            # Images use the only frame of a kernel [1, kh, kw, I, O].
            kernel[0] if skip else kernel,
            self.strides[skip:],
            list(self.padding[skip:]),
            dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C"),
            precision=exact(self.dtype),
        )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            y = y + bias.astype(self.dtype)
        return y


def max_pool(
    x: jax.Array, window: Sequence[int], strides: Sequence[int], padding: Padding | None = None
) -> jax.Array:
    """Max pooling of ``[N, ..., C]`` over the axes between the first and the last.

    Padded positions are never the maximum.
    """
    pads = [(0, 0)] * len(window) if padding is None else list(padding)
    return lax.reduce_window(
        x,
        # The identity of max, so that padding never wins.
        -jnp.inf,
        lax.max,
        (1, *window, 1),
        (1, *strides, 1),
        [(0, 0), *pads, (0, 0)],
    )
