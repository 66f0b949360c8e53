"""How a codec cuts long and large videos: the keys of ``config.codec``, held against a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from vidlatent.infer.steps import Steps, TiledSteps
from vidlatent.models.fsvideo.autoencoder import Autoencoder
from vidlatent.models.promag.autoencoder import ProMAG
from vidlatent.models.reducio.autoencoder import ReducioVAE
from vidlatent.models.reducio.tiling import Tiles
from vidlatent.registry import did_you_mean
from vidlatent.typing import VidlatentError

__all__ = ["Coding", "Plan"]

TIMES = ("auto", "stream", "windows", "chunks")
SPACES = ("whole", "layers", "layers_literal", "tiles", "tiles_published")

# Length of the clips that the published models are trained on, and ProMAG's overlap of chunks.
_CHUNK, _OVERLAP = 17, 4


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a ``Coding`` comes to for one model.

    Attributes:
      model: the tokenizer, its convolutions tiled if that was asked for.
      steps: the compiled operations.
      time: ``'stream'``, ``'windows'`` or ``'chunks'``.
      groups, window_latents: see ``config.codec``.
      chunks: ``(frames, overlap_frames)`` of a chunk; None without chunks.
    """

    model: Any
    steps: Steps
    time: str
    groups: int
    window_latents: int
    chunks: tuple[int, int] | None


@dataclasses.dataclass(frozen=True)
class Coding:
    """The keys of ``config.codec`` (``configs/common.py`` says what they mean).

    A key that has no part in what the others choose is refused, and so is a way of cutting that
    the model does not have.
    """

    time: str = "auto"
    groups: int = 2
    window_latents: int = 16
    chunk_frames: int = 0
    overlap_frames: int = -1
    space: str = "whole"
    layer_positions: int = 0
    layer_overlap_positions: int = -1
    layer_dead_positions: int = -1
    tile_pixels: int = 0
    tile_overlap_pixels: int = -1

    @classmethod
    def of(cls, keys: Mapping[str, Any]) -> Coding:
        """From a mapping of keys; an unknown one is refused with the nearest name."""
        known = [field.name for field in dataclasses.fields(cls)]
        for key in keys:
            if key not in known:
                raise VidlatentError(f"config.codec has no key {key!r}: {did_you_mean(key, known)}")
        return cls(**keys)

    def plan(self, model: Any) -> Plan:
        """How ``model`` codes under these keys.

        Raises:
          VidlatentError: they ask for what the model cannot do.
        """
        for name, value, known in (("time", self.time, TIMES), ("space", self.space, SPACES)):
            if value not in known:
                hint = did_you_mean(value, known)
                raise VidlatentError(f"config.codec.{name} {value!r} is unknown: {hint}")
        for name in ("groups", "window_latents"):
            if getattr(self, name) < 1:
                raise VidlatentError(f"config.codec.{name}={getattr(self, name)}: use 1 or more.")
        time = self._time(model)
        chunks = self._chunks(model, time)
        model, steps = self._space(model)
        return Plan(model, steps, time, self.groups, self.window_latents, chunks)

    def _time(self, model: Any) -> str:
        streams = model.streams if hasattr(model, "streams") else True
        windows = isinstance(model, Autoencoder)
        if self.time == "auto":
            return "stream" if streams else "windows" if windows else "chunks"
        if self.time == "stream" and not streams:
            other = "'windows' (the same result)" if windows else "'chunks'"
            raise VidlatentError(
                f"config.codec.time 'stream' needs a tokenizer that never looks ahead, and this "
                f"{model.latent_spec.name} does: use {other}."
            )
        if self.time == "windows" and not windows:
            raise VidlatentError(
                f"config.codec.time 'windows' is for FSAE's decoders, not for "
                f"{model.latent_spec.name}: use {'stream' if streams else 'chunks'!r}."
            )
        return self.time

    def _chunks(self, model: Any, time: str) -> tuple[int, int] | None:
        if time != "chunks":
            self._refuse(f"time is {time!r}", "chunk_frames", "overlap_frames")
            return None
        rule = model.latent_spec.rule
        frames = self.chunk_frames or rule.floor(_CHUNK)
        if not rule.legal(frames):
            low, high = rule.nearest(frames)
            raise VidlatentError(
                f"config.codec.chunk_frames={frames} is no clip of {model.latent_spec.name}, which "
                f"takes {rule} frames: use {low} or {high}."
            )
        overlap = min(_OVERLAP, frames // 2) if self.overlap_frames < 0 else self.overlap_frames
        if overlap > frames // 2:
            raise VidlatentError(
                f"config.codec.overlap_frames={overlap} is more than half of a chunk of {frames} "
                f"frames, where three would meet: use 0 to {frames // 2}."
            )
        return frames, overlap

    def _space(self, model: Any) -> tuple[Any, Steps]:
        layers = ("layer_positions", "layer_overlap_positions", "layer_dead_positions")
        tiles = ("tile_pixels", "tile_overlap_pixels")
        if self.space in ("layers", "layers_literal"):
            self._only(model, ProMAG, "ProMAG's and MAGVIT-v2's decoders")
            self._refuse(f"space is {self.space!r}", *tiles)
            model = self._in_layers(model)
            return model, Steps(model)
        self._refuse(f"space is {self.space!r}", *layers)
        if self.space == "whole":
            self._refuse("space is 'whole'", *tiles)
            return model, Steps(model)
        self._only(model, ReducioVAE, "Reducio-VAE")
        core = self.tile_pixels or 256
        beyond = core // 4 if self.tile_overlap_pixels < 0 else self.tile_overlap_pixels
        if not 0 <= beyond <= core:
            raise VidlatentError(
                f"config.codec.tile_overlap_pixels={beyond}: use 0 to tile_pixels, {core}."
            )
        cut = Tiles(core, Fraction(beyond, core))
        cut.latent(model.latent_spec.h)  # raises where they miss the latent's grid
        return model, TiledSteps(model, cut, published=self.space == "tiles_published")

    def _in_layers(self, model: Any) -> Any:
        literal = self.space == "layers_literal"
        if not literal:
            self._refuse("space is 'layers', exact without it", "layer_dead_positions")
        overlap, dead = self.layer_overlap_positions, self.layer_dead_positions
        fields = {
            "tile_size": self.layer_positions or 64,
            "tile_overlap": (4 if literal else 0) if overlap < 0 else overlap,
            "tile_mode": "literal" if literal else "halo",
            "tile_dead_zone": (1 if literal else 0) if dead < 0 else dead,
        }
        model = model.clone(parent=None, **fields)
        _ = model.plan  # raises where a tile is smaller than the overlap
        return model

    def _only(self, model: Any, kind: type, who: str) -> None:
        if not isinstance(model, kind):
            raise VidlatentError(
                f"config.codec.space {self.space!r} is for {who}, not for "
                f"{model.latent_spec.name}: use 'whole'."
            )

    def _refuse(self, why: str, *names: str) -> None:
        """Raise if a key is set that does nothing here."""
        unset = {field.name: field.default for field in dataclasses.fields(self)}
        for name in names:
            if getattr(self, name) != unset[name]:
                raise VidlatentError(
                    f"config.codec.{name}={getattr(self, name)} does nothing while {why}: leave it "
                    "out, or change that."
                )
