"""Residual blocks of the DC-AE family: ``(x, cache) -> (x, cache)``."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vidlatent.errors import VidlatentError
from vidlatent.layers.conv import Conv
from vidlatent.layers.dense import Pointwise
from vidlatent.layers.norms import ChannelNorm, FixedBatchNorm
from vidlatent.layers.temporal import TimeRule
from vidlatent.models.tokenizers.fsvideo.linear_attention import (
    MultiScaleLinearAttention,
)
from vidlatent.models.tokenizers.fsvideo.noise import NoiseField, normal_map

__all__ = ["EfficientViTBlock", "GatedConv", "ResBlock"]


_ACTIVATIONS = {"silu": nn.silu, "relu": nn.relu}


class ResBlock(nn.Module):
    """``x + norm(conv2(silu(conv1(x))))``: the norm comes last, nothing after the sum.

    Attributes:
      norm_kind: ``'rms'`` (over channels) or ``'batch'`` (fixed statistics).
      activation: ``'silu'`` or ``'relu'``.
      noise_weight: scale of the noise added after each convolution (FSVideo 2.2.3).
    """

    temporal_kernel: int = 3
    rule: TimeRule = TimeRule()
    norm_eps: float = 1e-5
    norm_affine: bool = True
    norm_scale: float = 1.0
    dtype: Any = jnp.float32
    implementation: str = "auto"
    norm_kind: str = "rms"
    activation: str = "silu"
    noise_weight: float = 0.0

    @nn.compact
    def __call__(
        self, x: jax.Array, cache: Any = None, noise: NoiseField | None = None
    ) -> tuple[jax.Array, Any]:
        """``[B, T, H, W, C] -> [B, T, H, W, C]`` and ``{'conv1': ..., 'conv2': ...}``.

        ``noise`` says where in the frame ``x`` lies and by which key noise is drawn; None: none.
        """
        kept = {"conv1": None, "conv2": None} if cache is None else cache
        common = {
            "features": x.shape[-1],
            "kernel": (self.temporal_kernel, 3, 3),
            "time": self.rule,
            "dtype": self.dtype,
            "implementation": self.implementation,
        }
        if self.activation not in _ACTIVATIONS:
            raise VidlatentError(f"activation {self.activation!r}: use 'silu' or 'relu'.")
        h, first = Conv(**common, name="conv1")(x, kept["conv1"])
        h = _ACTIVATIONS[self.activation](self._with_noise(h, noise, "conv1"))
        # No bias, as published: the norm that follows has one.
        h, second = Conv(**common, use_bias=False, name="conv2")(h, kept["conv2"])
        h = self._normalise(self._with_noise(h, noise, "conv2"))
        return x + h, {"conv1": first, "conv2": second}

    def _with_noise(self, h: jax.Array, noise: NoiseField | None, site: str) -> jax.Array:
        if noise is None or not self.noise_weight:
            return h
        # The names of block and convolution make the maps independent; all channels and frames
        # share one, since noise that changes with time would flicker.
        values = normal_map(noise, f"{self.name}/{site}", *h.shape[2:4])
        return h + (self.noise_weight * values).astype(h.dtype)

    def _normalise(self, h: jax.Array) -> jax.Array:
        if self.norm_kind == "batch":
            return FixedBatchNorm(1e-5, self.norm_scale, self.dtype, name="norm")(h)
        if self.norm_kind != "rms":
            raise VidlatentError(
                f"norm {self.norm_kind!r} of a residual block: use 'rms' or 'batch'."
            )
        return ChannelNorm(
            self.norm_eps, self.norm_affine, self.norm_scale, self.dtype, name="norm"
        )(h)


class GatedConv(nn.Module):
    """Gated inverted bottleneck (GLUMBConv): widen, mix neighbours depthwise, gate, narrow.

    Its depthwise convolution is the only place where the attention stages mix time.
    """

    temporal_kernel: int = 3
    expand: int = 4
    rule: TimeRule = TimeRule()
    norm_eps: float = 1e-5
    norm_affine: bool = True
    norm_scale: float = 1.0
    dtype: Any = jnp.float32
    implementation: str = "auto"

    @nn.compact
    def __call__(self, x: jax.Array, cache: Any = None) -> tuple[jax.Array, Any]:
        channels = x.shape[-1]
        # Twice the hidden width, because half of the channels are the gate.
        wide = 2 * self.expand * channels
        h = nn.silu(Pointwise(wide, dtype=self.dtype, name="conv_inverted")(x))
        conv = Conv(
            wide,
            (self.temporal_kernel, 3, 3),
            depthwise=True,
            time=self.rule,
            dtype=self.dtype,
            implementation=self.implementation,
            name="conv_depth",
        )
        h, kept = conv(h, None if cache is None else cache["conv_depth"])
        value, gate = jnp.split(h, 2, axis=-1)
        h = value * nn.silu(gate)
        h = Pointwise(channels, use_bias=False, dtype=self.dtype, name="conv_point")(h)
        h = ChannelNorm(self.norm_eps, self.norm_affine, self.norm_scale, self.dtype, name="norm")(
            h
        )
        return x + h, {"conv_depth": kept}


class EfficientViTBlock(nn.Module):
    """Linear attention inside each frame, then the gated convolution; each with its residual."""

    head_dim: int = 32
    kernels: tuple[int, ...] = (5,)
    temporal_kernel: int = 3
    rule: TimeRule = TimeRule()
    norm_eps: float = 1e-5
    norm_affine: bool = True
    norm_scale: float = 1.0
    dtype: Any = jnp.float32
    implementation: str = "auto"

    @nn.compact
    def __call__(self, x: jax.Array, cache: Any = None) -> tuple[jax.Array, Any]:
        """``[B, T, H, W, C] -> [B, T, H, W, C]`` and ``{'conv_out': ...}``."""
        common = {
            "norm_eps": self.norm_eps,
            "norm_affine": self.norm_affine,
            "norm_scale": self.norm_scale,
            "dtype": self.dtype,
            "implementation": self.implementation,
        }
        x = MultiScaleLinearAttention(self.head_dim, self.kernels, **common, name="attn")(x)
        gated = GatedConv(self.temporal_kernel, rule=self.rule, **common, name="conv_out")
        x, kept = gated(x, None if cache is None else cache["conv_out"])
        return x, {"conv_out": kept}
