"""How a codec cuts long and large videos: the keys of ``config.codec``, held against a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import jax

from vidlatent.codec.auto import AutoSteps, Way
from vidlatent.codec.programs import PartSteps, Steps, TiledSteps
from vidlatent.errors import VidlatentError
from vidlatent.models.tokenizers.fsvideo.model import Autoencoder
from vidlatent.models.tokenizers.fsvideo.patches import encoder_end, outer_stage
from vidlatent.models.tokenizers.fsvideo.tiling import margins
from vidlatent.models.tokenizers.ivvae.model import IVVAE
from vidlatent.models.tokenizers.ivvae.strips import LIMIT
from vidlatent.models.tokenizers.promag.model import ProMAG
from vidlatent.models.tokenizers.reducio.model import ReducioVAE
from vidlatent.models.tokenizers.reducio.tiling import Tiles
from vidlatent.registry import did_you_mean
from vidlatent.spec import LatentSpec

__all__ = ["Coding", "Plan"]

TIMES = ("auto", "stream", "windows", "chunks")
SPACES = ("auto", "whole", "strips", "layers", "layers_literal", "tiles", "tiles_published")

# Length of the clips that the published models are trained on, and ProMAG's overlap of chunks.
_CHUNK, _OVERLAP = 17, 4
# What 'auto' tries after whole frames: sides of tiles in pixels, of layers' tiles in positions, and
# bytes of the arrays of a strip.
_TILES = (1024, 768, 512, 384, 256, 192, 128)
_POSITIONS = (256, 128, 64, 32)
_STRIPS = tuple(LIMIT >> shift for shift in range(6))
_LAYERS = ("layer_positions", "layer_overlap_positions", "layer_dead_positions")
_TILE = ("tile_pixels", "tile_overlap_pixels")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a ``Coding`` comes to for one model.

    Attributes:
      model: the tokenizer, its convolutions tiled if that was asked for.
      steps: the compiled operations.
      time: ``'stream'``, ``'windows'`` or ``'chunks'``.
      groups, scan_groups, window_latents: see ``config.codec``; ``scan_groups`` is 1 or more.
      chunks: ``(frames, overlap_frames)`` of a chunk; None without chunks.
    """

    model: Any
    steps: Steps | AutoSteps
    time: str
    groups: int
    scan_groups: int
    window_latents: int
    chunks: tuple[int, int] | None


@dataclasses.dataclass(frozen=True)
class Coding:
    """The keys of ``config.codec`` (``config/defaults/codec.py`` says what they mean).

    A key that has no part in what the others choose is refused, and so is a way of cutting that
    the model does not have.
    """

    time: str = "auto"
    groups: int = 2
    scan_groups: int = 0
    window_latents: int = 16
    chunk_frames: int = 0
    overlap_frames: int = -1
    space: str = "auto"
    memory_gb: float = 0.0
    strip_mb: float = 0.0
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

    def for_latents(self, spec: LatentSpec) -> Coding:
        """The same, cutting time as the latents of ``spec`` were cut."""
        if spec.chunks is not None:
            frames, overlap = spec.chunks
            keys = {"time": "chunks", "chunk_frames": frames, "overlap_frames": overlap}
            return dataclasses.replace(self, scan_groups=0, **keys)
        if self.time != "chunks":
            return self
        return dataclasses.replace(self, time="auto", chunk_frames=0, overlap_frames=-1)

    def plan(self, model: Any, devices: int = 1) -> Plan:
        """How ``model`` codes under these keys.

        Args:
          devices: over which rows are spread.

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
        for name in ("scan_groups", "memory_gb", "strip_mb"):
            if getattr(self, name) < 0:
                raise VidlatentError(f"config.codec.{name}={getattr(self, name)}: use 0 or more.")
        time = self._time(model)
        if time != "stream":
            self._refuse(f"time is {time!r}", "scan_groups")
        chunks = self._chunks(model, time)
        if devices > 1 and self.space not in ("auto", "whole"):
            raise VidlatentError(
                f"config.codec.space {self.space!r} cuts frames that a mesh of {devices} devices "
                "spreads by height already: use 'auto' or 'whole'."
            )
        steps = self._auto(model, devices) if self.space == "auto" else self._space(model)
        # One call for several pieces saves dispatches, which cost a CPU next to nothing.
        scan = self.scan_groups or (1 if jax.default_backend() == "cpu" else 4)
        scan = scan if time == "stream" else 1
        return Plan(steps.model, steps, time, self.groups, scan, self.window_latents, chunks)

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

    def _auto(self, model: Any, devices: int) -> AutoSteps:
        """Whole frames, and what the model has for frames that do not fit."""
        unset = ("strip_mb", *_LAYERS, *_TILE)
        self._refuse("space is 'auto'", *unset)
        ways = [Way("whole frames", lambda: Steps(model))]
        if devices == 1:
            ways += self.smaller(model)
        return AutoSteps(ways, self.memory_gb, devices)

    def smaller(self, model: Any) -> list[Way]:
        """What the model has for frames that do not fit whole, from the largest parts on."""

        def way(words: str, cuts: int, **keys: Any) -> Way:
            asked = dataclasses.replace(self, memory_gb=0.0, **keys)
            return Way(words, lambda: asked._space(model), cuts, keys)

        if isinstance(model, Autoencoder) and _has_outer_stages(model):
            cell = max(cell for cell, _ in margins(model))
            return [
                way(
                    f"tiles of {side} pixels (the same result)",
                    side,
                    space="tiles",
                    tile_pixels=side,
                )
                for side in _TILES
                if side % cell == 0
            ]
        if isinstance(model, IVVAE):
            return [
                way(
                    f"strips of rows of {limit / 2**20:g} MiB (the same result)",
                    0,
                    space="strips",
                    strip_mb=limit / 2**20,
                )
                for limit in _STRIPS
            ]
        if isinstance(model, ProMAG) and not model.line:
            return [
                way(
                    f"convolutions in tiles of {side} positions (the same result)",
                    side,
                    space="layers",
                    layer_positions=side,
                )
                for side in _POSITIONS
            ]
        if isinstance(model, ReducioVAE) and 256 % (4 * model.latent_spec.h) == 0:
            words = (
                "tiles of 320 pixels (each with norms of its own: not the result of whole frames)"
            )
            return [way(words, 320, space="tiles")]
        return []

    def _space(self, model: Any) -> Steps:
        self._refuse(f"space is {self.space!r}", "memory_gb")
        if self.space != "strips":
            self._refuse(f"space is {self.space!r}", "strip_mb")
        if self.space not in ("layers", "layers_literal"):
            self._refuse(f"space is {self.space!r}", *_LAYERS)
        if self.space not in ("tiles", "tiles_published"):
            self._refuse(f"space is {self.space!r}", *_TILE)
        if self.space == "whole":
            return Steps(model)
        if self.space == "strips":
            self._only(model, IVVAE, "IV-VAE")
            limit = int(self.strip_mb * 2**20) or LIMIT
            return Steps(model.clone(parent=None, row_limit=limit, strips_anywhere=True))
        if self.space in ("layers", "layers_literal"):
            self._only(model, ProMAG, "ProMAG's and MAGVIT-v2's decoders")
            return Steps(self._in_layers(model))
        if self.space == "tiles" and isinstance(model, Autoencoder):
            return self._parts(model)
        self._only(model, ReducioVAE, "FSAE (exactly) and Reducio-VAE")
        core = self.tile_pixels or 256
        beyond = core // 4 if self.tile_overlap_pixels < 0 else self.tile_overlap_pixels
        if not 0 <= beyond <= core:
            raise VidlatentError(
                f"config.codec.tile_overlap_pixels={beyond}: use 0 to tile_pixels, {core}."
            )
        cut = Tiles(core, Fraction(beyond, core))
        cut.latent(model.latent_spec.h)  # raises where they miss the latent's grid
        return TiledSteps(model, cut, published=self.space == "tiles_published")

    def _parts(self, model: Any) -> PartSteps:
        """FSAE: tiles that read as far as its convolutions look."""
        steps = PartSteps(model, self.tile_pixels or 512)
        if self.tile_overlap_pixels >= 0:
            (_, decoder), (_, encoder) = margins(model)
            raise VidlatentError(
                f"config.codec.tile_overlap_pixels={self.tile_overlap_pixels}: tiles of "
                f"{model.latent_spec.name} read {decoder} pixels beyond each side (encoder "
                f"{encoder}), no less and no more, which makes them exact: leave it out."
            )
        return steps

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
        if isinstance(model, kind):
            return
        other = "'whole'"
        if isinstance(model, ProMAG):
            # Its norms take statistics of the whole map.
            other = "'layers', which keeps the norms of whole frames, or 'whole'"
        if isinstance(model, IVVAE):
            other = "'strips' or 'whole'"
        raise VidlatentError(
            f"config.codec.space {self.space!r} is for {who}, not for {model.latent_spec.name}: "
            f"use 'auto', {other}."
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


def _has_outer_stages(model: Autoencoder) -> bool:
    """Whether there are stages without attention, which tiles need."""
    try:
        return outer_stage(model) > 0 and encoder_end(model) >= 0
    except VidlatentError:
        return False
