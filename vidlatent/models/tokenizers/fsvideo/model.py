"""The deterministic autoencoder behind ``dcae`` (images) and ``fsae`` (causal video)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vidlatent.errors import VidlatentError
from vidlatent.models.build import make_module
from vidlatent.models.tokenizers.base import (
    ConditionKind,
    Patch,
    Posterior,
    TokenizerModule,
    check_clip,
    refuse_condition,
)
from vidlatent.models.tokenizers.cutting import FrameCoder, SpaceWay, TimeWay
from vidlatent.models.tokenizers.fsvideo import patches, tiling
from vidlatent.models.tokenizers.fsvideo.coder import FSAEConfig, FSAEDecoder, FSAEEncoder
from vidlatent.models.tokenizers.fsvideo.noise import NoiseField
from vidlatent.models.tokenizers.fsvideo.reach import find_outer_stage
from vidlatent.models.tokenizers.fsvideo.windows import WindowedFrames
from vidlatent.spec import FrameRule, LatentSpec, check_shape

__all__ = ["Autoencoder", "build_dcae", "build_fsae"]


class Autoencoder(TokenizerModule):
    """DC-AE and FSAE: residual stages joined by down and up operations with free shortcuts.

    With ``temporal_kernel`` 1 every frame is an image (DC-AE). With 3 and ``temporal_down`` (0, 1)
    it is FSVideo's causal FSAE: 1 + 4n frames to 1 + n latent frames, frame 0 on its own, attention
    inside a frame only. Its decoder has two fine-tuned forms (FSVideo 2.2.3): Standard looks both
    ways in time (``decoder_time='centred'``), Lite is group-causal with narrower outer stages, and
    both attend to the encoder's features of frame 0 and inject noise.

    Attributes:
      family: name recorded in the latent spec.
      latent_channels: channels of the latent; divides the innermost encoder width.
      encoder_widths, decoder_widths: channels per stage, outermost first.
      encoder_depths, decoder_depths: residual blocks per stage. 0 at stage 0 moves the first
        down (last up) operation into ``conv_in`` (``conv_out``), as the f64 and f128 models do.
      block_types: per stage ``'res'`` or ``'evit'``.
      decoder_block_types: as ``block_types``; empty means the same.
      head_dim: channels per attention head.
      multiscales: per stage, sizes of the depthwise windows beside the attention; ``()`` for none.
      decoder_multiscales: as ``multiscales``; empty means the same.
      temporal_kernel: 1 or 3.
      temporal_down: stages after which the frame count is halved too.
      down_type: ``'conv'`` or ``'shuffle'``; up_type: ``'interpolate'`` or ``'shuffle'``.
      up_form: ``'nearest'`` or ``'subpixel'``: two ways to compute the interpolating up operation.
      shortcut_order: ``'hwt'`` or ``'thw'``, see ``layers.resample``.
      time_padding: ``'replicate'`` or ``'zeros'`` at the start of a stream.
      decoder_time: ``'causal'``, ``'centred'`` (cannot be run in chunks) or ``'group'``.
      cross_stages: stages whose frame-0 features the decoder attends to; empty for none.
      cross: ``'softmax'`` or ``'linear'`` attention to them.
      cross_head_dim: channels per head of it.
      cross_window: side in positions of the windows at the outermost of these stages; 0: none.
      cross_rotary: rotary positions on its queries and keys.
      noise_weight: of the noise after each convolution of the residual blocks of ``noise_stages``.
        A rng stream ``noise`` makes it differ between samples and calls (training); without one
        it is the same in every call and sample, so that a latent always decodes alike.
      noise_stages: see ``noise_weight``.
      decoder_norm_types: per stage ``'rms'`` or ``'batch'`` (fixed statistics); empty: all rms.
      decoder_activations: per stage ``'silu'`` or ``'relu'`` in residual blocks; empty: all silu.
      norm_eps, norm_affine: channel norms.
      norm_scale_init: starting scale of the norms that end residual branches. 0, the default,
        starts every block as the identity: training from random weights then begins from the
        shortcuts alone, which is steadier and faster than from 1 (the original code's), where
        each block adds noise of unit size. Imported weights replace it.
      remat: recompute each block in the backward pass.
      conv_impl: form of ``kernels.conv3d``.
      latent_scale, latent_shift: what a generator applies, recorded in the latent spec.
      dtype: compute dtype.
    """

    latent_channels: int
    encoder_widths: tuple[int, ...]
    decoder_widths: tuple[int, ...]
    encoder_depths: tuple[int, ...]
    decoder_depths: tuple[int, ...]
    block_types: tuple[str, ...]
    multiscales: tuple[tuple[int, ...], ...]
    decoder_block_types: tuple[str, ...] = ()
    decoder_multiscales: tuple[tuple[int, ...], ...] = ()
    family: str = "fsae"
    head_dim: int = 32
    temporal_kernel: int = 3
    temporal_down: tuple[int, ...] = (0, 1)
    down_type: str = "conv"
    up_type: str = "interpolate"
    up_form: str = "nearest"
    shortcut_order: str = "hwt"
    time_padding: str = "replicate"
    decoder_time: str = "causal"
    cross_stages: tuple[int, ...] = ()
    cross: str = "softmax"
    cross_head_dim: int = 64
    cross_window: int = 64
    cross_rotary: bool = True
    noise_weight: float = 0.0
    noise_stages: tuple[int, ...] = (0, 1, 2)
    decoder_norm_types: tuple[str, ...] = ()
    decoder_activations: tuple[str, ...] = ()
    norm_eps: float = 1e-5
    norm_affine: bool = True
    norm_scale_init: float = 0.0
    remat: bool = False
    conv_impl: str = "auto"
    latent_scale: float = 1.0
    latent_shift: float = 0.0
    dtype: Any = jnp.float32

    def setup(self):
        self._check_fields()
        common = {
            "head_dim": self.head_dim,
            "temporal_kernel": self.temporal_kernel,
            "temporal_down": self.temporal_down,
            "order": self.shortcut_order,
            "time_padding": self.time_padding,
            "norm_eps": self.norm_eps,
            "norm_affine": self.norm_affine,
            "norm_scale": self.norm_scale_init,
            "remat": self.remat,
            "implementation": self.conv_impl,
            "dtype": self.dtype,
            "up_form": self.up_form,
        }
        self.encoder = FSAEEncoder(
            FSAEConfig(
                widths=self.encoder_widths,
                depths=self.encoder_depths,
                block_types=self.block_types,
                multiscales=self.multiscales,
                resample=self.down_type,
                # The encoder is causal in every form: fine-tuning changes the decoder only (2.2.3).
                time="causal",
                **common,
            ),
            self.latent_channels,
        )
        self.decoder = FSAEDecoder(
            FSAEConfig(
                widths=self.decoder_widths,
                depths=self.decoder_depths,
                block_types=self.decoder_block_types or self.block_types,
                multiscales=self.decoder_multiscales or self.multiscales,
                resample=self.up_type,
                time=self.decoder_time,
                norm_kinds=self.decoder_norm_types,
                activations=self.decoder_activations,
                noise_weight=self.noise_weight,
                noise_stages=self.noise_stages,
                cross_stages=self.cross_stages,
                cross=self.cross,
                cross_head_dim=self.cross_head_dim,
                cross_window=self.cross_window,
                cross_rotary=self.cross_rotary,
                **common,
            )
        )

    def _check_fields(self) -> None:
        stages = len(self.encoder_widths)
        for name in (
            "decoder_widths",
            "encoder_depths",
            "decoder_depths",
            "block_types",
            "multiscales",
            "decoder_block_types",
            "decoder_multiscales",
            "decoder_norm_types",
            "decoder_activations",
        ):
            value = getattr(self, name)
            if len(value) != stages and not (name.startswith("decoder_") and value == ()):
                raise VidlatentError(
                    f"config.model.{name} has {len(value)} entries, but encoder_widths names "
                    f"{stages} stages: give one per stage."
                )
        if sorted(self.shortcut_order) != ["h", "t", "w"]:
            raise VidlatentError(
                f"config.model.shortcut_order {self.shortcut_order!r}: use 'hwt' or 'thw'."
            )
        # At stage 0, conv_in and conv_out can do the resampling in place of the blocks.
        if any(depth == 0 for depth in self.encoder_depths[1:] + self.decoder_depths[1:]):
            raise VidlatentError("only stage 0 may be empty: raise the other depths to 1 or more.")
        for name in ("cross_stages", "noise_stages"):
            if any(stage not in range(stages) for stage in getattr(self, name)) and (
                name == "cross_stages" or self.noise_weight
            ):
                raise VidlatentError(
                    f"config.model.{name} {getattr(self, name)}: the stages are 0 to {stages - 1}."
                )
        blocks = self.decoder_block_types or self.block_types
        if any(
            norm == "batch" and block == "evit"
            for norm, block in zip(self.decoder_norm_types, blocks, strict=False)
        ):
            raise VidlatentError(
                "config.model.decoder_norm_types: attention stages have rms norms; 'batch' is for "
                "stages of residual blocks."
            )

    @property
    def latent_spec(self) -> LatentSpec:
        """The latent's identity: channels, factors, legal clip lengths."""
        time = 2 ** len(self.temporal_down)
        # Every stage but the last is left by a halving of H and W.
        space = 2 ** (len(self.encoder_widths) - 1)
        return LatentSpec(
            name=self.family,
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
        """Whether ``decode`` can continue from a cache (``encode`` always can)."""
        return self.decoder_time != "centred" or self.temporal_kernel == 1

    @property
    def condition_kind(self) -> ConditionKind:
        """``'first'`` for decoders that attend to features of frame 0, see ``cross_stages``."""
        return "first" if self.cross_stages else "none"

    @property
    def encoder_paths(self) -> tuple[str, ...]:
        """The encoder; fine-tuning changes the decoder only (2.2.3)."""
        return ("encoder/",)

    @property
    def encoder_fields(self) -> tuple[str, ...]:
        return (
            "down_type",
            "head_dim",
            "norm_eps",
            "shortcut_order",
            "temporal_down",
            "time_padding",
        )

    def encode(self, video: jax.Array, *, cache: Any = None) -> tuple[Posterior, Any]:
        """``[B, T, H, W, 3]`` -> posterior without variance ``[B, t, h, w, c]``, and the cache.

        T = 1 + 4n and t = 1 + n at the start of a stream (FSAE), later T = 4n and t = n. Errors as
        of ``Tokenizer.encode``.
        """
        check_clip(self.latent_spec, video, cache is None)
        mean, cache, _ = self.encoder(video, cache)
        return Posterior(mean), cache

    def decode(
        self,
        latent: jax.Array,
        *,
        condition: tuple[jax.Array, ...] | None = None,
        cache: Any = None,
    ) -> tuple[jax.Array, Any]:
        """``[B, t, h, w, c]`` -> video ``[B, T, H, W, 3]`` float32, and the cache.

        ``condition`` is needed at the start of a stream only: the cache holds what was made of it.
        """
        check_shape(latent, "B t h w c", c=self.latent_channels)
        features = self._features(condition, cache)
        if cache is not None and not self.streams:
            raise VidlatentError(
                "a decoder with decoder_time 'centred' looks ahead and cannot continue from a "
                "cache: decode the whole clip at once, or use 'causal' or 'group'."
            )
        noise = self._noise(latent.shape[0])
        video, cache, _ = self.decoder(latent, cache, features=features, noise=noise)
        # Never None: handed back it means "continue", which a centred decoder refuses.
        return video, cache

    def __call__(self, video: jax.Array) -> tuple[jax.Array, Posterior]:
        """As ``Tokenizer.__call__``; the clip is encoded once, frame 0's features included."""
        check_clip(self.latent_spec, video, True)
        mean, _, seen = self.encoder(video)
        condition = self._condition(seen) if self.cross_stages else None
        return self.decode(mean, condition=condition)[0], Posterior(mean)

    def encode_condition(self, frames: jax.Array) -> tuple[jax.Array, ...]:
        """Features of frame 0 ``[B, H, W, 3]`` for a decoder with first-frame attention.

        Returns:
          One ``[B, H / 2^i, W / 2^i, C_i]`` for each of ``cross_stages``.
        """
        return self._condition(self.encoder_values(frames[:, None]))

    def _condition(self, seen: Mapping[str, jax.Array]) -> tuple[jax.Array, ...]:
        # Frame 0 of an ordinary encoding: by causality the same as that frame encoded alone.
        return tuple(seen[f"stage_{stage}"][:, 0] for stage in self.cross_stages)

    def _features(self, condition: Any, cache: Any) -> dict[int, jax.Array] | None:
        if not self.cross_stages:
            refuse_condition(condition)
            return None
        # Later chunks find keys and values of frame 0 in the cache.
        if cache is not None:
            return None
        if condition is None or len(condition) != len(self.cross_stages):
            raise VidlatentError(
                f"this decoder attends to frame 0 at stages {self.cross_stages}: pass "
                "condition=model.make_condition(video)."
            )
        return dict(zip(self.cross_stages, condition, strict=True))

    def _noise(self, batch: int) -> NoiseField | None:
        if not self.noise_weight:
            return None
        if self.has_rng("noise"):
            # In training every sample draws its own noise.
            return NoiseField(jax.random.split(self.make_rng("noise"), batch))
        return NoiseField(jax.random.key(0)[None])

    # The halves of encoder and decoder. The outer stages look at a neighbourhood only, so they may
    # be given a crop; the inner ones attend over the whole frame.

    def encode_outer(
        self, video: jax.Array, stage: int, cache: Any = None
    ) -> tuple[jax.Array, jax.Array, Any]:
        """Encoder blocks up to ``stage``; ``video`` ``[B, T, H, W, 3]`` may be a crop.

        Returns:
          Output of block i = ``stage`` ``[B, t', H / 2^(i+1), W / 2^(i+1), C]``, its features of
          frame 0 ``[B, 1, H / 2^i, W / 2^i, C_i]``, and the cache of these blocks.
        """
        x, cache, seen = self.encoder(video, cache, end=stage)
        return x, seen[f"stage_{stage}"][:, :1], cache

    def encode_inner(
        self, x: jax.Array, stage: int, cache: Any = None
    ) -> tuple[jax.Array, dict[int, jax.Array], Any]:
        """The encoder after block ``stage``, from ``encode_outer``'s whole output.

        Returns:
          Latent mean ``[B, t, h, w, c]``, later stages' features of frame 0 ``[B, 1, h', w', C]``
          by stage, and the cache.
        """
        mean, cache, seen = self.encoder(x, cache, begin=stage)
        # The features of `stage` itself come from encode_outer.
        later = range(stage + 1, len(self.encoder_widths))
        return mean, {i: seen[f"stage_{i}"][:, :1] for i in later}, cache

    def decode_inner(
        self,
        latent: jax.Array,
        stage: int,
        condition: tuple[jax.Array, ...] | None = None,
        cache: Any = None,
    ) -> tuple[jax.Array, Any]:
        """The decoder down to block ``stage``: ``[B, t, h, w, c] -> [B, t', h', w', C]``, cache."""
        features, noise = self._features(condition, cache), self._noise(latent.shape[0])
        return self.decoder(latent, cache, features=features, noise=noise, end=stage)[:2]

    def decode_outer(
        self,
        x: jax.Array,
        stage: int,
        condition: tuple[jax.Array, ...] | None = None,
        origin: tuple[Any, Any] = (0, 0),
        cache: Any = None,
    ) -> tuple[jax.Array, Any]:
        """Video from ``decode_inner``'s output, or from a crop of it that starts at ``origin``.

        Attention to frame 0 and noise are those of the whole frame; convolutions see zeros beyond
        the crop (``reach`` says how far that matters).
        """
        features, noise = self._features(condition, cache), self._noise(x.shape[0])
        return self.decoder(x, cache, features=features, noise=noise, begin=stage, origin=origin)[
            :2
        ]

    def encoder_values(self, video: jax.Array) -> dict[str, jax.Array]:
        """The encoder's intermediate values by name, see ``coder.FSAEEncoder``."""
        check_clip(self.latent_spec, video, True)
        return self.encoder(video)[2]

    @nn.nowrap
    def list_time_ways(self) -> tuple[TimeWay, ...]:
        """Windows have the result of the whole clip too, whatever the decoder looks at."""
        ways = (TimeWay("windows", exact=True), TimeWay("chunks", exact=False))
        return (TimeWay("stream", exact=True), *ways) if self.streams else ways

    @nn.nowrap
    def list_space_ways(self) -> tuple[SpaceWay, ...]:
        return tiling.list_space_ways(self)

    @nn.nowrap
    def make_frame_coder(self) -> FrameCoder:
        return WindowedFrames(self)

    @property
    def patch_cell(self) -> int:
        """Pixels of a cell: a position of the inner stages' output."""
        return 2 ** find_outer_stage(self)

    @nn.nowrap
    def decode_patch(self, params, latent, start, size, **options) -> Patch:
        return patches.decode_patch(self, params, latent, start, size, **options)


def build_fsae(fields: Mapping[str, Any], dtype: Any) -> Autoencoder:
    """The video model; unset fields take the class defaults."""
    return make_module(Autoencoder, fields, dtype, family="fsae")


def build_dcae(fields: Mapping[str, Any], dtype: Any) -> Autoencoder:
    """The image model: no temporal kernels, any number of independent frames."""
    still = {"temporal_kernel": 1, "temporal_down": ()}
    for key, value in still.items():
        if key in fields and fields[key] not in (value, []):
            raise VidlatentError(f"config.model.{key} of the image model 'dcae' must be {value}.")
    return make_module(Autoencoder, {**fields, **still}, dtype, family="dcae")
