"""Videos to latents and back, a chunk at a time.

A causal tokenizer codes a stream exactly: every temporal convolution keeps its last input frames,
and those caches travel from chunk to chunk as values. So a video of any length passes through with
the memory of one chunk, and comes out as if it had been coded whole.

Sizes: height and width are padded to the tokenizer's multiples by repeating the last row and
column, the length to the next legal one by repeating the last frame; decoding cuts both off again.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vidlatent import config as configs
from vidlatent.infer.load import abstract_params, model_of, open_checkpoints
from vidlatent.infer.pixels import from_pixels, to_pixels
from vidlatent.models.fsvideo.patches import decode_windows
from vidlatent.typing import LatentSpec, VidlatentError, check_shape

__all__ = ["Codec"]

# Latent frames decoded at a time by a decoder that looks both ways and so repeats work at the ends.
_WINDOW = 16


class Codec:
    """A tokenizer with its parameters, working on uint8 frames.

    Args:
      model: tokenizer module (``encode`` and ``decode`` with caches).
      params: its parameters, a nested dict.
      chunk: groups of frames coded at a time (a group is ``spec.rule.step`` frames).
    """

    def __init__(self, model: Any, params: Any, chunk: int = 2):
        if chunk < 1:
            raise VidlatentError(f"chunk={chunk}: code at least one group of frames at a time.")
        self.model = model
        self.params = params
        self.spec: LatentSpec = model.latent_spec
        self.chunk = chunk
        self._slots = chunk * (self.spec.rule.step // self.spec.t)  # latent frames of a chunk
        # A chunk's caches are of no use once the next chunk's exist: their memory is handed on.
        self._encode = jax.jit(functools.partial(_encode, model), donate_argnums=2)
        self._decode = jax.jit(functools.partial(_decode, model), donate_argnums=3)
        self._look = jax.jit(functools.partial(_look, model))
        # What only some models have: a decoder that looks ahead.
        self._streams: bool = getattr(model, "streams", True)

    @classmethod
    def from_workdir(cls, workdir: str | Path, step: int | None = None, chunk: int = 2) -> Codec:
        """The tokenizer trained in ``workdir``: its EMA at ``step`` (default: newest sound one)."""
        workdir = Path(workdir)
        config = configs.read(workdir)
        model = model_of(config)
        checkpointer = open_checkpoints(config, workdir)
        try:
            restored = checkpointer.restore_params(abstract_params(model), step=step)
        finally:
            checkpointer.close()
        return cls(model, restored.state, chunk)

    def encode(self, video: np.ndarray) -> np.ndarray:
        """``uint8 [T, H, W, 3]`` of any size -> latent ``[t, h, w, c]``."""
        check_shape(video, "T H W C", C=3)
        return np.concatenate(list(self.encode_stream(video)))

    def decode(
        self,
        latent: np.ndarray,
        frames: int | None = None,
        size: tuple[int, int] | None = None,
        first_frame: np.ndarray | None = None,
    ) -> np.ndarray:
        """Latent ``[t, h, w, c]`` -> ``uint8 [T, H, W, 3]``.

        ``frames`` and ``size`` (height, width) cut the padding of the encoded video off again.
        ``first_frame`` ``uint8 [H, W, 3]`` is what a decoder that attends to frame 0 looks at.
        """
        check_shape(latent, "t h w c", c=self.spec.channels)
        return np.concatenate(list(self.decode_stream([latent], frames, size, first_frame)))

    def encode_stream(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Frames ``uint8 [H, W, 3]`` -> pieces ``[t, h, w, c]`` of the latent, in order."""
        for latent, _, real in self._latents(frames):
            yield np.asarray(latent[0, : self._latent_frames(*real)])

    def decode_stream(
        self,
        latents: Iterable[np.ndarray],
        frames: int | None = None,
        size: tuple[int, int] | None = None,
        first_frame: np.ndarray | None = None,
    ) -> Iterator[np.ndarray]:
        """Pieces ``[t, h, w, c]`` of a latent (of any lengths) -> pieces ``uint8 [T, H, W, 3]``."""
        condition = None
        if first_frame is not None:
            condition = self._look(self.params, self._pad(first_frame[None])[None])
        left = frames
        slots = itertools.chain.from_iterable(latents)
        for video in self._videos(self._pieces(slots, condition)):
            video = np.asarray(video[0])
            if size is not None:
                video = video[:, : size[0], : size[1]]
            if left is not None:
                video = video[:left]
                left -= len(video)
            if len(video):
                yield video

    def reconstruct_stream(
        self, frames: Iterable[np.ndarray]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Frames -> ``(original, restored)`` pieces ``uint8 [T, H, W, 3]`` of equal length."""
        kept: list[np.ndarray] = []

        def remember() -> Iterator[np.ndarray]:
            for frame in frames:
                kept.append(frame)
                yield frame

        pieces = ((latent, condition) for latent, condition, _ in self._latents(remember()))
        for video in self._videos(pieces):
            real = min(video.shape[1], len(kept))
            original, kept[:] = np.stack(kept[:real]), kept[real:]
            height, width = original.shape[1:3]
            yield original, np.asarray(video[0, :real, :height, :width])

    def _pieces(
        self, slots: Iterator[np.ndarray], condition: Any
    ) -> Iterator[tuple[jax.Array, Any]]:
        """Latent frames ``[h, w, c]`` -> pieces ``[1, t, h, w, c]`` that are decoded at once."""
        # One latent frame stands for the frames before the first group, so that comes with it.
        lead = 1 if self.spec.rule.first < self.spec.rule.step else 0
        while piece := list(itertools.islice(slots, self._slots + lead)):
            yield jnp.asarray(np.stack(piece))[None], condition
            lead, condition = 0, None

    def _videos(self, pieces: Iterator[tuple[jax.Array, Any]]) -> Iterator[jax.Array]:
        """``(latent [1, t, h, w, c], condition)`` in order -> videos ``uint8 [1, T, H, W, 3]``."""
        cache = None
        if self._streams:
            for latent, condition in pieces:
                video, cache = self._decode(self.params, latent, condition, cache)
                yield video
            return
        first = next(pieces, None)
        if first is not None:
            slots = (
                piece[:, i]
                for piece, _ in itertools.chain([first], pieces)
                for i in range(piece.shape[1])
            )
            core = max(_WINDOW, self.chunk)
            for video in decode_windows(self.model, self.params, slots, core, first[1]):
                yield to_pixels(video)

    def _latents(
        self, frames: Iterable[np.ndarray]
    ) -> Iterator[tuple[jax.Array, Any, tuple[bool, int]]]:
        """Yields ``(latent [1, t, h, w, c], condition, (first piece?, real frames in it))``."""
        rule = self.spec.rule
        stream, cache, first = iter(frames), None, True
        while True:
            wanted = self.chunk * rule.step + (rule.first % rule.step if first else 0)
            piece = list(itertools.islice(stream, wanted))
            if not piece:
                if first:
                    raise VidlatentError("there is no frame to encode.")
                return
            # A short video is coded at its own length; later pieces keep one compiled shape.
            length = rule.ceil(len(piece)) if first else wanted
            padded = np.stack(piece + [piece[-1]] * (length - len(piece)))
            pixels = self._pad(padded)[None]
            latent, condition, cache = self._encode(self.params, pixels, cache)
            yield latent, condition, (first, len(piece))
            first = False

    def _pad(self, video: np.ndarray) -> np.ndarray:
        height, width = video.shape[1:3]
        bottom, right = -height % self.spec.h, -width % self.spec.w
        return np.pad(video, ((0, 0), (0, bottom), (0, right), (0, 0)), mode="edge")

    def _latent_frames(self, first: bool, frames: int) -> int:
        """Latent frames that hold ``frames`` frames of a piece."""
        lead = self.spec.rule.first % self.spec.rule.step if first else 0
        groups = -(-(frames - lead) // self.spec.rule.step)
        return (1 if lead else 0) + groups * (self._slots // self.chunk)


def _encode(model, params, pixels, cache):
    """Latent, what the decoder is told of the video beside it (None for most), cache."""
    variables, video, condition = {"params": params}, from_pixels(pixels), None
    # Features of frame 0 travel on in the decoder's cache; those of fixed windows are all needed.
    # Not every tokenizer's decoder takes a condition.
    if cache is None and getattr(model, "takes_condition", False):
        condition = model.apply(variables, video, method="condition")
    posterior, cache = model.apply(variables, video, cache=cache, method="encode")
    return posterior.mode(), condition, cache


def _decode(model, params, latent, condition, cache):
    video, cache = model.apply(
        {"params": params}, latent, condition=condition, cache=cache, method="decode"
    )
    return to_pixels(video), cache


def _look(model, params, pixels):
    return model.apply({"params": params}, from_pixels(pixels), method="condition")
