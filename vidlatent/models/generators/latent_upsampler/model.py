"""The latent upsampler of FSVideo (2.4.1), and LTX-Video's, on which it is modelled.

A projection, a pixel shuffle, then residual blocks at the full size. LTX-Video puts half of the
blocks before the shuffle; FSVideo puts all of them behind it and reports better results.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vidlatent.errors import VidlatentError
from vidlatent.layers.conv import Conv
from vidlatent.layers.norms import ChannelNorm, GroupNorm, apply_affine
from vidlatent.layers.resample import channel_to_space
from vidlatent.layers.temporal import TimeRule
from vidlatent.models.build import make_module
from vidlatent.parallel.sharding import constrain
from vidlatent.spec import check_parts, check_shape

__all__ = ["FACTOR", "LatentUpsampler", "build_latent_upsampler"]

FACTOR = 2  # of height and width
_NORMS = ("group", "pixel")
_PADDINGS = ("zeros", "replicate")
_AXES = ("batch", "time", "height", "width", "channel")


def build_latent_upsampler(fields: Mapping[str, Any], dtype: Any) -> nn.Module:
    return make_module(LatentUpsampler, fields, dtype, section="config.generator")


class LatentUpsampler(nn.Module):
    """Standardised latent ``[B, t, h, w, c]`` -> the same clip's at twice the size.

    The defaults are the published order with LTX-Video's width, norm and padding, which FSVideo
    does not state: 239.5 M parameters.

    Attributes:
      latent_channels: channels ``c`` of both latents.
      width: channels inside.
      blocks: residual blocks behind the pixel shuffle.
      blocks_before: residual blocks before it; 0 in FSVideo, LTX-Video has half of all there.
      norm: ``'group'`` pools over time and space, so that crops and other lengths see other
        statistics; ``'pixel'`` (RMS over channels, as in FSAE) does not.
      groups: of the group norm.
      eps: of the norms.
      padding: what convolutions in time meet at the ends, ``'zeros'`` or ``'replicate'``.
      adain_factor: how far each channel's mean and deviation are drawn to those of the input, 0 to
        1 (LTX-Video's step after upsampling); 0 leaves it out.
      remat: recompute each block in the backward pass.
    """

    latent_channels: int = 128
    width: int = 512
    blocks: int = 16
    blocks_before: int = 0
    norm: str = "group"
    groups: int = 32
    eps: float = 1e-5
    padding: str = "zeros"
    adain_factor: float = 0.0
    remat: bool = True
    dtype: Any = jnp.float32

    def _check(self) -> None:
        if self.norm not in _NORMS or self.padding not in _PADDINGS:
            raise VidlatentError(
                f"config.generator.norm {self.norm!r} is one of {_NORMS}, config.generator.padding "
                f"{self.padding!r} one of {_PADDINGS}."
            )
        if self.norm == "group":
            check_parts("config.generator.groups", self.groups, "width", self.width)

    @nn.compact
    def __call__(self, latent: jax.Array) -> jax.Array:
        """``[B, t, h, w, c] -> [B, t, 2 h, 2 w, c]`` float32, both standardised."""
        self._check()
        check_shape(latent, "B t h w c", c=self.latent_channels)
        rule = TimeRule("centred", padding=self.padding)
        block = nn.remat(_Block) if self.remat else _Block
        style = {"norm": self.norm, "groups": self.groups, "eps": self.eps, "time": rule}

        def run(kind: str, count: int, x: jax.Array) -> jax.Array:
            for i in range(count):
                x = block(self.width, **style, dtype=self.dtype, name=f"{kind}_{i}")(x)
            return x

        latent = constrain(latent, _AXES)
        x, _ = Conv(self.width, time=rule, dtype=self.dtype, name="initial_conv")(latent)
        x = nn.silu(_normalise(x, "initial_norm", self.norm, self.groups, self.eps, self.dtype))
        x = run("blocks_before", self.blocks_before, constrain(x, _AXES))
        x, _ = Conv(4 * self.width, (1, 3, 3), dtype=self.dtype, name="shuffle_conv")(x)
        # The channel is the slowest index, then the row and the column of the 2 x 2.
        x = constrain(channel_to_space(x), _AXES)
        x = run("blocks", self.blocks, x)
        # float32: latents are compared, stored and handed on.
        out, _ = Conv(self.latent_channels, time=rule, name="final_conv")(x.astype(jnp.float32))
        return match_statistics(out, latent, self.adain_factor)


class _Block(nn.Module):
    """conv - norm - SiLU - conv - norm, and SiLU after the sum with the input."""

    width: int
    norm: str
    groups: int
    eps: float
    time: TimeRule
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        norm = (self.norm, self.groups, self.eps, self.dtype)
        h, _ = Conv(self.width, time=self.time, dtype=self.dtype, name="conv1")(x)
        h = nn.silu(_normalise(h, "norm1", *norm))
        h, _ = Conv(self.width, time=self.time, dtype=self.dtype, name="conv2")(h)
        return constrain(nn.silu(x + _normalise(h, "norm2", *norm)), _AXES)


def _normalise(
    x: jax.Array, name: str, norm: str, groups: int, eps: float, dtype: Any
) -> jax.Array:
    if norm == "pixel":
        return ChannelNorm(eps, dtype=dtype, name=name)(x)
    affine = GroupNorm(groups, eps, kind="group", axes="thw", name=name)(x)
    return apply_affine(x, affine, dtype)


def match_statistics(x: jax.Array, reference: jax.Array, factor: float) -> jax.Array:
    """``x`` with each channel's mean and deviation drawn to the reference's (AdaIN, LTX-Video).

    Args:
      x: ``[B, t, H, W, c]``; reference: ``[B, t, h, w, c]``; moments are taken over a clip.
      factor: 0 returns ``x``, 1 gives it the reference's moments.
    """
    if not factor:
        return x

    def moments(values):
        mean = values.mean((1, 2, 3), keepdims=True)
        # torch's std: one less than the count.
        spread = values.std((1, 2, 3), keepdims=True, ddof=1)
        return mean, spread

    (mean, spread), (wanted, wanted_spread) = moments(x), moments(reference.astype(x.dtype))
    matched = (x - mean) / spread * wanted_spread + wanted
    return x + factor * (matched - x)
