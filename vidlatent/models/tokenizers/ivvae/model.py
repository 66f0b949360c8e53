"""The variational autoencoder behind ``ivvae`` and its baselines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
from vidlatent.spec import FrameRule, LatentSpec, check_shape

__all__ = ["IVVAE", "build_ivvae"]


class IVVAE(TokenizerModule):
    """IV-VAE: 4x8x8 compression in two branches, group causal (IV-VAE 3; released network).

    Frame 0 stands alone, then come groups of four frames; nothing looks beyond its own group. Half
    of the latent's channels describe each group's first frame, half its motion.

    Attributes:
      variant: ``'ivvae'`` or an ablation or baseline, see ``variants.VARIANTS``: ``'ktc'``,
        ``'ktc_causal'`` (without the extra attention and PAC), ``'volumes'``, ``'volumes_plain'``
        (3-D convolutions in both halves), ``'causal'`` (the inflated VAE, Wan's layout),
        ``'gcconv'`` (the same with group causal convolutions), ``'image'``, ``'image_plain'``
        (what is inflated).
      latent_channels: z, both halves together.
      width: channels of one branch at full resolution.
      multipliers: of the width, per level; all but the last are left by halving H and W.
      blocks: residual blocks per encoder level; a decoder level has one more.
      temporal_down: levels whose down operation halves the frame count too.
      pac_dilations: reaches of the parallel dilated convolutions; 0 is a 1x1.
      residual_scale: size of what a residual branch adds at the start of training, relative to
        the usual initialisation. Imported weights replace it.
      up_form: ``'nearest'`` or ``'subpixel'``: two ways to compute the up operations.
      remat: recompute each block in the backward pass.
      row_limit: bytes of an array above which a CPU computes a level in strips of rows, with the
        same result; 0: never. Other devices and meshes compute whole levels.
      strips_anywhere: other devices keep to ``row_limit`` too (meshes never do).
      conv_impl: form of ``kernels.conv3d``.
      latent_scale, latent_shift: recorded in the latent spec; a checkpoint's own.
      dtype: compute dtype.
    """

    latent_channels: int
    width: int
    variant: str = "ivvae"
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    temporal_down: tuple[int, ...] = (1, 2)
    pac_dilations: tuple[int, ...] = (0, 1, 3, 6, 9, 12)
    residual_scale: float = 1.0
    up_form: str = "subpixel"
    remat: bool = False
    row_limit: int = tiling.LIMIT
    strips_anywhere: bool = False
    conv_impl: str = "auto"
    latent_scale: float = 1.0
    latent_shift: float = 0.0
    dtype: Any = jnp.float32

    def setup(self):
        config = self.layer_config
        self.encoder = IVVAEEncoder(config)
        self.decoder = IVVAEDecoder(config)

    @property
    def layer_config(self) -> IVVAEConfig:
        """The checked hyper-parameters that encoder and decoder share."""
        variant = find_variant(self.variant)
        levels = len(self.multipliers)
        if levels < 2 or any(not 0 <= i < levels - 1 for i in self.temporal_down):
            raise VidlatentError(
                f"config.model.temporal_down {self.temporal_down} must name levels below the last "
                f"of the {levels} that multipliers gives."
            )
        if variant.time == "none" and self.temporal_down:
            raise VidlatentError(
                f"config.model.temporal_down of the image variant {self.variant!r} must be empty."
            )
        if self.latent_channels % variant.branches:
            raise VidlatentError(
                f"config.model.latent_channels {self.latent_channels} is odd: variant "
                f"{self.variant!r} gives half of them to each branch."
            )
        return IVVAEConfig(
            variant=variant,
            latent_channels=self.latent_channels,
            widths=tuple(self.width * m for m in self.multipliers),
            blocks=self.blocks,
            temporal_down=self.temporal_down,
            pac_dilations=self.pac_dilations,
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
        """The latent's identity: channels, factors, legal clip lengths, scale and shift."""
        time = 2 ** len(self.temporal_down)
        space = 2 ** (len(self.multipliers) - 1)
        return LatentSpec(
            name="ivvae" if self.variant == "ivvae" else f"ivvae-{self.variant}",
            channels=self.latent_channels,
            t=time,
            h=space,
            w=space,
            rule=FrameRule(1, time),
            scale=self.latent_scale,
            shift=self.latent_shift,
        )

    @property
    def streams(self) -> bool:
        """Always: nothing looks beyond its own group of frames."""
        return True

    @property
    def encoder_paths(self) -> tuple[str, ...]:
        return ("encoder/",)

    @property
    def encoder_fields(self) -> tuple[str, ...]:
        return ("pac_dilations", "temporal_down", "variant")

    def encode(self, video: jax.Array, *, cache: Any = None) -> tuple[Posterior, Any]:
        """``[B, T, H, W, 3]`` -> mean and logvar ``[B, t, h, w, z]``, and the cache.

        Channels of the key branch come first. T = 1 + 4n and t = 1 + n at the start of a stream,
        later T = 4n and t = n. Errors as of ``Tokenizer.encode``.
        """
        check_clip(self.latent_spec, video, cache is None)
        moments, cache, _ = self.encoder(video, cache)
        return self._posterior(moments), cache

    def decode(
        self, latent: jax.Array, *, condition: Any = None, cache: Any = None
    ) -> tuple[jax.Array, Any]:
        """``[B, t, h, w, z]`` -> video ``[B, T, H, W, 3]`` float32, and the cache."""
        check_shape(latent, "B t h w c", c=self.latent_channels)
        refuse_condition(condition)
        images, new, _ = self.decoder(latent, cache)
        return self._select(images, cache is None), new

    def encoder_values(self, video: jax.Array) -> dict[str, jax.Array]:
        """The encoder's intermediate values by module name."""
        check_clip(self.latent_spec, video, True)
        return self.encoder(video)[2]

    @nn.nowrap
    def list_space_ways(self) -> tuple[SpaceWay, ...]:
        return tiling.list_space_ways(self)

    def _posterior(self, moments: jax.Array) -> Posterior:
        """``[mean, logvar]`` of each branch -> all means, all log-variances."""
        branches = self.layer_config.variant.branches
        # [..., branches, (mean, logvar), z / branches]: every branch has a pair of its own.
        parts = moments.reshape(*moments.shape[:-1], branches, 2, -1)
        mean, logvar = (
            parts[..., i, :].reshape(*moments.shape[:-1], self.latent_channels) for i in (0, 1)
        )
        return Posterior(mean, logvar)

    def _select(self, images: jax.Array, first: bool) -> jax.Array:
        """Frame 0 and the first frame of each group from half A, the others from half B."""
        if self.layer_config.variant.branches == 1:
            return images
        # Place in the group; the video's frame 0 is at -1.
        place = jnp.arange(images.shape[1]) - (1 if first else 0)
        key = (place < 0) | (place % self.latent_spec.t == 0)
        return jnp.where(key[None, :, None, None, None], images[..., :3], images[..., 3:])


def build_ivvae(fields: Mapping[str, Any], dtype: Any) -> IVVAE:
    """The model of ``fields``; unset ones take the class defaults.

    Raises:
      VidlatentError: unknown or missing field.
    """
    return make_module(IVVAE, fields, dtype)
