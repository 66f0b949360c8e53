"""The video autoencoders of Wan2.1 (4x8x8, 16 channels) and Wan2.2 (4x16x16, 48 channels)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from vidlatent.errors import VidlatentError
from vidlatent.models.build import make_module
from vidlatent.models.tokenizers.base import (
    Posterior,
    TokenizerModule,
    check_clip,
    refuse_condition,
)
from vidlatent.models.tokenizers.cutting import SpaceWay
from vidlatent.models.tokenizers.ivvae import tiling
from vidlatent.models.tokenizers.ivvae.coder import IVVAEDecoder, IVVAEEncoder
from vidlatent.models.tokenizers.ivvae.variants import IVVAEConfig, find_variant
from vidlatent.models.tokenizers.wan_vae.coder import WanDecoder, WanEncoder
from vidlatent.spec import FrameRule, LatentSpec, check_shape

__all__ = ["WanVAE", "build_wan_vae"]


class WanVAE(TokenizerModule):
    """Causal convolutions over time and space, attention within each frame at the lowest level.

    Frame 0 stands alone, then come groups of four frames; nothing looks ahead. The released code
    works through groups with caches, and so does a stream here, with the same result as the whole.

    Attributes:
      latent_channels: z.
      width: channels of the encoder at its finest level.
      shortcuts: Wan2.2: each level has a shortcut without parameters around its residual blocks
        and its resampling. False: Wan2.1.
      decoder_width: channels of the decoder at its finest level; 0: as the encoder's.
      pixel_patch: a square of so many pixels a side is gathered into channels first (Wan2.2: 2).
      multipliers: of the width, per level; all but the last are left by halving H and W.
      blocks: residual blocks per encoder level; a decoder level has one more.
      temporal_down: levels whose down operation halves the frame count too.
      latent_mean, latent_std: of each channel, as released with the weights; a generator sees
        ``(latent - mean) / std`` (``config.latents.normalisation=spec``). Empty: 0 and 1.
      residual_scale: size of what a residual branch adds at the start of training, relative to
        the usual initialisation. Imported weights replace it.
      up_form: ``'nearest'`` or ``'subpixel'``: two ways to compute the up operations.
      remat: recompute each block in the backward pass.
      row_limit, strips_anywhere: as of ``IVVAE``, for Wan2.1.
      conv_impl: form of ``kernels.conv3d``.
      dtype: compute dtype.
    """

    latent_channels: int
    width: int
    shortcuts: bool = False
    decoder_width: int = 0
    pixel_patch: int = 1
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    temporal_down: tuple[int, ...] = (1, 2)
    latent_mean: tuple[float, ...] = ()
    latent_std: tuple[float, ...] = ()
    residual_scale: float = 1.0
    up_form: str = "subpixel"
    remat: bool = False
    row_limit: int = tiling.LIMIT
    strips_anywhere: bool = False
    conv_impl: str = "auto"
    dtype: Any = jnp.float32

    def setup(self):
        encoder, decoder = (self._layers(w) for w in (self.width, self.decoder_width or self.width))
        if self.shortcuts:
            self.encoder = WanEncoder(encoder)
            self.decoder = WanDecoder(decoder, 3 * self.pixel_patch**2)
        else:
            self.encoder = IVVAEEncoder(encoder)
            self.decoder = IVVAEDecoder(decoder)

    def _layers(self, width: int) -> IVVAEConfig:
        """The checked hyper-parameters of the layers of a half of ``width`` channels."""
        levels = len(self.multipliers)
        if levels < 2 or any(not 0 <= i < levels - 1 for i in self.temporal_down):
            raise VidlatentError(
                f"config.model.temporal_down {self.temporal_down} must name levels below the last "
                f"of the {levels} that multipliers gives."
            )
        if self.pixel_patch != 1 and not self.shortcuts:
            raise VidlatentError(
                f"config.model.pixel_patch {self.pixel_patch} is for shortcuts=True (Wan2.2): set "
                "it to 1."
            )
        return IVVAEConfig(
            variant=find_variant("causal"),
            latent_channels=self.latent_channels,
            widths=tuple(width * m for m in self.multipliers),
            blocks=self.blocks,
            temporal_down=self.temporal_down,
            pac_dilations=(),
            residual_scale=self.residual_scale,
            up_form=self.up_form,
            remat=self.remat,
            row_limit=self.row_limit,
            strips_anywhere=self.strips_anywhere,
            implementation=self.conv_impl,
            dtype=self.dtype,
        )

    @property
    def latent_spec(self) -> LatentSpec:
        """The latent's identity: channels, factors, legal clip lengths, released moments."""
        time = 2 ** len(self.temporal_down)
        space = self.pixel_patch * 2 ** (len(self.multipliers) - 1)
        moments = (self.latent_mean, self.latent_std) if self.latent_std else None
        return LatentSpec(
            name="wan22_vae" if self.shortcuts else "wan21_vae",
            channels=self.latent_channels,
            t=time,
            h=space,
            w=space,
            rule=FrameRule(1, time),
            moments=moments,
        )

    @property
    def streams(self) -> bool:
        """Always: nothing looks ahead."""
        return True

    @property
    def encoder_paths(self) -> tuple[str, ...]:
        return ("encoder/",)

    @property
    def encoder_fields(self) -> tuple[str, ...]:
        return ("pixel_patch", "shortcuts", "temporal_down")

    def encode(self, video: jax.Array, *, cache: Any = None) -> tuple[Posterior, Any]:
        """``[B, T, H, W, 3]`` -> mean and logvar ``[B, t, h, w, z]``, and the cache.

        T = 1 + 4n and t = 1 + n at the start of a stream, later T = 4n and t = n. Errors as of
        ``Tokenizer.encode``.
        """
        check_clip(self.latent_spec, video, cache is None)
        # Columns vary slower than rows within a patch, as in the released code.
        cells = "b t (h q) (w r) c -> b t h w (c r q)"
        x = einops.rearrange(video, cells, q=self.pixel_patch, r=self.pixel_patch)
        moments, cache = self.encoder(x, cache)[:2]
        mean, logvar = jnp.split(moments, 2, axis=-1)
        return Posterior(mean, logvar), cache

    def decode(
        self, latent: jax.Array, *, condition: Any = None, cache: Any = None
    ) -> tuple[jax.Array, Any]:
        """``[B, t, h, w, z]`` -> video ``[B, T, H, W, 3]`` float32, and the cache."""
        check_shape(latent, "B t h w c", c=self.latent_channels)
        refuse_condition(condition)
        x, cache = self.decoder(latent, cache)[:2]
        pixels = "b t h w (c r q) -> b t (h q) (w r) c"
        return einops.rearrange(x, pixels, q=self.pixel_patch, r=self.pixel_patch), cache

    @nn.nowrap
    def list_space_ways(self) -> tuple[SpaceWay, ...]:
        return () if self.shortcuts else tiling.list_space_ways(self)


def build_wan_vae(fields: Mapping[str, Any], dtype: Any) -> WanVAE:
    """The model of ``fields``; unset ones take the class defaults.

    Raises:
      VidlatentError: unknown or missing field.
    """
    return make_module(WanVAE, fields, dtype)
