"""The variational autoencoder behind ``reducio``."""

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
    TokenizerModule,
    check_clip,
    refuse_condition,
)
from vidlatent.models.tokenizers.cutting import SpaceWay
from vidlatent.models.tokenizers.reducio import tiling
from vidlatent.models.tokenizers.reducio.coder import ReducioDecoder, ReducioEncoder
from vidlatent.models.tokenizers.reducio.latent import MotionPosterior, normalise
from vidlatent.models.tokenizers.reducio.variants import ReducioConfig, make_window, plan_resampling
from vidlatent.registry import did_you_mean
from vidlatent.spec import FrameRule, LatentSpec, check_parts, check_shape

__all__ = ["ReducioVAE", "build_reducio"]

CONTENT = ("middle", "first", "random", "none")
Features = tuple[jax.Array, ...]


class ReducioVAE(TokenizerModule):
    """Reducio-VAE: a clip of fixed length as one content frame and a tiny motion latent.

    The video encoder compresses 4x32x32 (or 2x32x32); the decoder attends to features of one frame
    of the clip, the content frame, which is kept uncompressed. Convolutions look both ways in time
    and norms have statistics over it, so a clip is coded whole; a longer video is a row of
    independent clips.

    Attributes:
      latent_channels: c.
      width, multipliers: channels per resolution level, pixels first.
      blocks: residual blocks per level of the encoders; a decoder level has them twice.
      content_width, content_multipliers, content_blocks: of the content encoder, whose maps halve
        after every level.
      time_factor, space_factor: compression, powers of two.
      frames: length of a clip.
      fuse: per decoder level, which level of the content features it attends to; -1: none.
      fuse_middle: attend to them in the middle (at the deepest level) too.
      content: the clip's frame that is kept: ``'middle'``, ``'first'``, ``'random'`` (drawn from
        the rng stream ``content``; without one the same in every call) or ``'none'``, a plain
        video autoencoder.
      time: ``'centred'`` or ``'causal'`` convolutions.
      convolutions: ``'3d'``, or ``'2d'`` (supplement, table 2): video encoder and decoder take each
        frame by itself, which attends to the clip's content frame; ``time_factor`` is 1. The latent
        is still normalised over the clip (not stated).
      renorm_latent: normalise the latent again before decoding, for generated ones.
      groups, heads: of the group norms and of the middle self-attention.
      fuse_window, attention_window: windows that cross-attention and the content encoder's
        self-attention fall back to on larger maps: one side, or ``(rows, columns)``; 0: never.
      residual_scale: size of what a residual branch adds at the start of training, relative to
        the usual initialisation.
      up_form: ``'nearest'`` or ``'subpixel'``: two ways to compute the up operations.
      remat: recompute each block in the backward pass.
      conv_impl: form of ``kernels.conv3d``.
      latent_scale, latent_shift: recorded in the latent spec.
      dtype: compute dtype.
    """

    latent_channels: int
    width: int
    multipliers: tuple[int, ...] = (1, 2, 2, 4, 4, 4)
    blocks: int = 2
    content_width: int = 128
    content_multipliers: tuple[int, ...] = (1, 2, 4, 4)
    content_blocks: int = 2
    time_factor: int = 4
    space_factor: int = 32
    frames: int = 16
    fuse: tuple[int, ...] = (-1, -1, 2, 3, -1, -1)
    fuse_middle: bool = True
    content: str = "middle"
    time: str = "centred"
    convolutions: str = "3d"
    renorm_latent: bool = False
    groups: int = 32
    heads: int = 8
    fuse_window: int | tuple[int, int] = 128
    attention_window: int | tuple[int, int] = 256
    residual_scale: float = 1.0
    up_form: str = "subpixel"
    remat: bool = False
    conv_impl: str = "auto"
    latent_scale: float = 1.0
    latent_shift: float = 0.0
    dtype: Any = jnp.float32

    def setup(self):
        self._check_fields()
        video = self.make_layer_config(
            self.width,
            self.multipliers,
            self.blocks,
            self._steps(),
            volume=self.convolutions == "3d",
        )
        fuse, middle = self.fuse, self.fuse_middle
        content = None
        if self.content == "none":
            fuse, middle = (-1,) * len(self.multipliers), False
        else:
            # The content frame has no time, and is halved after every level.
            steps = plan_resampling(
                len(self.content_multipliers), 0, len(self.content_multipliers) - 1
            )
            shape = (self.content_width, self.content_multipliers, self.content_blocks)
            content = self.make_layer_config(*shape, steps, volume=False)
        self.encoder = ReducioEncoder(video, content, self.latent_channels)
        # How often time has been halved down to each level, for the length of its stored sinusoid.
        halved = [sum(time for time, _ in self._steps()[:i]) for i in range(len(self.multipliers))]
        self.decoder = ReducioDecoder(
            video,
            self.latent_channels,
            tuple(self._unit >> times for times in halved),
            fuse,
            middle,
            make_window(self.fuse_window),
        )

    def make_layer_config(
        self,
        width: int,
        multipliers: tuple[int, ...],
        blocks: int,
        steps: tuple[tuple[bool, bool], ...],
        volume: bool = True,
    ) -> ReducioConfig:
        """The hyper-parameters of one network, see ``ReducioConfig``."""
        return ReducioConfig(
            widths=tuple(width * m for m in multipliers),
            blocks=blocks,
            steps=steps,
            volume=volume,
            causal=volume and self.time == "causal",
            groups=self.groups,
            heads=self.heads,
            window=make_window(self.attention_window),
            residual_scale=self.residual_scale,
            up_form=self.up_form,
            remat=self.remat,
            implementation=self.conv_impl,
            dtype=self.dtype,
        )

    def _steps(self) -> tuple[tuple[bool, bool], ...]:
        factors = (self.time_factor, self.space_factor)
        # Factors are powers of two: how often each axis is halved.
        return plan_resampling(
            len(self.multipliers), *(factor.bit_length() - 1 for factor in factors)
        )

    def _check_fields(self) -> None:
        levels = len(self.multipliers)
        if self.content not in CONTENT:
            hint = did_you_mean(self.content, CONTENT)
            raise VidlatentError(f"config.model.content {self.content!r} is unknown: {hint}")
        if self.time not in ("centred", "causal"):
            raise VidlatentError(f"config.model.time {self.time!r}: use 'centred' or 'causal'.")
        if self.convolutions not in ("2d", "3d"):
            raise VidlatentError(f"config.model.convolutions {self.convolutions!r}: use 2d or 3d.")
        if self.convolutions == "2d" and self.time_factor != 1:
            raise VidlatentError(
                "config.model.convolutions '2d' leaves time as it is: set config.model.time_factor "
                f"to 1, not {self.time_factor}."
            )
        for name in ("time_factor", "space_factor"):
            factor = getattr(self, name)
            if factor < 1 or factor & (factor - 1) or factor >= 2**levels:
                raise VidlatentError(
                    f"config.model.{name} {factor} must be a power of two below 2^{levels}, the "
                    f"{levels} levels of multipliers."
                )
        if self.frames < 1 or self.frames % self.time_factor:
            raise VidlatentError(
                f"config.model.frames {self.frames} must be a multiple of time_factor "
                f"{self.time_factor}."
            )
        deepest = len(self.content_multipliers)
        if len(self.fuse) != levels or any(not -1 <= i < deepest for i in self.fuse):
            raise VidlatentError(
                f"config.model.fuse {self.fuse} needs one entry for each of the {levels} levels, "
                f"-1 or a level of the content encoder (0 to {deepest - 1})."
            )
        if self.content != "none" and 2 ** (deepest - 1) > self.space_factor:
            raise VidlatentError(
                f"config.model.content_multipliers halve the content frame {deepest - 1} times, "
                f"more often than space_factor {self.space_factor} halves the video."
            )
        widths = [self.width * m for m in self.multipliers]
        widths += [self.content_width * m for m in self.content_multipliers]
        for width in sorted(set(widths)):
            check_parts("config.model.groups", self.groups, "the width", width)

    @property
    def latent_spec(self) -> LatentSpec:
        """The latent's identity: channels, factors, legal clip lengths."""
        # With another content frame latents mean something else, so they get another name.
        tail = "" if self.content == "middle" else f"-{self.content}"
        tail += "-2d" if self.convolutions == "2d" else ""
        return LatentSpec(
            name=f"reducio-ft{self.time_factor}-fs{self.space_factor}{tail}",
            channels=self.latent_channels,
            t=self.time_factor,
            h=self.space_factor,
            w=self.space_factor,
            rule=FrameRule(self.frames, self.frames),
            scale=self.latent_scale,
            shift=self.latent_shift,
        )

    @property
    def _unit(self) -> int:
        """Frames that encoder and decoder see together."""
        return self.frames if self.convolutions == "3d" else 1

    @property
    def latent_frames(self) -> int:
        """Latent frames of one clip."""
        return self.frames // self.time_factor

    @property
    def condition_kind(self) -> ConditionKind:
        """``'content'``: one frame of each clip, unless the field ``content`` is 'none'."""
        return "none" if self.content == "none" else "content"

    @property
    def streams(self) -> bool:
        """Clips follow each other without any memory: ``decode`` takes them in any portions."""
        return True

    @property
    def encoder_paths(self) -> tuple[str, ...]:
        """Both encoders: what the content path says, the motion latent leaves out."""
        return ("encoder/",)

    @property
    def encoder_fields(self) -> tuple[str, ...]:
        return ("attention_window", "frames", "groups", "heads", "time")

    def encode(self, video: jax.Array, *, cache: Any = None) -> tuple[MotionPosterior, Any]:
        """``[B, T, H, W, 3]`` -> the posterior of a row of clips, each by itself, and None.

        T is a multiple of ``frames``. The posterior's ``draw``, ``sample`` and ``mode`` give the
        normalised latent ``[B, t, h, w, c]``; ``cache`` is None, since clips share nothing. Errors
        as of ``Tokenizer.encode``.
        """
        return MotionPosterior.of_moments(self.moments(video, cache), self.latent_frames), None

    def moments(self, video: jax.Array, cache: Any = None) -> jax.Array:
        """Means and log-variances ``[B, t, h, w, 2c]`` float32, before any clipping."""
        _no_cache(cache)
        check_clip(self.latent_spec, video, first=True)
        return _joined(self.encoder(self._clips(video, self._unit)), video.shape[0])

    def decode(
        self, latent: jax.Array, *, condition: Any = None, cache: Any = None
    ) -> tuple[jax.Array, Any]:
        """Normalised latent ``[B, t, h, w, c]`` -> video ``[B, T, H, W, 3]`` float32, and None.

        Args:
          latent: of a row of clips: t is a multiple of a clip's latent frames.
          condition: each clip's content frame ``[B, H, W, 3]`` or ``[B, clips, H, W, 3]`` in
            [-1, 1], or what ``make_condition`` or ``encode_condition`` made of it.
          cache: None; clips share nothing.
        """
        _no_cache(cache)
        size = check_shape(latent, "B t h w c", c=self.latent_channels)
        if size["t"] == 0 or size["t"] % self.latent_frames:
            raise VidlatentError(
                f"{size['t']} latent frames do not fit: a clip of {self.frames} frames has "
                f"{self.latent_frames}."
            )
        if self.renorm_latent:
            # The decoder was trained on normalised latents; a generator's need not be.
            latent = normalise(latent, self.latent_frames)
        units = self._clips(latent, self._unit // self.time_factor)
        features = self._features_of(condition, size["B"] * size["t"] // self.latent_frames)
        # Frames that are decoded by themselves all see their clip's content frame.
        copies = self.frames // self._unit
        features = {level: jnp.repeat(x, copies, axis=0) for level, x in features.items()}
        return _joined(self.decoder(units, features), size["B"]), None

    def pick_content_frames(self, video: jax.Array) -> jax.Array:
        """The frame of each clip that the decoder will see: ``[B * clips, H, W, 3]``."""
        clips = self._clips(video, self.frames)
        if self.content == "random":
            key = self.make_rng("content") if self.has_rng("content") else jax.random.key(0)
            places = jax.random.randint(key, clips.shape[:1], 0, self.frames)
            return jax.vmap(lambda clip, i: clip[i])(clips, places)
        if self.content == "none":
            raise VidlatentError("this decoder takes no condition: config.model.content is 'none'.")
        # Frame 7 of 16, as in the released code; the paper writes T/2.
        return clips[:, 0 if self.content == "first" else (self.frames - 1) // 2]

    def encode_condition(self, frames: jax.Array) -> Features:
        """Features of content frames ``[B * clips, H, W, 3]`` in [-1, 1].

        Returns:
          One ``[B * clips, H', W', C]`` for each level that the decoder attends to, in
          ``feature_levels``.
        """
        check_shape(frames, "B H W C", C=3)
        pyramid = self.encoder.features(frames)
        return tuple(pyramid[i] for i in self.feature_levels)

    @property
    def feature_levels(self) -> tuple[int, ...]:
        """Indices into the content features that the decoder uses; -1 is the middle's."""
        used = {i for i in self.fuse if i >= 0} | ({-1} if self.fuse_middle else set())
        # By level, the middle's last: encode_condition and decode count on one order.
        return () if self.content == "none" else tuple(sorted(used, key=lambda i: (i < 0, i)))

    def encoder_values(self, video: jax.Array) -> tuple[jax.Array, Features]:
        """Output of the video encoder before the last 1x1, and its features by level."""
        return self.encoder.volume(self._clips(video, self._unit))

    def content_values(self, frame: jax.Array) -> tuple[jax.Array, Features]:
        """Unused output of the content encoder, and its features by level."""
        y, features = self.encoder.pyramid(frame)
        return y[:, 0], tuple(x[:, 0] for x in features)

    @nn.nowrap
    def list_space_ways(self) -> tuple[SpaceWay, ...]:
        return tiling.list_space_ways(self)

    @staticmethod
    def _clips(x: jax.Array, length: int) -> jax.Array:
        """``[B, n * length, ...] -> [B * n, length, ...]``."""
        return x.reshape(-1, length, *x.shape[2:])

    def _features_of(self, condition: Any, clips: int) -> dict[int, jax.Array]:
        if self.content == "none":
            refuse_condition(condition)
            return {}
        if condition is None:
            raise VidlatentError(
                "this decoder needs the content frame of each clip: pass condition=frame, or "
                "condition=model.make_condition(video)."
            )
        if not isinstance(condition, (tuple, list)):
            # Raw frames [B, H, W, 3] or [B, clips, H, W, 3], not features yet.
            condition = self.encode_condition(condition.reshape(-1, *condition.shape[-3:]))
        if len(condition) != len(self.feature_levels) or condition[0].shape[0] != clips:
            raise VidlatentError(
                f"the condition has {len(condition)} maps for {condition[0].shape[0]} clips; "
                f"{len(self.feature_levels)} maps for {clips} clips are needed."
            )
        return dict(zip(self.feature_levels, condition, strict=True))


def _joined(x: jax.Array, batch: int) -> jax.Array:
    """``[B * n, T, ...] -> [B, n * T, ...]``."""
    return x.reshape(batch, -1, *x.shape[2:])


def _no_cache(cache: Any) -> None:
    if cache is not None:
        raise VidlatentError("clips share nothing: pass cache=None.")


def build_reducio(fields: Mapping[str, Any], dtype: Any) -> ReducioVAE:
    """The model of ``fields``; unset ones take the class defaults.

    Raises:
      VidlatentError: unknown or missing field.
    """
    return make_module(ReducioVAE, fields, dtype)
