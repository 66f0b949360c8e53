"""Convolution over time and space. Parameters are float32; ``dtype`` is the compute dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vidlatent.layers.dense import fan_in
from vidlatent.layers.temporal import TimeRule, convolve, view_frames
from vidlatent.parallel.sharding import gathered

__all__ = ["Conv"]

Dtype = Any


class Conv(nn.Module):
    """Convolution over T, H and W; zero padding of half the kernel in space.

    Attributes:
      features: output channels.
      kernel: ``(kt, kh, kw)``, odd in space.
      strides: ``(st, sh, sw)``. A strided output is centred on input ``2i`` in space (padding 1
        on both sides) and ends at input frame ``2j`` in time.
      depthwise: one filter per channel (``features`` equal to the input's channels).
      time: neighbourhood rule when ``kt > 1``.
      implementation: form of ``kernels.conv3d``.
    """

    features: int
    kernel: tuple[int, int, int] = (3, 3, 3)
    strides: tuple[int, int, int] = (1, 1, 1)
    depthwise: bool = False
    use_bias: bool = True
    time: TimeRule = TimeRule()
    dtype: Dtype = jnp.float32
    implementation: str = "auto"
    kernel_init: Callable[..., jax.Array] = fan_in

    @nn.compact
    def __call__(
        self, x: jax.Array, cache: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array | None]:
        """``[B, T, H, W, I] -> [B, T', H', W', O]`` and the cache of the last input frames."""
        group_in = 1 if self.depthwise else x.shape[-1]
        groups = x.shape[-1] if self.depthwise else 1
        shape = (*self.kernel, group_in, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        view, cache = view_frames(
            x.astype(self.dtype), cache, self.time, self.kernel[0], self.strides[0]
        )
        # Explicit numbers: 'SAME' pads a strided convolution by its size, so that a crop of the
        # image would be convolved on another grid.
        padding = tuple((k // 2, k // 2) for k in self.kernel[1:])
        kernel = kernel.astype(self.dtype)
        if not self.depthwise:
            # Left to XLA's partitioner, small frames give wrong values (``parallel.sharding``).
            kernel = gathered(kernel, "/".join((*self.path, "kernel")), x.shape[0])
        y = convolve(view, kernel, self.strides, padding, groups, self.implementation)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            y = y + bias.astype(self.dtype)
        return y, cache
