"""The keys of ``config.codec``, and what they come to for one tokenizer.

A key that has no part in what the others choose is refused, and so is a way of cutting that the
tokenizer does not have.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax

from vidlatent.codec.auto import AutoPrograms, Candidate
from vidlatent.codec.programs import CodecPrograms
from vidlatent.config.defaults.codec import get_codec
from vidlatent.errors import VidlatentError
from vidlatent.models.tokenizers.base import Tokenizer
from vidlatent.models.tokenizers.cutting import SpaceWay, make_latent_coder
from vidlatent.registry import did_you_mean
from vidlatent.spec import LatentSpec

__all__ = ["CodecOptions", "CodecPlan", "plan_codec"]

TIMES = ("auto", "stream", "windows", "chunks")
# Values of config.codec.space that this package's tokenizers know, and whose they are.
_OWNERS = {
    "strips": "IV-VAE",
    "layers": "ProMAG's and MAGVIT-v2's decoders",
    "layers_literal": "ProMAG's and MAGVIT-v2's decoders",
    "tiles": "FSAE (exactly) and Reducio-VAE",
    "tiles_published": "Reducio-VAE",
}
# Keys that only ways of cutting frames read.
_CUTTING_KEYS = (
    "strip_mb",
    "layer_positions",
    "layer_overlap_positions",
    "layer_dead_positions",
    "tile_pixels",
    "tile_overlap_pixels",
)
# Length of the clips that the published models are trained on, and ProMAG's overlap of chunks
# (appendix D).
_CHUNK, _OVERLAP = 17, 4


@dataclasses.dataclass(frozen=True)
class CodecOptions:
    """The keys of ``config.codec``; ``config/defaults/codec.py`` says what they mean.

    Made by ``CodecOptions.of``, which knows the defaults.

    Attributes:
      whole_latents: no key: the latents to decode were coded whole, so that a tokenizer which has
        no other way than chunks decodes them whole too; see ``for_latents``.
    """

    time: str
    groups: int
    scan_groups: int
    window_latents: int
    chunk_frames: int
    overlap_frames: int
    space: str
    memory_gb: float
    strip_mb: float
    layer_positions: int
    layer_overlap_positions: int
    layer_dead_positions: int
    tile_pixels: int
    tile_overlap_pixels: int
    whole_latents: bool = False

    @classmethod
    def of(cls, **keys: Any) -> CodecOptions:
        """The defaults with these keys set: ``CodecOptions.of(**config.codec)``.

        Raises:
          VidlatentError: an unknown key, with the nearest name.
        """
        defaults = get_codec()
        for key in keys:
            if key not in defaults:
                hint = did_you_mean(key, defaults)
                raise VidlatentError(f"config.codec has no key {key!r}: {hint}")
        return cls(**{**defaults, **keys})

    def for_latents(self, spec: LatentSpec) -> CodecOptions:
        """The same, cutting time as the latents of ``spec`` were cut."""
        keys: dict[str, Any]
        if spec.chunks is not None:
            frames, overlap = spec.chunks
            keys = {"time": "chunks", "chunk_frames": frames, "overlap_frames": overlap}
            # scan_groups belongs to streams and would be refused beside chunks.
            return dataclasses.replace(self, scan_groups=0, **keys)
        if self.time != "chunks":
            return dataclasses.replace(self, whole_latents=True)
        # The config asks for chunks, but these latents were coded whole: back to the defaults.
        keys = {"time": "auto", "chunk_frames": 0, "overlap_frames": -1}
        return dataclasses.replace(self, whole_latents=True, **keys)

    def with_cut(self, model: Tokenizer, cut: str | None) -> CodecOptions:
        """The same, cutting frames as latents of ``model`` were cut whose coder had this ``cut``.

        None, if that is unknown, changes nothing.
        """
        if cut is None or make_latent_coder(model, self).cut == cut:
            return self
        name, _, sizes = cut.partition(":")
        core, beyond = map(int, sizes.split("+")) if sizes else (0, -1)
        keys: dict[str, Any] = {"tile_pixels": core, "tile_overlap_pixels": beyond}
        keys["memory_gb"] = 0.0  # has no say where a way is named, and would be refused
        return dataclasses.replace(self, space=name or "whole", **keys)


@dataclasses.dataclass(frozen=True)
class CodecPlan:
    """What ``config.codec`` comes to for one tokenizer.

    Attributes:
      programs: the compiled operations.
      time: ``'stream'``, ``'windows'`` or ``'chunks'``.
      groups, scan_groups, window_latents: see ``config.codec``; ``scan_groups`` is 1 or more.
      chunks: ``(frames, overlap_frames)`` of a chunk; None without chunks.
      whole_latents: latents are decoded whole where chunks are the only way.
    """

    programs: CodecPrograms | AutoPrograms
    time: str
    groups: int
    scan_groups: int
    window_latents: int
    chunks: tuple[int, int] | None
    whole_latents: bool = False

    @property
    def cut(self) -> str:
        """As of ``FrameCoder``: names the way of cutting frames where it changes the latents."""
        return self.programs.coder.cut


def plan_codec(codec: CodecOptions, model: Tokenizer, devices: int = 1) -> CodecPlan:
    """How ``model`` codes under ``config.codec``.

    Args:
      codec: its keys.
      model: the tokenizer.
      devices: over which rows are spread.

    Raises:
      VidlatentError: they ask for what the model cannot do.
    """
    _check_values(codec)
    time = _choose_time(codec, model)
    if time != "stream":
        _refuse(codec, f"time is {time!r}", "scan_groups")
    chunks = _plan_chunks(codec, model, time)
    exact = {way.name: way.exact for way in model.list_space_ways()}
    # Ways that change the result are not there to save memory, and mean the same on a mesh.
    if devices > 1 and codec.space not in ("auto", "whole") and exact.get(codec.space, True):
        raise VidlatentError(
            f"config.codec.space {codec.space!r} cuts frames that a mesh of {devices} devices "
            "spreads by height already: use 'auto' or 'whole'."
        )
    programs = _choose_space(codec, model, devices)
    # One call for several pieces saves dispatches, which cost a CPU next to nothing.
    scan = codec.scan_groups or (1 if jax.default_backend() == "cpu" else 4)
    scan = scan if time == "stream" else 1
    given = codec.groups, scan, codec.window_latents, chunks, codec.whole_latents
    return CodecPlan(programs, time, *given)


def _check_values(codec: CodecOptions) -> None:
    if codec.time not in TIMES:
        hint = did_you_mean(codec.time, TIMES)
        raise VidlatentError(f"config.codec.time {codec.time!r} is unknown: {hint}")
    for name in ("groups", "window_latents"):
        if getattr(codec, name) < 1:
            raise VidlatentError(f"config.codec.{name}={getattr(codec, name)}: use 1 or more.")
    for name in ("scan_groups", "memory_gb", "strip_mb"):
        if getattr(codec, name) < 0:
            raise VidlatentError(f"config.codec.{name}={getattr(codec, name)}: use 0 or more.")


def _choose_time(codec: CodecOptions, model: Tokenizer) -> str:
    """``config.codec.time``, or the tokenizer's best way for 'auto'."""
    ways = {way.name: way for way in model.list_time_ways()}
    if codec.time == "auto":
        # Tokenizers list the best way first.
        return next(iter(ways))
    if codec.time in ways:
        return codec.time
    name = model.latent_spec.name
    best = next(iter(ways.values()))
    if codec.time == "stream":
        other = f"{best.name!r} (the same result)" if best.exact else repr(best.name)
        raise VidlatentError(
            f"config.codec.time 'stream' needs a tokenizer that never looks ahead, and this "
            f"{name} does: use {other}."
        )
    raise VidlatentError(
        f"config.codec.time {codec.time!r} is for FSAE's decoders, not for {name}: use "
        f"{best.name!r}."
    )


def _plan_chunks(codec: CodecOptions, model: Tokenizer, time: str) -> tuple[int, int] | None:
    if time != "chunks":
        _refuse(codec, f"time is {time!r}", "chunk_frames", "overlap_frames")
        return None
    rule = model.latent_spec.rule
    frames = codec.chunk_frames or rule.floor(_CHUNK)
    if not rule.legal(frames):
        low, high = rule.nearest(frames)
        raise VidlatentError(
            f"config.codec.chunk_frames={frames} is no clip of {model.latent_spec.name}, which "
            f"takes {rule} frames: use {low} or {high}."
        )
    # Short chunks share at most half, so that no frame lies in three of them.
    overlap = min(_OVERLAP, frames // 2) if codec.overlap_frames < 0 else codec.overlap_frames
    if overlap > frames // 2:
        raise VidlatentError(
            f"config.codec.overlap_frames={overlap} is more than half of a chunk of {frames} "
            f"frames, where three would meet: use 0 to {frames // 2}."
        )
    return frames, overlap


def _choose_space(
    codec: CodecOptions, model: Tokenizer, devices: int
) -> CodecPrograms | AutoPrograms:
    """The programs of ``config.codec.space``; for 'auto' those that fit into the memory at hand."""
    if codec.space == "auto":
        _refuse(codec, "space is 'auto'", *_CUTTING_KEYS)
        candidates = [_choose_first(codec, model)]
        # On a mesh frames are spread by height already, so they are not cut as well.
        if devices == 1 and not candidates[0].cuts:
            candidates += _list_candidates(codec, model)
        return AutoPrograms(candidates, codec.memory_gb, devices)
    _refuse(codec, f"space is {codec.space!r}", "memory_gb")
    if codec.space == "whole":
        _refuse(codec, "space is 'whole'", *_CUTTING_KEYS)
        return CodecPrograms(model.make_frame_coder())
    way = _find_way(codec, model)
    # A key that this way ignores is more likely a mistake than meant.
    unread = [key for key in _CUTTING_KEYS if key not in way.keys]
    _refuse(codec, f"space is {codec.space!r}", *unread)
    return CodecPrograms(way.make(codec))


def _choose_first(codec: CodecOptions, model: Tokenizer) -> Candidate:
    """The tokenizer's rule for large frames if it has one, else whole frames."""
    for way in model.list_space_ways():
        if way.rule:
            size, keys = way.sizes[0], dataclasses.replace(codec, memory_gb=0.0)
            return Candidate(size.words, functools.partial(way.make, keys), size.cuts)
    return Candidate("whole frames", model.make_frame_coder)


def _list_candidates(codec: CodecOptions, model: Tokenizer) -> list[Candidate]:
    """What the tokenizer has for frames that do not fit whole, from the largest parts on."""
    found = []
    for way in model.list_space_ways():
        # Only ways with the result of whole frames may depend on the memory.
        for size in way.sizes if way.exact else ():
            keys = dataclasses.replace(codec, memory_gb=0.0, **size.keys)
            found.append(Candidate(size.words, functools.partial(way.make, keys), size.cuts))
    return found


def _find_way(codec: CodecOptions, model: Tokenizer) -> SpaceWay:
    """The tokenizer's way called ``config.codec.space``."""
    ways = {way.name: way for way in model.list_space_ways()}
    if codec.space in ways:
        return ways[codec.space]
    if codec.space not in _OWNERS:
        hint = did_you_mean(codec.space, ("auto", "whole", *(ways or _OWNERS)))
        raise VidlatentError(f"config.codec.space {codec.space!r} is unknown: {hint}")
    suggested = "".join(f", {way.name!r}{way.remark}" for way in ways.values())
    raise VidlatentError(
        f"config.codec.space {codec.space!r} is for {_OWNERS[codec.space]}, not for "
        f"{model.latent_spec.name}: use 'auto'{suggested} or 'whole'."
    )


def _refuse(codec: CodecOptions, why: str, *names: str) -> None:
    """Raise if a key is set that does nothing here."""
    unset = get_codec()
    for name in names:
        if getattr(codec, name) != unset[name]:
            raise VidlatentError(
                f"config.codec.{name}={getattr(codec, name)} does nothing while {why}: leave it "
                "out, or change that."
            )
