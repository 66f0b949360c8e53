"""ProMAG, its image autoencoder and the continuous MAGVIT-v2 baseline."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from vidlatent.errors import VidlatentError
from vidlatent.models.build import make_module
from vidlatent.models.tokenizers.base import (
    LOGVAR_RANGE,
    Posterior,
    TokenizerModule,
    check_clip,
    refuse_condition,
)
from vidlatent.models.tokenizers.cutting import SpaceWay
from vidlatent.models.tokenizers.promag import tiling
from vidlatent.models.tokenizers.promag.blocks import ProMAGConfig, check_choice, resample_latent
from vidlatent.models.tokenizers.promag.coder import (
    Bottleneck,
    FirstFrame,
    ProMAGDecoder,
    ProMAGEncoder,
)
from vidlatent.models.tokenizers.promag.growth import Growth, subsample
from vidlatent.spec import FrameRule, LatentSpec, check_shape

__all__ = ["MAGVIT2", "ProMAG", "build_magvit2", "build_promag"]

# The baseline's fields that differ from ProMAG's (MAGVIT-v2, figure of the architecture).
MAGVIT2 = {
    "norm_kind": "group",
    "decoder_ada": "position",
    "stem": "conv3",
    "drop_mode": "final",
    "first_frame_join": "none",
}


class ProMAG(TokenizerModule):
    """Causal tokenizer, 4x8x8, grown to 8x8x8 and 16x8x8 (ProMAG 3).

    Defaults are ProMAG's. MAGVIT-v2's decoder with adaptive norms, and models that are trained at
    8x or 16x directly (``extra_multipliers``), are of the same family.

    Attributes:
      latent_channels: z.
      family: ``'promag'`` or ``'magvit2'``, recorded in the latent spec.
      width: channels at full resolution.
      multipliers: of the width, per level; all but the last are left by halving H and W.
      temporal_down: levels whose down operation halves the frame count too.
      extra_multipliers: further levels after a halving of time alone: a direct 8x or 16x model.
      blocks: residual blocks per level.
      groups, norm_eps, norm_kind, norm_axes: see ``layers.norms.group_affine``. ``'thw'`` gives up
        causality, and with it streaming.
      time_padding: before the first frame: ``'zeros'`` or ``'replicate'``.
      drop_mode: ``'each'``: every up layer leaves out its first frame (ProMAG's efficient
        upsampling); ``'final'``: the decoder's end leaves out k - 1 frames (MAGVIT-v2).
      stem: ``'post1x1'`` or ``'conv3'``: what leads from the latent to the decoder's width.
      decoder_ada: adaptive norms in the decoder: ``'none'``, ``'position'`` or ``'pooled'``.
      first_frame_join: frame 0 by a frozen image encoder: ``'feature'`` (joined before the 1x1x1
        layer), ``'latent'`` (its own latent) or ``'none'``.
      image: the image autoencoder whose encoder that is (stage 0); frames are then independent.
      line: videos one pixel high, for experiments that must be cheap: kernels do not look up and
        down, and only the width is halved.
      grow: doublings of the compression that were added, 0, 1 or 2.
      grow_blocks: residual blocks of each added block.
      grow_mode: ``'full'``, or ``'plain'``: without key frames, residual and adaptive norm.
      ada_mode: adaptive norm of the added block: ``'position'``, ``'pooled'`` or ``'none'``.
      zero_init_residual: a grown model starts as its key frames' latents.
      stop_earlier: no gradient into the encoder of the earlier stages.
      logvar_init: bias of the log-variance at the start of training.
      tile_size: side of the tiles of the decoder's convolutions, in positions of each layer's map;
        0: no tiles.
      tile_overlap, tile_mode, tile_dead_zone: see ``tiling.LayerTiles``.
      remat: recompute each block in the backward pass.
      conv_impl: form of ``kernels.conv3d``.
      latent_scale, latent_shift: recorded in the latent spec.
      dtype: compute dtype.
    """

    latent_channels: int
    family: str = "promag"
    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 4)
    temporal_down: tuple[int, ...] = (1, 2)
    extra_multipliers: tuple[int, ...] = ()
    blocks: int = 4
    groups: int = 32
    norm_eps: float = 1e-6
    norm_kind: str = "rms"
    norm_axes: str = "hw"
    time_padding: str = "zeros"
    drop_mode: str = "each"
    stem: str = "post1x1"
    decoder_ada: str = "none"
    first_frame_join: str = "feature"
    image: bool = False
    line: bool = False
    grow: int = 0
    grow_blocks: int = 4
    grow_mode: str = "full"
    ada_mode: str = "position"
    zero_init_residual: bool = False
    stop_earlier: bool = True
    logvar_init: float = -6.0
    tile_size: int = 0
    tile_overlap: int = 0
    tile_mode: str = "halo"
    tile_dead_zone: int = 0
    remat: bool = False
    conv_impl: str = "auto"
    latent_scale: float = 1.0
    latent_shift: float = 0.0
    dtype: Any = jnp.float32

    def setup(self):
        self._check_fields()
        config = self.layer_config
        self.encoder = ProMAGEncoder(config)
        self.decoder = ProMAGDecoder(config)
        width = config.widths[-1] if self.stem == "post1x1" else 0
        self.bottleneck = Bottleneck(self.latent_channels, width, self.logvar_init)
        if self._join != "none":
            # The image encoder is this model with one temporal tap.
            still = self.clone(image=True, parent=None).layer_config
            posterior = self._join == "latent"
            self.first = FirstFrame(still, self.latent_channels, posterior, name="image")
        added = dataclasses.replace(config, blocks=self.grow_blocks)
        # Plain growth has no key frames to which a norm could adapt.
        ada = self.ada_mode if self.grow_mode == "full" else "none"
        self.growths = [
            Growth(added, ada, self.zero_init_residual, name=f"grow{i + 1}")
            for i in range(self.grow)
        ]

    def _check_fields(self) -> None:
        check_choice("drop_mode", self.drop_mode, "each", "final")
        check_choice("stem", self.stem, "post1x1", "conv3")
        check_choice("decoder_ada", self.decoder_ada, "none", "position", "pooled")
        check_choice("first_frame_join", self.first_frame_join, "feature", "latent", "none")
        check_choice("grow_mode", self.grow_mode, "full", "plain")
        check_choice("ada_mode", self.ada_mode, "position", "pooled", "none")
        levels = len(self.multipliers)
        if levels < 2 or any(not 0 <= i < levels - 1 for i in self.temporal_down):
            raise VidlatentError(
                f"config.model.temporal_down {self.temporal_down} must name levels below the last "
                f"of the {levels} that multipliers gives."
            )
        if self.grow and (self.drop_mode, self.stem) != ("each", "post1x1"):
            raise VidlatentError(
                "config.model.grow needs drop_mode 'each' and stem 'post1x1': the added blocks "
                "stand between the 1x1x1 layer and the decoder."
            )
        if self.image and (self.grow or self.extra_multipliers):
            raise VidlatentError("config.model.image has no time: no grow, no extra_multipliers.")
        if self.line and self.tile_size:
            raise VidlatentError("config.model.line has no tiles: set tile_size to 0.")

    @property
    def _join(self) -> str:
        return "none" if self.image else self.first_frame_join

    @property
    def layer_config(self) -> ProMAGConfig:
        """The hyper-parameters that the layers share."""
        levels = len(self.multipliers) - 1
        down = () if self.image else self.temporal_down
        rows = 1 if self.line else 2
        strides = [(2 if i in down else 1, rows, 2) for i in range(levels)]
        extra = () if self.image else self.extra_multipliers
        tiles = None
        if self.tile_size:
            tiles = tiling.LayerTiles(
                self.tile_size, self.tile_overlap, self.tile_mode, self.tile_dead_zone
            )
        return ProMAGConfig(
            widths=tuple(self.width * m for m in (*self.multipliers, *extra)),
            strides=(*strides, *((2, 1, 1) for _ in extra)),
            blocks=self.blocks,
            groups=self.groups,
            norm_eps=self.norm_eps,
            norm_kind=self.norm_kind,
            norm_axes=self.norm_axes,
            taps=1 if self.image else 3,
            time_padding=self.time_padding,
            drop_mode=self.drop_mode,
            stem=self.stem,
            decoder_ada=self.decoder_ada,
            remat=self.remat,
            implementation=self.conv_impl,
            dtype=self.dtype,
            rows=1 if self.line else 3,
            tiles=tiles,
        )

    @property
    def latent_spec(self) -> LatentSpec:
        """The latent's identity: channels, factors, legal clip lengths, scale and shift."""
        time = self.layer_config.factor * 2**self.grow
        space = 2 ** (len(self.multipliers) - 1)
        return LatentSpec(
            name=f"{self.family}-{'image' if self.image else f'{time}x'}",
            channels=self.latent_channels,
            t=time,
            h=1 if self.line else space,
            w=space,
            rule=FrameRule(1, time),
            scale=self.latent_scale,
            shift=self.latent_shift,
        )

    @property
    def streams(self) -> bool:
        """Whether a clip can be continued from a cache: no norm has statistics over time."""
        return self.norm_axes == "hw" and self.decoder_ada != "pooled"

    @property
    def encoder_paths(self) -> tuple[str, ...]:
        """Video encoder, 1x1x1 layer of the moments, frame 0's encoder and what growth adds."""
        return ("encoder/", "bottleneck/encoder/", "image/", r"grow\d+/encoder/")

    @property
    def encoder_fields(self) -> tuple[str, ...]:
        return (
            "ada_mode",
            "extra_multipliers",
            "first_frame_join",
            "groups",
            "grow_mode",
            "image",
            "line",
            "norm_axes",
            "norm_eps",
            "norm_kind",
            "temporal_down",
            "time_padding",
        )

    def encode(self, video: jax.Array, *, cache: Any = None) -> tuple[Posterior, Any]:
        """``[B, T, H, W, 3]`` -> mean and logvar ``[B, t, h, w, z]``, and the cache.

        With a temporal compression k, T = 1 + kn and t = 1 + n at the start of a stream, later
        T = kn and t = n. A norm with statistics over time (``norm_axes`` 'thw') needs the whole
        clip and refuses a cache. Errors as of ``Tokenizer.encode``.
        """
        first = cache is None
        check_clip(self.latent_spec, video, first)
        # Not self.streams: decoder_ada may keep the decoder from streaming, but not the encoder.
        streams = self.norm_axes == "hw"
        self._check_stream(first, streams)
        image = None
        if self._join != "none" and first:
            # Frozen: it was trained as an image autoencoder before (ProMAG 3.1).
            image = lax.stop_gradient(self.first(video[:, :1]))
        features, new = self._features(video, cache, image if self._join == "feature" else None)
        moments = self.bottleneck.quant(features)
        if image is not None and self._join == "latent":
            # Frame 0 keeps the image model's latent, the same at every temporal compression.
            moments = jnp.concatenate([image, moments[:, 1:]], axis=1)
        mean, logvar = jnp.split(moments, 2, axis=-1)
        return Posterior(mean, jnp.clip(logvar, *LOGVAR_RANGE)), new if streams else {}

    def _features(self, video: jax.Array, cache: Any, image: jax.Array | None):
        """Features of all frames; each subsampling of the video is coded once (ProMAG, app. A)."""
        first, new = cache is None, {}

        def old(name):
            return None if first else cache[name]

        full = self.grow_mode == "full"
        level = {}
        # Key frames have key frames of their own: L growths need the strides 1, 2, ... 2^L.
        for stride in [2**i for i in range(self.grow + 1 if full else 1)]:
            name = f"every_{stride}"
            x, new[name] = self.encoder(subsample(video, stride, first), old(name))
            # For a single image the video encoder's result is unused, so jit removes it.
            level[stride] = x if image is None else jnp.concatenate([image, x[:, 1:]], axis=1)
        for number, growth in enumerate(self.growths, 1):
            if self.stop_earlier:
                # Earlier stages are frozen: keep nothing of their encoders for the backward pass.
                level = jax.tree.map(lax.stop_gradient, level)
            grown = {}
            for stride in level:
                name, key = f"grow{number}_every_{stride}", level.get(2 * stride)
                # The coarsest frames served as keys only.
                if full and key is None:
                    continue
                x, new[name] = growth.encode(level[stride], key, old(name))
                grown[stride] = key + x if full else x
            level = grown
        return level[1], new

    def decode(
        self, latent: jax.Array, *, condition: Any = None, cache: Any = None
    ) -> tuple[jax.Array, Any]:
        """``[B, t, h, w, z]`` -> video ``[B, T, H, W, 3]`` float32, and the cache."""
        check_shape(latent, "B t h w c", c=self.latent_channels)
        refuse_condition(condition)
        first, new = cache is None, {}
        self._check_stream(first, self.streams)
        x = self.bottleneck.post(latent).astype(self.dtype)
        for growth in reversed(self.growths):
            x, new[growth.name] = growth.decode(x, None if first else cache[growth.name])
            # Adaptive norms of the decoder read the latent at the frame rate of its input.
            latent = resample_latent(latent, (2, 1, 1), first, drop=True)
        x, new["decoder"] = self.decoder(x, latent, None if first else cache["decoder"])
        return x, new if self.streams else {}

    @nn.nowrap
    def list_space_ways(self) -> tuple[SpaceWay, ...]:
        return tiling.list_space_ways(self)

    def _check_stream(self, first: bool, streams: bool) -> None:
        if not first and not streams:
            raise VidlatentError(
                "statistics over time need the whole clip: code long videos in chunks "
                "(config.codec.time='chunks'), or train with norm_axes 'hw' and no pooled "
                "decoder_ada."
            )


def build_promag(fields: Mapping[str, Any], dtype: Any) -> ProMAG:
    """ProMAG, or with ``image`` its stage-0 image autoencoder."""
    return make_module(ProMAG, fields, dtype, family="promag")


def build_magvit2(fields: Mapping[str, Any], dtype: Any) -> ProMAG:
    """The MAGVIT-v2 baseline: ``MAGVIT2`` under the config's fields."""
    return make_module(ProMAG, {**MAGVIT2, **fields}, dtype, family="magvit2")
