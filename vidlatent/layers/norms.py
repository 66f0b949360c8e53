"""Norms: over the channels of a position, over a frame, or by fixed statistics.

Statistics are float32 whatever the compute dtype. A group norm is handed out as an affine map, a
few numbers per frame and channel, so that a map can be normalised piece by piece with the
statistics of the whole.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from vidlatent.errors import VidlatentError
from vidlatent.kernels.norms import layer_norm
from vidlatent.spec import check_parts

__all__ = [
    "Affine",
    "ChannelNorm",
    "FixedBatchNorm",
    "GroupNorm",
    "LayerNorm",
    "apply_affine",
    "group_affine",
    "modulate",
]

# Scale and shift, float32, broadcastable to [B, T, H, W, C].
Affine = tuple[jax.Array, jax.Array]

_KINDS = ("rms", "std_no_shift", "group")
_AXES = {"hw": (2, 3), "thw": (1, 2, 3)}


def modulate(x: jax.Array, scale: jax.Array, shift: jax.Array, eps: float = 1e-6) -> jax.Array:
    """``layer_norm(x) * (1 + scale) + shift``: ``[B, N, D]`` float32 (DiT's adaLN).

    Scale and shift are ``[B, 1, D]``.
    """
    return layer_norm(x, eps) * (1 + scale) + shift


class LayerNorm(nn.Module):
    """Layer norm with scale and bias, its statistics in float32."""

    eps: float = 1e-6
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[..., C] -> [..., C]``."""
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        return (layer_norm(x, self.eps) * scale + bias).astype(self.dtype)


class ChannelNorm(nn.Module):
    """RMS over channels at each position ("pixel norm"), with scale and bias.

    No mean is subtracted and nothing is pooled over space or time, so a crop or a chunk sees the
    statistics of the whole. Statistics are float32.

    Attributes:
      eps: added to the mean square.
      affine: learn a scale and a bias per channel.
      use_bias: False for a scale alone.
      scale_init: starting value of the scale; at the end of a residual branch 0 makes the block
        start as the identity.
    """

    eps: float = 1e-5
    affine: bool = True
    scale_init: float = 1.0
    dtype: Any = jnp.float32
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[..., C] -> [..., C]``."""
        # Squares of bfloat16 would lose most of their digits; float64 stays as it is.
        h = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        h = h * lax.rsqrt(jnp.mean(jnp.square(h), axis=-1, keepdims=True) + self.eps)
        if self.affine:
            shape = (x.shape[-1],)
            init = nn.initializers.constant(self.scale_init)
            h = h * self.param("scale", init, shape, jnp.float32)
            if self.use_bias:
                h = h + self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        return h.astype(self.dtype)


class FixedBatchNorm(nn.Module):
    """Batch norm in inference: an affine map per channel from stored statistics.

    For released models that contain it. The statistics receive no gradient, so fine-tuning changes
    only the scale and the bias.

    Attributes:
      eps: added to the variance.
      scale_init: starting value of the scale.
    """

    eps: float = 1e-5
    scale_init: float = 1.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[..., C] -> [..., C]``."""

        def per_channel(name, value):
            init = nn.initializers.constant(value)
            return self.param(name, init, (x.shape[-1],), jnp.float32)

        mean = lax.stop_gradient(per_channel("mean", 0.0))
        variance = lax.stop_gradient(per_channel("var", 1.0))
        scale = per_channel("scale", self.scale_init) * lax.rsqrt(variance + self.eps)
        h = (x.astype(jnp.float32) - mean) * scale + per_channel("bias", 0.0)
        return h.astype(self.dtype)


def group_affine(
    x: jax.Array, groups: int, eps: float = 1e-6, kind: str = "rms", axes: str = "hw"
) -> Affine:
    """The coefficients that normalise ``x``, from float32 statistics.

    Args:
      x: ``[B, T, H, W, C]``.
      groups: channel groups; must divide C.
      eps: added to the second moment.
      kind: ``'rms'`` (``x / sqrt(mean(x^2))``, no mean subtracted), ``'std_no_shift'`` (divides by
        the standard deviation but keeps the mean) or ``'group'`` (the ordinary group norm).
      axes: ``'hw'`` (each frame by itself) or ``'thw'`` (all frames together: later frames then
        change earlier ones).

    Returns:
      Scale and shift ``[B, T, 1, 1, C]`` (``[B, 1, 1, 1, C]`` for ``'thw'``).

    Raises:
      VidlatentError: unknown kind or axes, or groups that do not divide the channels.
    """
    channels = x.shape[-1]
    if kind not in _KINDS or axes not in _AXES:
        raise VidlatentError(
            f"group norm {kind!r} over {axes!r}: use {', '.join(_KINDS)} over 'hw' or 'thw'."
        )
    check_parts("the number of norm groups", groups, "the width", channels)
    # float32 or more: float64 stays as it is.
    h = x.astype(jnp.promote_types(x.dtype, jnp.float32))

    def mean_of(values):
        """Means over a group, at each of its channels: ``[B, T, 1, 1, C]``."""
        # Means by channel first, so that only these few numbers are reshaped into groups: XLA would
        # copy the whole map to reshape it.
        small = jnp.mean(values, axis=_AXES[axes], keepdims=True)
        parts = jnp.mean(small.reshape(*small.shape[:-1], groups, -1), axis=-1)
        return jnp.repeat(parts, channels // groups, axis=-1)

    if kind == "rms":
        scale = lax.rsqrt(mean_of(jnp.square(h)) + eps)
        return scale, jnp.zeros_like(scale)
    mean = mean_of(h)
    # Not mean(x^2) - mean^2, which loses digits where the mean is large.
    scale = lax.rsqrt(mean_of(jnp.square(h - mean)) + eps)
    return scale, -mean * scale if kind == "group" else jnp.zeros_like(scale)


def apply_affine(x: jax.Array, affine: Affine, dtype: Any = None) -> jax.Array:
    """``x * scale + shift`` ``[B, T, H, W, C]``, computed in the coefficients' dtype."""
    scale, shift = affine
    return (x.astype(scale.dtype) * scale + shift).astype(dtype or x.dtype)


class GroupNorm(nn.Module):
    """``group_affine`` with a learned scale and bias per channel.

    Attributes:
      groups, eps, kind, axes: as in ``group_affine``.
      affine: learn scale (from 1) and bias (from 0).
    """

    groups: int = 32
    eps: float = 1e-6
    kind: str = "rms"
    axes: str = "hw"
    affine: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> Affine:
        """Coefficients for ``[B, T, H, W, C]``; ``apply_affine`` applies them."""
        scale, shift = group_affine(x, self.groups, self.eps, self.kind, self.axes)
        if not self.affine:
            return scale, shift
        gamma = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        beta = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        # (x * scale + shift) * gamma + beta, as one map.
        return scale * gamma, shift * gamma + beta
