"""Layers of discriminators. Their running statistics are explicit arguments and results."""

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
    """Leaky ReLU with slope 0.2 below zero, as in pix2pix and StyleGAN2."""
    return jax.nn.leaky_relu(x, 0.2)


def check_norm(norm: str, known: Sequence[str]) -> None:
    """Raise ``VidlatentError`` if ``norm`` is not one of ``known``."""
    if norm not in known:
        raise VidlatentError(
            f"config.discriminator.model.norm {norm!r}: {did_you_mean(norm, known)}"
        )


def shrink(x: jax.Array, taps: Sequence[int]) -> jax.Array:
    """Halve T, H and W (rounding up) with a short filter along each axis; edges are replicated.

    Taps ``(1, 1)`` give average pooling without any padding values in the averages;
    ``(1, 3, 3, 1)`` is StyleGAN2's blur. An axis of length 1, such as a single frame, is unchanged.

    Args:
      x: ``[B, T, H, W, C]``.
      taps: an even number of filter taps; they are normalised to sum 1.
    """
    for axis in (1, 2, 3):
        length = x.shape[axis]
        if length == 1:
            continue
        side = len(taps) // 2 - 1
        pads = [(0, 0)] * x.ndim
        # Odd lengths get one more at the end, so that the last frame or row counts too.
        pads[axis] = (side, side + length % 2)
        # Zeros would pull the averages at the border towards 0.
        padded = jnp.pad(x, pads, mode="edge")
        outputs = -(-length // 2)
        x = sum(
            lax.slice_in_dim(padded, k, k + 2 * outputs - 1, 2, axis) * (tap / sum(taps))
            for k, tap in enumerate(taps)
        )
    return x


class DiscriminatorConv(nn.Module):
    """3-D convolution with explicit zero padding and, optionally, spectral normalisation.

    Attributes:
      kernel, strides, padding: over T, H, W; the padding is added on both sides.
      spectral: divide the kernel by an estimate of its largest singular value, which one step of
        power iteration improves in every training call (Miyato et al. 2018).
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
            kernel, stats = _normalize_spectrally(kernel, stats, train)
        # Shard the height only if it divides both before and after the layer: XLA (jax 0.10.2)
        # computes a wrong gradient for a convolution that is sharded on one side only.
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
    """Start of the power iteration for a kernel with ``features`` outputs: a fixed unit vector."""
    return {"u": _scale_to_unit(jax.random.normal(jax.random.key(0), (features,), jnp.float32))}


def _normalize_spectrally(kernel: jax.Array, stats: Stats, train: bool) -> tuple[jax.Array, Stats]:
    # [kt, kh, kw, I, O] -> [kt kh kw I, O]
    matrix = kernel.reshape(-1, kernel.shape[-1])
    fixed, u = lax.stop_gradient((matrix, stats["u"]))
    v = _scale_to_unit(fixed @ u)
    if train:
        u = _scale_to_unit(v @ fixed)
    # u and v are constants: the gradient flows through the kernel alone, as in PyTorch.
    return kernel / (v @ matrix @ u), {"u": u}


def _scale_to_unit(x: jax.Array) -> jax.Array:
    return x * lax.rsqrt(jnp.maximum(jnp.square(x).sum(), 1e-24))


class BatchNorm(nn.Module):
    """Batch normalisation with running statistics as explicit argument and result.

    In training it normalises with the statistics of the global batch over B, T, H and W, on all
    devices. The running variance averages the unbiased variance, as PyTorch's does.

    Attributes:
      momentum: weight of the new batch in the running statistics.
    """

    eps: float = 1e-5
    momentum: float = 0.1

    @nn.compact
    def __call__(self, x: jax.Array, stats: Stats, train: bool) -> tuple[jax.Array, Stats]:
        """``[B, T, H, W, C]`` and statistics ``{"mean", "var"}``, each ``[C]`` -> both, updated."""
        shape = (x.shape[-1],)
        scale = self.param("scale", _init_around_one, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        # float32: a mean over a whole batch would lose its digits in bfloat16.
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


def _init_around_one(key: jax.Array, shape: Sequence[int], dtype: Any) -> jax.Array:
    # pix2pix draws scales from N(1, 0.02).
    return 1.0 + 0.02 * jax.random.normal(key, shape, dtype)


class FrameGroupNorm(nn.Module):
    """Group norm of each frame separately.

    If ``groups`` does not divide the channels, the greatest common divisor is used.
    """

    groups: int = 32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[B, T, H, W, C] -> [B, T, H, W, C]``."""
        groups = math.gcd(self.groups, x.shape[-1])
        return apply_affine(x, GroupNorm(groups, kind="group", name="affine")(x), x.dtype)
