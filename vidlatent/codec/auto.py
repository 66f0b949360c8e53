"""How frames are cut up when nobody says: by the memory at hand, exactly where that is possible."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from vidlatent.codec.memory import memory_at_hand, peak_bytes, tree_bytes
from vidlatent.codec.programs import Steps, TiledSteps
from vidlatent.errors import VidlatentError
from vidlatent.models.tokenizers.fsvideo.patches import decoder_reach, outer_stage

__all__ = ["AutoSteps", "Way", "bytes_needed"]

# Of the memory at hand, what a choice may fill: the estimate is a model, and others live here too.
_SHARE = 0.7
# What compilers were seen to take beyond the model of ``peak_bytes``, at most.
_EXTRA = 1.25
# More arrays of full size than any of the models ever holds at a time.
_ARRAYS = 32


@dataclasses.dataclass(frozen=True)
class Way:
    """One way of cutting frames up.

    Attributes:
      words: what it is called in the log.
      make: the steps, made only when the way is considered.
      cuts: side in pixels from which on it cuts anything.
      keys: of ``config.codec`` that ask for it.
    """

    words: str
    make: Callable[[], Steps]
    cuts: int = 0
    keys: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class _Held:
    """A cache, and the steps that made it and can go on from it."""

    steps: Steps
    cache: Any


class AutoSteps:
    """Steps that are chosen for each size of frames when it first comes up.

    Args:
      ways: from whole frames to the smallest parts.
      gigabytes: of memory to count on; 0: what is at hand when a choice is made.
      devices: over which rows are spread.

    Attributes:
      content, model: as of ``Steps``.
    """

    def __init__(self, ways: Sequence[Way], gigabytes: float = 0.0, devices: int = 1):
        self._ways, self._gigabytes, self._devices = ways, gigabytes, devices
        self._made: dict[int, Steps] = {0: ways[0].make()}
        self._chosen: dict[tuple[Any, ...], Steps] = {}
        self.model, self.content = self._made[0].model, self._made[0].content
        self._decoding: dict[tuple[int, int], Steps] = {}

    def frames_seen(self, pixels: np.ndarray, first: bool) -> np.ndarray | None:
        return self._made[0].frames_seen(pixels, first)

    def encode(self, params, pixels, cache, key, start):
        steps, cache = self._for("encode", params, pixels.shape[1:4], cache)
        latent, cache = steps.encode(params, pixels, cache, key, start)
        return latent, _held(steps, cache)

    def encode_run(self, params, pixels, cache, key, start):
        steps, cache = self._for("encode", params, pixels.shape[2:5], cache)
        latent, cache = steps.encode_run(params, pixels, cache, key, start)
        return latent, _held(steps, cache)

    def look(self, params, frames):
        clips, height, width = frames.shape[:3]
        if self.content == "clip":  # the decoder's: tiles look at their own part
            shape = (clips * self.model.latent_spec.rule.step, height, width)
            return self._for("decode", params, shape, None)[0].look(params, frames)
        return self._for("encode", params, (1, height, width), None)[0].look(params, frames)

    def decode(self, params, latent, condition, cache):
        steps, cache = self._for("decode", params, self._pixels(latent.shape[1:4]), cache)
        video, cache = steps.decode(params, latent, condition, cache)
        return video, _held(steps, cache)

    def decode_run(self, params, latents, frames, cache):
        steps, cache = self._for("decode", params, self._pixels(latents.shape[2:5]), cache)
        video, cache = steps.decode_run(params, latents, frames, cache)
        return video, _held(steps, cache)

    def windows(self, params, latents, core, condition):
        head = next(latents := iter(latents))
        stage = outer_stage(self.model)
        reach = decoder_reach(self.model, stage)
        around = -(-(reach.left + reach.right) // self.model.latent_spec.t)
        shape = self._pixels((core + around, *head.shape[1:3]))
        steps = self._for("decode", params, shape, None)[0]
        return steps.windows(params, itertools.chain([head], latents), core, condition)

    def borders(self, height: int, width: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        steps = self._decoding.get((height, width), self._made[0])
        return steps.borders(height, width)

    def _pixels(self, latent: Sequence[int]) -> tuple[int, int, int]:
        """Frames, height and width of a latent ``(t, h, w)``, at most."""
        spec = self.model.latent_spec
        return latent[0] * spec.t, latent[1] * spec.h, latent[2] * spec.w

    def _for(self, kind: str, params: Any, shape: Sequence[int], cache: Any) -> tuple[Steps, Any]:
        """The steps for a piece of ``shape`` (frames, height, width), and their cache."""
        if isinstance(cache, _Held):
            return cache.steps, cache.cache
        key = (kind, *shape)
        if key not in self._chosen:
            self._chosen[key] = self._choose(kind, params, tuple(shape))
        if kind == "decode":
            self._decoding[key[2:]] = self._chosen[key]
        return self._chosen[key], None

    def _choose(self, kind: str, params: Any, shape: tuple[int, int, int]) -> Steps:
        at_hand, whose = memory_at_hand(self._gigabytes)
        what = "{} of {} frames of {}x{}".format(f"{kind[:-1]}ing", *shape)
        if at_hand is None:
            logging.info("codec.space: whole frames, since nothing says how much memory there is.")
            return self._made[0]
        room = _SHARE * at_hand
        bound = _most(params, shape) / self._devices
        if bound <= room:
            logging.info(
                f"codec.space: whole frames for {what}, which certainly fit: less than "
                f"{_gb(bound)} of the {_gb(at_hand)} {whose}."
            )
            return self._made[0]
        tried: list[tuple[float, str, Steps]] = []
        for number, way in enumerate(self._ways):
            if number and way.cuts >= max(shape[1:]):
                continue
            steps = self._made.get(number) or way.make()
            self._made[number] = steps
            need = bytes_needed(steps, kind, params, shape) / self._devices
            tried.append((need, way.words, steps))
            if need <= room:
                break
        need, words, steps = min(tried, key=lambda found: found[0]) if need > room else tried[-1]
        others = ", ".join(f"{w} would need {_gb(n)}" for n, w, _ in tried if w != words)
        about = f"{_gb(need)} of the {_gb(at_hand)} {whose}{others and f' ({others})'}"
        if need > at_hand:
            raise VidlatentError(
                f"{what} does not fit: {words} would need {about}; lower config.codec.groups, "
                "raise config.codec.memory_gb, or name a config.codec.space to try it all the same."
            )
        tight = "" if need <= room else ", which is tight"
        logging.info(f"codec.space: {words} for {what}, which need about {about}{tight}.")
        return steps


def bytes_needed(steps: Steps, kind: str, params: Any, shape: tuple[int, int, int]) -> int:
    """Memory for one piece, by ``peak_bytes``: for results, caches and intermediates.

    Parameters count only if they are not on the device yet.

    Args:
      kind: ``'encode'`` or ``'decode'``.
      shape: frames, height and width of the piece.
    """
    frames, height, width = shape
    spec = steps.model.latent_spec
    tiles = isinstance(steps, TiledSteps) and steps.cuts(height, width)
    video = frames * height * width * 3 * 4
    if tiles:
        side = steps.tiles.read
        height, width = min(height, side), min(width, side)
    pixels = jax.ShapeDtypeStruct((1, frames, height, width, 3), jnp.float32)
    if kind == "encode":
        program = jax.make_jaxpr(steps.pieces[kind])(params, _legal(pixels, spec), None)
    else:
        slots = -(-frames // spec.t)
        latent = (1, slots, height // spec.h, width // spec.w, spec.channels)
        latent = jax.ShapeDtypeStruct(latent, jnp.float32)
        condition = _condition(steps, params, pixels)
        program = jax.make_jaxpr(steps.pieces[kind])(params, latent, None, condition)
    need = int(_EXTRA * peak_bytes(program)) + video
    if any(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(params)):
        need += tree_bytes(params)
    # Tiles of video lie beside the whole that they are joined into.
    return need + 3 * video if tiles else need


def _legal(pixels: Any, spec: Any) -> Any:
    frames = spec.rule.ceil(pixels.shape[1])
    return jax.ShapeDtypeStruct((1, frames, *pixels.shape[2:]), pixels.dtype)


def _condition(steps: Steps, params: Any, pixels: Any) -> Any:
    if steps.content == "none":
        return None
    spec = steps.model.latent_spec
    count = max(pixels.shape[1] // spec.rule.step, 1) if steps.content == "clip" else 1
    frames = jax.ShapeDtypeStruct((count, *pixels.shape[2:]), jnp.uint8)
    return jax.eval_shape(steps.pieces["look"], params, frames)


def _most(params: Any, shape: tuple[int, int, int]) -> float:
    """A bound on any need: so many float32 arrays as wide as the widest layer, at full size."""
    width = max(max(leaf.shape[-2:], default=1) for leaf in jax.tree.leaves(params) if leaf.ndim)
    return _ARRAYS * 4.0 * math.prod(shape) * width + tree_bytes(params)


def _held(steps: Steps, cache: Any) -> Any:
    return None if cache is None else _Held(steps, cache)


def _gb(size: float) -> str:
    return f"{size / 2**30:.3g} GiB"
