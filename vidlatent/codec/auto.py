"""``config.codec.space='auto'``: choose how to cut frames by the free memory."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from vidlatent.codec.memory import count_tree_bytes, estimate_peak_bytes, find_free_memory
from vidlatent.codec.programs import CodecPrograms
from vidlatent.errors import VidlatentError
from vidlatent.models.tokenizers.cutting import Borders, FrameCoder

__all__ = ["AutoPrograms", "Candidate", "count_clips", "estimate_bytes"]

# Fraction of the free memory that a choice may fill; the rest is headroom for errors of the
# estimate and for other processes.
_SHARE = 0.7
# Compilers were seen to take up to this much more than ``estimate_peak_bytes`` says
# (tests/codec/test_codec_space.py compares).
_EXTRA = 1.25
# No model holds as many full-size arrays as this at a time.
_ARRAYS = 32


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way of cutting frames that may be chosen.

    Attributes:
      words: what the log calls it.
      make: the functions that code this way, made only when the candidate is considered.
      cuts: frames of at most so many pixels a side are not cut by it.
    """

    words: str
    make: Callable[[], FrameCoder]
    cuts: int = 0


@dataclasses.dataclass(frozen=True)
class _Held:
    """A cache, and the programs that made it; only they can continue from it."""

    programs: CodecPrograms
    cache: Any


class AutoPrograms:
    """Programs chosen for each size of frames, the first time that size comes up.

    The methods are those of ``CodecPrograms``.

    Args:
      candidates: from whole frames to the smallest parts; or the tokenizer's rule alone.
      gigabytes: of memory to count on; 0: what is free when a choice is made.
      devices: over which rows are spread.
    """

    def __init__(self, candidates: Sequence[Candidate], gigabytes: float = 0.0, devices: int = 1):
        self._candidates, self._gigabytes, self._devices = candidates, gigabytes, devices
        self.first = CodecPrograms(candidates[0].make())
        self.model = self.first.model
        self._made: dict[int, CodecPrograms] = {0: self.first}
        self._chosen: dict[tuple[Any, ...], CodecPrograms] = {}
        self._decoding: dict[tuple[int, int], CodecPrograms] = {}

    @property
    def condition_kind(self) -> str:
        return self.model.condition_kind

    @property
    def coder(self) -> FrameCoder:
        """The functions that decide what latents are; the others give the same."""
        return self.first.coder

    def choose(self, kind: str, params: Any, shape: tuple[int, int, int]) -> CodecPrograms:
        """The programs for pieces of ``shape`` (frames, height, width)."""
        return self._for(kind, params, shape, None)[0]

    def pick_content_frames(self, pixels: np.ndarray, first: bool) -> np.ndarray | None:
        return self.first.pick_content_frames(pixels, first)

    def encode(self, params, pixels, cache, key, start):
        programs, cache = self._for("encode", params, pixels.shape[1:4], cache)
        latent, cache = programs.encode(params, pixels, cache, key, start)
        return latent, _held(programs, cache)

    def encode_run(self, params, pixels, cache, key, start):
        programs, cache = self._for("encode", params, pixels.shape[2:5], cache)
        latent, cache = programs.encode_run(params, pixels, cache, key, start)
        return latent, _held(programs, cache)

    def encode_condition(self, params, frames):
        clips, height, width = frames.shape[:3]
        if self.condition_kind == "content":  # made tile by tile, as the decoder will read it
            shape = (clips * self.model.latent_spec.rule.step, height, width)
            return self._for("decode", params, shape, None)[0].encode_condition(params, frames)
        return self._for("encode", params, (1, height, width), None)[0].encode_condition(
            params, frames
        )

    def decode(self, params, latent, condition, cache):
        programs, cache = self._for("decode", params, self._pixels(latent.shape[1:4]), cache)
        video, cache = programs.decode(params, latent, condition, cache)
        return video, _held(programs, cache)

    def decode_run(self, params, latents, frames, cache):
        programs, cache = self._for("decode", params, self._pixels(latents.shape[2:5]), cache)
        video, cache = programs.decode_run(params, latents, frames, cache)
        return video, _held(programs, cache)

    def decode_windows(self, params, latents, size, condition):
        # Look at the first latent for the size of the frames, and put it back in front.
        head = next(latents := iter(latents))
        shape = self._pixels((self.first.coder.count_window_latents(size), *head.shape[1:3]))
        programs = self._for("decode", params, shape, None)[0]
        return programs.decode_windows(params, itertools.chain([head], latents), size, condition)

    def find_borders(self, height: int, width: int) -> Borders:
        return self._decoding.get((height, width), self.first).find_borders(height, width)

    def _pixels(self, latent: Sequence[int]) -> tuple[int, int, int]:
        """Frames, height and width that a latent ``(t, h, w)`` decodes to, at most."""
        spec = self.model.latent_spec
        return latent[0] * spec.t, latent[1] * spec.h, latent[2] * spec.w

    def _for(
        self, kind: str, params: Any, shape: Sequence[int], cache: Any
    ) -> tuple[CodecPrograms, Any]:
        """The programs for a piece of ``shape`` (frames, height, width), and their cache."""
        if isinstance(cache, _Held):
            # A stream goes on with the programs that it began with: caches fit no others.
            return cache.programs, cache.cache
        frames, height, width = shape
        key = (kind, frames, height, width)
        if key not in self._chosen:
            self._chosen[key] = self._choose(kind, params, (frames, height, width))
        if kind == "decode":
            # ``find_borders`` asks later, knowing only the size of the frames.
            self._decoding[height, width] = self._chosen[key]
        return self._chosen[key], None

    def _choose(self, kind: str, params: Any, shape: tuple[int, int, int]) -> CodecPrograms:
        at_hand, whose = find_free_memory(self._gigabytes)
        cut = self.first.coder.cut_into_tiles(*shape[1:])
        largest = self._candidates[0].words if cut else "whole frames"
        # "encode" -> "encoding"
        what = "{} of {} frames of {}x{}".format(f"{kind[:-1]}ing", *shape)
        if at_hand is None:
            logging.info(f"codec.space: {largest}, since nothing says how much memory there is.")
            return self.first
        room = _SHARE * at_hand
        # Shapes alone give this bound, so small videos need no tracing of the model.
        bound = _most(params, shape) / self._devices
        if bound <= room:
            logging.info(
                f"codec.space: {largest} for {what}, which certainly fit: less than "
                f"{_gb(bound)} of the {_gb(at_hand)} {whose}."
            )
            return self.first
        tried: list[tuple[float, str, CodecPrograms]] = []
        for number, candidate in enumerate(self._candidates):
            # It leaves frames of this size whole, which was considered first.
            if number and candidate.cuts >= max(shape[1:]):
                continue
            programs = self._made.get(number) or CodecPrograms(candidate.make())
            self._made[number] = programs
            need = estimate_bytes(programs.coder, kind, params, shape) / self._devices
            tried.append((need, candidate.words if number else largest, programs))
            if need <= room:
                break
        # If none leaves headroom, take what needs least: the headroom may be enough.
        need, words, programs = min(tried, key=lambda found: found[0]) if need > room else tried[-1]
        others = ", ".join(f"{w} would need {_gb(n)}" for n, w, _ in tried if w != words)
        about = f"{_gb(need)} of the {_gb(at_hand)} {whose}{others and f' ({others})'}"
        if need > at_hand:
            raise VidlatentError(
                f"{what} does not fit: {words} would need {about}; lower config.codec.groups, "
                "raise config.codec.memory_gb, or name a config.codec.space to try it all the same."
            )
        tight = "" if need <= room else ", which is tight"
        logging.info(f"codec.space: {words} for {what}, which need about {about}{tight}.")
        return programs


def estimate_bytes(coder: FrameCoder, kind: str, params: Any, shape: tuple[int, int, int]) -> int:
    """Bytes that coding one piece takes: results, caches and intermediates.

    By ``estimate_peak_bytes``, so an estimate. Parameters count only if they are still on the host.

    Args:
      coder: the functions that code the piece.
      kind: ``'encode'`` or ``'decode'``.
      params: the tokenizer's parameters.
      shape: frames, height and width of the piece.
    """
    frames, height, width = shape
    spec = coder.model.latent_spec
    # The whole result in float32; with tiles the program below sees only one of them.
    video = frames * height * width * 3 * 4
    if tiles := coder.cut_into_tiles(height, width):
        height, width = tiles[1]
    pixels = jax.ShapeDtypeStruct((1, frames, height, width, 3), jnp.float32)
    if kind == "encode":
        program = jax.make_jaxpr(coder.encode)(params, _legal(pixels, spec))
    else:
        slots = -(-frames // spec.t)
        sides = (height // spec.h, width // spec.w)
        latent = jax.ShapeDtypeStruct((1, slots, *sides, spec.channels), jnp.float32)
        program = jax.make_jaxpr(coder.decode)(params, latent, _condition(coder, params, pixels))
    need = int(_EXTRA * estimate_peak_bytes(program)) + video
    if any(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(params)):
        need += count_tree_bytes(params)
    # Joining holds the tiles and the whole video at the same time.
    return need + 3 * video if tiles else need


def count_clips(
    programs: CodecPrograms,
    params: Any,
    shape: tuple[int, int, int],
    batch: tuple[int, int],
    gigabytes: float = 0.0,
) -> int:
    """How many clips of a batch a call should encode: as many as fit, by ``estimate_bytes``.

    Args:
      programs: those of ``shape``.
      params: the tokenizer's parameters.
      shape: frames, height and width of a piece of a clip.
      batch: clips, and devices that divide them.
      gigabytes: of memory to count on, on each device; 0: what is free.

    Returns:
      A number that divides the batch and that the devices divide.
    """
    (clips, devices), at_hand = batch, find_free_memory(gigabytes)[0]
    each = clips // devices
    # As in ``AutoPrograms``: what certainly fits needs no tracing of the model.
    if at_hand is None or each == 1 or each * _most(params, shape) <= _SHARE * at_hand:
        return clips
    need = estimate_bytes(programs.coder, "encode", params, shape)
    fitting = max(1, int(_SHARE * at_hand // need))
    return devices * max(n for n in range(1, each + 1) if each % n == 0 and n <= fitting)


def _legal(pixels: Any, spec: Any) -> Any:
    # Models refuse other lengths; the codec pads the last piece in the same way.
    frames = spec.rule.ceil(pixels.shape[1])
    return jax.ShapeDtypeStruct((1, frames, *pixels.shape[2:]), pixels.dtype)


def _condition(coder: FrameCoder, params: Any, pixels: Any) -> Any:
    kind = coder.model.condition_kind
    if kind == "none":
        return None
    spec = coder.model.latent_spec
    # Reducio reads one frame of each clip, the others frame 0 alone.
    count = max(pixels.shape[1] // spec.rule.step, 1) if kind == "content" else 1
    frames = jax.ShapeDtypeStruct((count, *pixels.shape[2:]), jnp.float32)
    return jax.eval_shape(coder.encode_condition, params, frames)


def _most(params: Any, shape: tuple[int, int, int]) -> float:
    """An upper bound: ``_ARRAYS`` float32 arrays at full size, each as wide as the widest layer."""
    # Kernels end in (inputs, outputs), so these are numbers of channels.
    width = max(max(leaf.shape[-2:], default=1) for leaf in jax.tree.leaves(params) if leaf.ndim)
    return _ARRAYS * 4.0 * math.prod(shape) * width + count_tree_bytes(params)


def _held(programs: CodecPrograms, cache: Any) -> Any:
    return None if cache is None else _Held(programs, cache)


def _gb(size: float) -> str:
    return f"{size / 2**30:.3g} GiB"
