"""A coded video: its latents, and the frames that the decoder reads beside them.

Some decoders read frames too: Reducio's one frame of each clip, FSAE-Standard's and -Lite's frame
0. These content frames are kept as uint8, and count as part of the result.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vidlatent.errors import VidlatentError
from vidlatent.files import dump_json, parse_json, read_npz, replace_file
from vidlatent.spec import LatentSpec, check_shape

__all__ = ["Coded", "Reader", "Sizes"]

_LARGEST_SIDE = 1 << 16  # pixels
_LONGEST = 1e12  # seconds
_REMEDY = "encode the video again and write it by Coded.save"


@dataclasses.dataclass(frozen=True, repr=False)
class Coded:
    """A coded video, or a piece of one.

    Attributes:
      latent: ``[t, h, w, c]`` float32.
      spec: which tokenizer's latents these are.
      frames: number of video frames that the latents stand for.
      size: height and width of the video; the latent may cover a little more, since sides are
        padded to multiples of the compression.
      content: frames that the decoder reads, uint8 ``[n, H, W, 3]``; None if it reads none.
      chunks: ``(frames, overlap_frames)`` if chunks were coded independently; their latents follow
        each other. None for one stream.
      encoder: digest of what encoded them; '' in files of older versions.
      times: seconds at which each frame of a file is shown, so that a variable rate is not lost;
        None for arrays and iterators.
      cut: as of ``FrameCoder``: how large frames were cut, where that changes the latents; '' if
        it does not; None if unknown, as in files of older versions.
    """

    latent: np.ndarray
    spec: LatentSpec
    frames: int
    size: tuple[int, int]
    content: np.ndarray | None = None
    chunks: tuple[int, int] | None = None
    encoder: str = ""
    times: tuple[float, ...] | None = None
    cut: str | None = None

    def __repr__(self) -> str:
        height, width = self.size
        kept = "" if self.content is None else f", {len(self.content)} content frames"
        shape = "x".join(map(str, self.latent.shape))
        return (
            f"<Coded by {self.spec.name}: {self.frames} frames of {width}x{height} in a latent of "
            f"{shape} {self.latent.dtype}{kept}>"
        )

    @classmethod
    def join(cls, pieces: Sequence[Coded]) -> Coded:
        """Join the pieces of a stream."""
        first = pieces[0]
        content = None
        if first.content is not None:
            # With FSAE only the first piece has one, frame 0.
            content = np.concatenate([p.content for p in pieces if p.content is not None])
        latent = np.concatenate([piece.latent for piece in pieces])
        frames = sum(piece.frames for piece in pieces)
        times = None if first.times is None else sum((p.times or () for p in pieces), ())
        return dataclasses.replace(
            first, latent=latent, frames=frames, content=content, times=times
        )

    def save(self, path: str | Path) -> None:
        """Write everything into one ``.npz`` file."""
        about = {
            "spec": self.spec.to_json(),
            "frames": self.frames,
            "size": self.size,
            "chunks": self.chunks,
            "encoder": self.encoder,
            "times": self.times,
            "cut": self.cut,
        }
        arrays: dict[str, Any] = {"latent": self.latent, "about": dump_json(about)}
        if self.content is not None:
            arrays["content"] = self.content
        # An open file, because np.savez adds .npz to names that lack it.
        with replace_file(path) as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: str | Path) -> Coded:
        """Read what ``save`` wrote.

        Raises:
          VidlatentError: the file is missing, damaged or something else.
        """
        stored = read_npz(path, _REMEDY)
        if not {"latent", "about"} <= set(stored):
            raise VidlatentError(f"{path} holds no coded video: write one by Coded.save.")
        try:
            # NumPy stores a text as an array without axes.
            about = parse_json(str(stored["about"]))
            coded = cls(
                latent=stored["latent"],
                spec=LatentSpec.from_json(about["spec"]),
                frames=about["frames"],
                size=tuple(about["size"]),
                content=stored.get("content"),
                chunks=None if about["chunks"] is None else tuple(about["chunks"]),
                encoder=about.get("encoder", ""),
                # Files of earlier versions have none.
                times=None if about.get("times") is None else tuple(about["times"]),
                cut=about["cut"] if "cut" in about else None,
            )
            wrong = coded.find_contradiction()
        except (VidlatentError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise VidlatentError(
                f"{path} holds no coded video ({type(error).__name__}: {error}): {_REMEDY}."
            ) from error
        if wrong:
            raise VidlatentError(f"{path} holds no coded video, since {wrong}: {_REMEDY}.")
        return coded

    def find_contradiction(self) -> str:
        """What no coded video has, for one that comes from a file; '' if all is possible."""
        spec, latent, content = self.spec, self.latent, self.content
        if latent.dtype.kind != "f" or latent.ndim != 4 or not latent.size:
            return f"its latent is {latent.dtype} of shape {latent.shape}"
        if not np.isfinite(latent).all():
            return "its latent is not finite"
        if latent.shape[3] != spec.channels:
            return f"its latent has {latent.shape[3]} channels, and {spec.name} has {spec.channels}"
        sides = [type(side) is int and 0 < side <= _LARGEST_SIDE for side in self.size]
        if sides != [True, True]:
            return f"its size is {self.size}"
        grid = (-(-self.size[0] // spec.h), -(-self.size[1] // spec.w))
        if latent.shape[1:3] != grid:
            return f"a latent of {latent.shape[1:3]} is none of a video of {self.size}"
        # Chunks share frames, so there may be fewer; a first latent may stand for one frame alone.
        most = len(latent) * max(spec.t, spec.rule.first)
        if type(self.frames) is not int or not 0 < self.frames <= most:
            return f"{len(latent)} latent frames do not stand for {self.frames} frames"
        if content is not None:
            check_shape(content, "n H W C", C=3, H=self.size[0], W=self.size[1])
            if content.dtype != np.uint8:
                return f"its content frames are {content.dtype}"
        if type(self.encoder) is not str:
            return f"its encoder is {str(self.encoder)[:40]}"
        if self.times is not None:
            right = [type(x) in (int, float) and abs(x) < _LONGEST for x in self.times]
            if len(right) != self.frames or not all(right):
                return f"{len(right)} times, or none that can be, stand for {self.frames} frames"
        if self.chunks is not None:
            dataclasses.replace(spec, chunks=None).in_chunks(self.chunks, "chunks")
        return ""


class Sizes:
    """Counts the values of a coded video, piece by piece."""

    def __init__(self) -> None:
        self.latent_shape: tuple[int, ...] = ()
        self._rgb = self._content = self._pictures = self._frames = 0

    def add(self, piece: Coded) -> None:
        t = self.latent_shape[0] if self.latent_shape else 0
        self.latent_shape = (t + len(piece.latent), *piece.latent.shape[1:])
        self._frames += piece.frames
        self._rgb += piece.frames * piece.size[0] * piece.size[1] * 3
        if piece.content is not None:
            self._pictures += len(piece.content)
            self._content += piece.content.size

    def report(self) -> dict[str, object]:
        """The counts, and RGB values per latent value and per value that is kept."""
        latent = int(np.prod(self.latent_shape))
        return {
            "latent_shape": self.latent_shape,
            "latent_values": latent,
            "content_frames": self._pictures,
            "content_values": self._content,
            "frames_per_latent_frame": self._frames / self.latent_shape[0],
            "values_per_latent_value": self._rgb / latent,
            "values_per_kept_value": self._rgb / (latent + self._content),
        }


class Reader:
    """Reads latent frames one by one from a stream of pieces, and the content frames beside them.

    Attributes:
      frames: length of the video that has been read so far, without padding; None if unknown, as
        for bare latents.
      size: height and width of the video; None if unknown.
    """

    def __init__(
        self,
        pieces: Iterable[Coded | np.ndarray],
        spec: LatentSpec,
        chunks: tuple[int, int] | None,
        encoder: Callable[[], str],
        cut: str = "",
        *,
        frames: int | None = None,
        size: tuple[int, int] | None = None,
        content: np.ndarray | None = None,
    ):
        self._pieces, self._spec, self._chunks, self._cut = pieces, spec, chunks, cut
        self._encoder = encoder  # a call, since bare latents need no digest
        self._total = frames
        self._seen: int | None = None
        self.size = size
        self._content: deque[np.ndarray] = deque()
        if content is not None:
            # A single frame [H, W, 3] is allowed: FSAE's decoders read just frame 0.
            content = content if content.ndim == 4 else content[None]
            check_shape(content, "n H W C", C=3)
            self._content.extend(content)

    @property
    def frames(self) -> int | None:
        return self._seen if self._total is None else self._total

    def slots(self) -> Iterator[np.ndarray]:
        """Yield latent frames ``[h, w, c]``; a piece is read when its first frame is needed."""
        for piece in self._pieces:
            if isinstance(piece, Coded):
                self._check(piece)
                latent = piece.latent
                self._seen = (self._seen or 0) + piece.frames
                self.size = self.size or piece.size
                self._content.extend(() if piece.content is None else piece.content)
            else:
                latent = piece
            check_shape(latent, "t h w c", c=self._spec.channels)
            yield from latent

    def content(self, count: int) -> np.ndarray:
        """The next ``count`` content frames ``[count, H, W, 3]``."""
        if len(self._content) < count:
            raise VidlatentError(
                f"this decoder needs {count} content frame(s) here, and {len(self._content)} are "
                "left: decode what encode returned, or pass content= with the frames that it kept."
            )
        return np.stack([self._content.popleft() for _ in range(count)])

    def _check(self, piece: Coded) -> None:
        if piece.spec.hash != self._spec.hash:
            raise VidlatentError(
                f"this latent was made by {piece.spec.name}, {piece.spec.channels} channels, not "
                f"by this {self._spec.name}: open the codec that made it."
            )
        if piece.encoder and piece.encoder != self._encoder():
            raise VidlatentError(
                f"this latent was made by a {piece.spec.name} with the encoder "
                f"{piece.encoder[:8]}, and this codec's encoder is {self._encoder()[:8]}: open the "
                "codec that made it, or one that was fine-tuned from it with a frozen encoder."
            )
        if piece.chunks != self._chunks:
            raise VidlatentError(
                f"this latent was coded in {_words(piece.chunks)}, the codec decodes "
                f"{_words(self._chunks)}: open it with the same time, chunk_frames and "
                "overlap_frames."
            )
        if piece.cut is not None and piece.cut != self._cut:
            raise VidlatentError(
                f"this latent was coded with frames cut {piece.cut or 'not at all'}, the codec "
                f"decodes those cut {self._cut or 'not at all'}: open it with the same space, "
                "tile_pixels and tile_overlap_pixels."
            )


def _words(chunks: tuple[int, int] | None) -> str:
    return "one stream" if chunks is None else f"chunks of {chunks[0]} frames sharing {chunks[1]}"
