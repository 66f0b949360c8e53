"""Layers of discriminators. State kept between steps goes in and out as plain values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from vidlatent.errors import VidlatentError
from vidlatent.kernels.conv3d import conv3d
from vidlatent.layers.dense import fan_in
from vidlatent.layers.norms import GroupNorm, apply_affine
from vidlatent.parallel.sharding import constrain, spreads
from vidlatent.registry import did_you_mean

__all__ = [
    "BatchNorm",
    "DiscriminatorConv",
    "FrameGroupNorm",
    "check_norm",
    "leaky_relu",
    "shrink",
    "spectral_start",
]

Stats = Mapping[str, Any]


def leaky_relu(x: jax.Array) -> jax.Array:
    """Slope 0.2 below zero."""
    return jax.nn.leaky_relu(x, 0.2)


def check_norm(norm: str, known: Sequence[str]) -> None:
    """Raise unless the discriminator has this norm."""
    if norm not in known:
        raise VidlatentError(
            f"config.discriminator.model.norm {norm!r}: {did_you_mean(norm, known)}"
        )


def shrink(x: jax.Array, taps: Sequence[int]) -> jax.Array:
    """Halve T, H and W (rounding up) by a short filter along each; edges are repeated.

    With taps ``(1, 1)`` this is average pooling that counts only the frames and pixels that exist;
    ``(1, 3, 3, 1)`` is StyleGAN2's blur. A single frame stays what it is.

    Args:
      x: ``[B, T, H, W, C]``.
      taps: filter, normalised here; an even number of them.
    """
    for axis in (1, 2, 3):
        length = x.shape[axis]
        if length == 1:
            continue
        side = len(taps) // 2 - 1
        pads = [(0, 0)] * x.ndim
        pads[axis] = (side, side + length % 2)
        padded = jnp.pad(x, pads, mode="edge")
        outputs = -(-length // 2)
        x = sum(
            lax.slice_in_dim(padded, k, k + 2 * outputs - 1, 2, axis) * (tap / sum(taps))
            for k, tap in enumerate(taps)
        )
    return x


class DiscriminatorConv(nn.Module):
    """Convolution with given zero padding; optionally of spectral norm one.

    Attributes:
      kernel, strides, padding: over T, H, W; the padding counts for both sides.
      spectral: divide the kernel by its largest singular value, followed by one step of power
        iteration in every training call (Miyato et al. 2018).
    """

    features: int
    kernel: tuple[int, int, int]
    strides: tuple[int, int, int] = (1, 1, 1)
    padding: tuple[int, int, int] = (0, 0, 0)
    use_bias: bool = True
    spectral: bool = False
    dtype: Any = jnp.float32
    kernel_init: Callable[..., jax.Array] = fan_in

    @nn.compact
    def __call__(self, x: jax.Array, stats: Stats, train: bool) -> tuple[jax.Array, Stats]:
        """``[B, T, H, W, I] -> [B, T', H', W', O]`` and the statistics after this call."""
        shape = (*self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        if self.spectral:
            kernel, stats = _spectral(kernel, stats, train)
        # Rows are spread over devices where those before and after the layer can be: XLA gets the
        # gradient of a convolution wrong that is split on one side alone (jax 0.10.2).
        before, taps, step, pad = x.shape[2], self.kernel[1], self.strides[1], self.padding[1]
        after = (before + 2 * pad - taps) // step + 1
        rows = "height" if spreads("height", before, after) else "width"
        axes = ("batch", "time", rows, "width", "channel")
        x = constrain(x.astype(self.dtype), axes)
        pads = tuple((p, p) for p in self.padding)
        y = constrain(conv3d(x, kernel.astype(self.dtype), self.strides, pads), axes)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            y = y + bias.astype(self.dtype)
        return y, stats


def spectral_start(features: int) -> dict[str, jax.Array]:
    """Start of a kernel's power iteration: a fixed direction."""
    return {"u": _unit(jax.random.normal(jax.random.key(0), (features,), jnp.float32))}


def _spectral(kernel: jax.Array, stats: Stats, train: bool) -> tuple[jax.Array, Stats]:
    matrix = kernel.reshape(-1, kernel.shape[-1])
    fixed, u = lax.stop_gradient((matrix, stats["u"]))
    v = _unit(fixed @ u)
    if train:
        u = _unit(v @ fixed)
    return kernel / (v @ matrix @ u), {"u": u}


def _unit(x: jax.Array) -> jax.Array:
    return x * lax.rsqrt(jnp.maximum(jnp.square(x).sum(), 1e-24))


class BatchNorm(nn.Module):
    """Batch normalisation whose running statistics are an argument and a result.

    In training the statistics are those of the whole batch over B, T, H and W, of all devices
    where the batch is spread over several; the running variance takes the unbiased one.

    Attributes:
      momentum: share of the new batch in the running statistics.
    """

    eps: float = 1e-5
    momentum: float = 0.1

    @nn.compact
    def __call__(self, x: jax.Array, stats: Stats, train: bool) -> tuple[jax.Array, Stats]:
        """``[B, T, H, W, C]``, ``{"mean", "var"}`` ``[C]`` -> the same two."""
        shape = (x.shape[-1],)
        scale = self.param("scale", _around_one, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        h = x.astype(jnp.float32)
        if train:
            mean = h.mean(axis=(0, 1, 2, 3))
            variance = jnp.square(h - mean).mean(axis=(0, 1, 2, 3))
            count = math.prod(x.shape[:-1])
            unbiased = variance * (count / max(count - 1, 1))
            seen = lax.stop_gradient({"mean": mean, "var": unbiased})
            stats = jax.tree.map(lambda old, new: old + self.momentum * (new - old), stats, seen)
        else:
            mean, variance = stats["mean"], stats["var"]
        h = (h - mean) * (scale * lax.rsqrt(variance + self.eps)) + bias
        return h.astype(x.dtype), stats


def _around_one(key: jax.Array, shape: Sequence[int], dtype: Any) -> jax.Array:
    return 1.0 + 0.02 * jax.random.normal(key, shape, dtype)


class FrameGroupNorm(nn.Module):
    """Group norm of each frame by itself; the groups shrink where they do not divide."""

    groups: int = 32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[B, T, H, W, C] -> [B, T, H, W, C]``."""
        groups = math.gcd(self.groups, x.shape[-1])
        return apply_affine(x, GroupNorm(groups, kind="group", name="affine")(x), x.dtype)
