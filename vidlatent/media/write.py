"""Video files out: H.264 in MP4 through PyAV, written frame by frame.

Frames come at a constant rate, exactly, or each with its own time.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np

from vidlatent.errors import VidlatentError
from vidlatent.media.container import local_name
from vidlatent.media.sheets import caption_bar, to_uint8
from vidlatent.media.sound import SoundTracks
from vidlatent.paths import as_path, local_folder, move_file

STILL_FPS = 1.0  # frame rate that a picture is written at, as a video of one frame

__all__ = ["STILL_FPS", "VideoWriter", "as_fps", "side_by_side", "write_video"]

_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv")
_ROWS_FOR_THREADS = 256
_SMPTE170M = 6  # of ITU-T H.273: the matrix by which RGB is converted to YCbCr below
_TV_RANGE = 1  # of H.273: black is 16 and white 235
_FASTEST = 100_000  # frames a second; high-speed cameras reach it
_TICK = Fraction(1, 90_000)  # seconds; the clock of frames that come with their own times
_SEPARATOR = 4  # pixels between two videos side by side


def as_fps(value: Fraction | float | int | str) -> Fraction:
    """A frame rate as an exact fraction; 29.97, 23.976 and 59.94 become n * 1000 / 1001.

    Raises:
      VidlatentError: not a number above 0 and at most 100,000.
    """
    try:
        rate = Fraction(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise VidlatentError(f"the frame rate {value!r} is not a number.") from error
    if not 0 < rate <= _FASTEST:
        raise VidlatentError(
            f"the frame rate {value} is not between 0 and {_FASTEST} frames per second."
        )
    # The nearest NTSC rate. Only decimals may mean one; whole rates and fractions are exact.
    ntsc = Fraction(round(rate * 1001 / 1000) * 1000, 1001)
    if (
        isinstance(value, float | str)
        and abs(rate - ntsc) < Fraction(5, 1000)
        and rate != round(rate)
    ):
        return ntsc
    # A float is a fraction over a power of two: this makes 12.3 into 123/10 again.
    return rate.limit_denominator(100_000)


class VideoWriter:
    """Writes a video file frame by frame; memory does not grow with its length.

    The file gets its name only when it is complete: before that, and after an error, there is at
    most a hidden temporary file next to it. H.264 with 4:2:0 colour needs an even height and width:
    to an odd one a copy of the last row or column is added.

    Args:
      path: ends in .mp4, .m4v, .mov or .mkv.
      fps: frame rate; fractions such as 30000/1001 are kept exactly.
      crf: constant rate factor of x264: 0 lossless, 18 visually close, 51 worst.
      preset: speed of x264, 'ultrafast' to 'veryslow'.
      timed: frames are added with the seconds at which they are shown; ``fps`` is their mean rate.
      sound: copied into the file. If it begins before the picture, the picture begins later.

    Raises:
      VidlatentError: unusable path or rate, or frames of changing size.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        fps: Fraction | float,
        *,
        crf: int = 18,
        preset: str = "medium",
        timed: bool = False,
        sound: SoundTracks | None = None,
    ):
        self.path = as_path(path)
        if self.path.suffix.lower() not in _SUFFIXES:
            raise VidlatentError(
                f"cannot write {self.path}: the name must end in {', '.join(_SUFFIXES)}."
            )
        if not 0 <= crf <= 51:
            raise VidlatentError(f"crf is {crf}: use 0 (best) to 51 (worst).")
        self.fps = as_fps(fps)
        self.frames = 0
        self._sound, self._lead = sound, 0.0 if sound is None else sound.lead
        # One tick is one frame, so time stamps are exact at any rate.
        self._tick = _TICK if timed or self._lead else 1 / self.fps
        self._stamp = -1
        self._options = {"crf": str(crf), "preset": preset}
        self._shape: tuple[int, ...] | None = None
        # With the suffix of the name to come, by which FFmpeg chooses the container. Names have at
        # most 255 bytes, and this one must not be longer than allowed where the other is not.
        stem = self.path.stem.encode("utf-8", "surrogateescape")[:100].decode("utf-8", "ignore")
        # An object of a store is written elsewhere, until it is whole.
        self._rooms = contextlib.ExitStack()
        place = self._rooms.enter_context(local_folder(self.path.parent))
        self._temporary = place / f".{stem}.{os.getpid()}{self.path.suffix}"
        self._stream: Any = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.is_dir():
                raise IsADirectoryError(f"{self.path} is a folder")
            self._container = av.open(local_name(os.fspath(self._temporary)), mode="w")
        except (OSError, av.FFmpegError) as error:
            raise VidlatentError(f"cannot write the video {self.path}: {error}") from error

    def add(self, frame: Any, moment: float | None = None) -> None:
        """Append one frame.

        Args:
          frame: ``[H, W, 3]``, uint8 or float in [-1, 1]; all of one size.
          moment: seconds at which it is shown, later than the frame before; None: at the rate.
        """
        frame = to_uint8(frame)
        if frame.ndim != 3 or frame.shape[-1] != 3 or 0 in frame.shape:
            raise VidlatentError(f"a frame of {self.path} must be [H, W, 3], not {frame.shape}.")
        if self._shape is None:
            self._open_stream(frame.shape)
        if frame.shape != self._shape:
            raise VidlatentError(
                f"frame {self.frames} of {self.path} is {frame.shape[:2]}, the first one "
                f"{self._shape[:2]}: all frames of a video must be of one size."
            )
        odd = [(0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)]
        picture = av.VideoFrame.from_ndarray(np.pad(frame, odd, mode="edge"), format="rgb24")
        moment = float(self.frames / self.fps) if moment is None else moment
        # Two frames cannot have the same time: what would, is a tick later.
        self._stamp = max(self._stamp + 1, round((moment + self._lead) / self._tick))
        picture.pts, picture.time_base = self._stamp, self._tick
        self._encode(picture)
        self._copy_sound(moment + self._lead)
        self.frames += 1

    def _copy_sound(self, until: float) -> None:
        if self._sound is None:
            return
        try:
            for packet in self._sound.packets(until):
                self._container.mux(packet)
        except (OSError, ValueError, av.FFmpegError) as error:
            raise VidlatentError(f"cannot write the sound of {self.path}: {error}") from error

    def _open_stream(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        stream = self._container.add_stream("libx264", rate=self.fps, options=self._options)
        stream.height, stream.width = (side + side % 2 for side in shape[:2])
        # The colour format that all players and browsers show.
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = self._tick
        # On a busy machine x264's threads make other bytes of the same small frames now and then
        # (up to 64x64 in 2 of 150 tries, none at 256x256): the same seed must give the same file.
        if min(shape[:2]) < _ROWS_FOR_THREADS:
            stream.codec_context.thread_count = 1
        # Without a tag, players guess the matrix from the frame size, and show other colours.
        stream.codec_context.colorspace = _SMPTE170M
        stream.codec_context.color_range = _TV_RANGE
        self._stream = stream
        if self._sound is not None:
            # Before the first packet: then the file's head is written.
            self._sound.attach(self._container, self.path.suffix.lower())

    def _encode(self, picture: Any) -> None:
        try:
            for packet in self._stream.encode(picture):
                self._container.mux(packet)
        except (OSError, av.FFmpegError) as error:
            raise VidlatentError(f"cannot write the video {self.path}: {error}") from error

    def close(self) -> None:
        """Finish the file and give it its name; a video without a frame is an error."""
        if self._container is None:
            return
        try:
            if not self.frames:
                raise VidlatentError(f"no frame was given for the video {self.path}.")
            # None makes the encoder give out the frames that it holds back.
            self._encode(None)
            self._copy_sound(float("inf"))
            self._container.close()
            self._container = None
            move_file(self._temporary, self.path)
        except (OSError, av.FFmpegError) as error:
            raise VidlatentError(f"cannot write the video {self.path}: {error}") from error
        finally:
            # Removes what a failure left; a file that has its name is not touched.
            self.discard()

    def discard(self) -> None:
        """Abandon the file and leave nothing behind. Does nothing after ``close``."""
        if self._container is not None:
            # Closing fails for a file with no frame in it, or one that cannot be written.
            with contextlib.suppress(OSError, ValueError, av.FFmpegError):
                self._container.close()
            self._container = None
        if self._sound is not None:
            self._sound.close()
        self._temporary.unlink(missing_ok=True)
        self._rooms.close()

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()


def write_video(
    path: str | os.PathLike[str],
    frames: Iterable[Any],
    fps: Fraction | float,
    *,
    crf: int = 18,
    preset: str = "medium",
) -> int:
    """Write an array ``[T, H, W, 3]`` or an iterator of frames; returns the number of frames.

    Arguments and errors are those of ``VideoWriter``.
    """
    with VideoWriter(path, fps, crf=crf, preset=preset) as writer:
        for frame in frames:
            writer.add(frame)
    return writer.frames


def side_by_side(
    a: Any, b: Any, labels: Sequence[str] | None = ("original", "reconstruction")
) -> np.ndarray:
    """Two videos or frames side by side, with a thin line between them and captions above.

    Args:
      a, b: ``[..., H, W, 3]`` of the same shape, uint8 or float in [-1, 1].
      labels: the two captions; None leaves the caption bar out.

    Returns:
      uint8 ``[..., H + bar, 2 * W + 4, 3]``.
    """
    a, b = to_uint8(a), to_uint8(b)
    if a.shape != b.shape or a.ndim < 3 or a.shape[-1] != 3:
        raise VidlatentError(
            f"cannot set {a.shape} and {b.shape} side by side: one size is needed."
        )
    lead, (height, width) = a.shape[:-3], a.shape[-3:-1]
    # [..., H, W + 4 + W, 3], and the bar above it.
    line = np.full((*lead, height, _SEPARATOR, 3), 255, np.uint8)
    pair = np.concatenate([a, line, b], axis=-2)
    if labels is None:
        return pair
    bar_height = min(36, max(14, height // 16))
    bars = [caption_bar(text, width, bar_height) for text in labels]
    between = np.full((bar_height, _SEPARATOR, 3), 255, np.uint8)
    bar = np.concatenate([bars[0], between, bars[1]], axis=1)
    return np.concatenate([np.broadcast_to(bar, (*lead, *bar.shape)), pair], axis=-3)
