"""The latent space: what two parts of a system must agree in to work on each other's latents.

A space is made once, with the tokenizer. Every latent set, generator and later stage carries it,
and where two of them meet, ``require_same`` compares.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vidlatent.errors import VidlatentError
from vidlatent.spec import LatentSpec

__all__ = ["NORMALISATIONS", "LatentSpace", "Moments", "chunk_latents", "require_same"]

# How latents are brought to the size that generators learn at (``config.latents.normalisation``).
NORMALISATIONS = ("statistics", "spec", "none")

# Of each channel ``[c]``; or ``[p][c]``, of each latent frame of a chunk by itself.
Moments = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class LatentSpace:
    """Identity and normalisation of latents.

    Attributes:
      spec: which tokenizer's latents: channels, factors, legal lengths, chunks in time.
      mean, std: a network sees ``(latent - mean) / std``; of each channel, or of each channel in
        each latent frame of a chunk.
      normalisation: where they come from, one of ``NORMALISATIONS``.
      encoder: digest of what encodes (``latents.digest.hash_encoder``); '' if unknown.
      cut: the rule by which large frames are cut, where that changes the latents (Reducio's
        tiles); '' where they are coded whole, or cut exactly; None if unknown.
      tokenizer: hash of the config that the tokenizer was trained with, for people.
      weights: digest of all its parameters, which is compared where ``encoder`` is unknown, as in
        sets and runs of older versions.
    """

    spec: LatentSpec
    mean: Moments
    std: Moments
    normalisation: str = "statistics"
    encoder: str = ""
    cut: str | None = None
    tokenizer: str = ""
    weights: str = ""

    def __post_init__(self):
        mean, std = np.asarray(self.mean), np.asarray(self.std)
        channels = self.spec.channels
        fits = mean.shape == std.shape and mean.shape[-1:] == (channels,)
        # Written so that NaN is refused, too.
        if not fits or not (np.isfinite([mean, std]).all() and (std > 0).all()):
            raise VidlatentError(
                f"latents of {channels} channels need as many means and standard deviations above "
                f"0, got {list(mean.shape)} and {list(std.shape)}: encode them again."
            )
        if mean.ndim == 2 and len(mean) != chunk_latents(self.spec):
            raise VidlatentError(
                f"moments of {len(mean)} latent frames do not fit {self.spec}: set "
                "config.latents.chunk_positions=False, or name the chunks that they were taken of "
                "by config.tokenizer.chunks."
            )

    @classmethod
    def of_spec(cls, spec: LatentSpec, normalisation: str = "spec", **about: Any) -> LatentSpace:
        """The space normalised as the spec says ('spec'), or not at all ('none')."""
        if normalisation == "spec" and spec.moments is not None:
            return cls(spec, *spec.moments, normalisation, **about)
        shift, scale = (spec.shift, spec.scale) if normalisation == "spec" else (0.0, 1.0)
        # The spec's (latent - shift) * scale, written with a mean and a deviation.
        mean, std = (shift,) * spec.channels, (1.0 / scale,) * spec.channels
        return cls(spec, mean, std, normalisation, **about)

    def with_moments(self, mean: Any, std: Any) -> LatentSpace:
        """The same normalised by measured moments, ``[c]`` or ``[p, c]``."""
        # A constant channel has std 0; dividing by 1 instead makes it 0 for the network.
        std = np.where(np.asarray(std) > 0, std, 1.0)
        return dataclasses.replace(
            self, mean=_to_tuple(mean), std=_to_tuple(std), normalisation="statistics"
        )

    def standardise(self, latent: Any) -> jax.Array:
        """``(latent - mean) / std`` for a latent ``[..., t, h, w, c]``, float32.

        Moments of the latent frames of a chunk repeat along t, which begins with a chunk.
        """
        mean, std = (jnp.asarray(self._spread(x, latent)) for x in (self.mean, self.std))
        return (jnp.asarray(latent, jnp.float32) - mean) / std

    def restore(self, latent: Any) -> np.ndarray:
        """The inverse of ``standardise`` for ``[..., t, h, w, c]``, float32 on the host."""
        mean, std = (self._spread(x, latent) for x in (self.mean, self.std))
        return np.asarray(latent, np.float32) * std + mean

    def restore_traced(self, latent: jax.Array) -> jax.Array:
        """``restore`` inside a compiled function."""
        mean, std = (jnp.asarray(self._spread(x, latent)) for x in (self.mean, self.std))
        return latent.astype(jnp.float32) * std + mean

    @staticmethod
    def _spread(moments: Moments, latent: Any) -> np.ndarray:
        values = np.asarray(moments, np.float32)
        if values.ndim == 1:
            return values
        # [p, c] -> [t, 1, 1, c]: chunks follow each other, each with its p latent frames
        frames = np.arange(latent.shape[-4]) % len(values)
        return values[frames][:, None, None]

    def find_difference(self, other: LatentSpace, moments: bool = True) -> str:
        """In what two spaces differ, in a few words; '' if latents of one are the other's.

        How clips are cut into chunks does not count: it is a property of clips, and a stage on
        pictures goes before one on chunks.

        Args:
          other: the other one.
          moments: compare the normalisation, too; decoders need not.
        """
        if _identity(self.spec).hash != _identity(other.spec).hash:
            return "another kind of tokenizer"
        if self.encoder and other.encoder:
            if self.encoder != other.encoder:
                return f"encoders {self.encoder[:8]} and {other.encoder[:8]}"
        elif self.weights and other.weights and self.weights != other.weights:
            return f"weights {self.weights[:8]} and {other.weights[:8]}"
        if None not in (self.cut, other.cut) and self.cut != other.cut:
            return f"frames cut {self.cut or 'not at all'} and {other.cut or 'not at all'}"
        if moments and (self.mean, self.std) != (other.mean, other.std):
            kinds = f"of {self.normalisation} and of {other.normalisation}"
            same = self.normalisation == other.normalisation
            return "other means and standard deviations" + ("" if same else f", {kinds}")
        return ""

    def __str__(self) -> str:
        spec = self.spec
        known = f", encoder {self.encoder[:8]}" if self.encoder else ""
        return f"{spec.name} ({spec.channels} channels, {spec.t}x{spec.h}x{spec.w}{known})"

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "spec": self.spec.to_json()}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> LatentSpace:
        """What ``to_json`` made, today or by an older version, which named no normalisation."""
        spec = LatentSpec.from_json(stored["spec"])
        moments = {name: _to_tuple(stored[name]) for name in ("mean", "std")}
        space = cls(**{**stored, **moments, "spec": spec})
        if "normalisation" not in stored:
            # From videos they took the spec's scale and shift, from sets the moments of the set.
            plain = cls.of_spec(spec)
            if (space.mean, space.std) == (plain.mean, plain.std):
                space = dataclasses.replace(space, normalisation="spec")
        return space


def require_same(
    ours: LatentSpace,
    theirs: LatentSpace,
    our_name: str,
    their_name: str,
    remedy: str,
    *,
    moments: bool = True,
) -> None:
    """Raise ``VidlatentError``, one sentence that names both sides, unless the spaces are one.

    Args:
      ours, theirs: the spaces.
      our_name, their_name: whose they are, such as ``'the latent set data/latents'``.
      remedy: what to do, behind a colon.
      moments: compare the normalisation, too.
    """
    if difference := ours.find_difference(theirs, moments):
        raise VidlatentError(
            f"{our_name} has latents of {ours}, {their_name} those of {theirs} ({difference}): "
            f"{remedy}."
        )


def chunk_latents(spec: LatentSpec) -> int:
    """Latent frames of a chunk; 0 if clips are coded whole."""
    if spec.chunks is None:
        return 0
    return spec.whole.latent_shape((spec.chunks[0], spec.h, spec.w))[0]


def _identity(spec: LatentSpec) -> LatentSpec:
    """The spec without what says nothing about the encoder: normalisation, chunks, storage."""
    return dataclasses.replace(spec.whole, scale=1.0, shift=0.0, moments=None, dtype="float32")


def _to_tuple(moments: Any) -> Moments:
    values = np.asarray(moments, np.float64)
    rows = values.tolist()
    return tuple(map(tuple, rows)) if values.ndim == 2 else tuple(rows)
