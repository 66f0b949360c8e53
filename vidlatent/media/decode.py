"""Clips from files or bytes through PyAV: what is in them, a window of them, all of their frames.

Time rules everything: a window is a list of instants, and the frame at an instant is the one on
display then (the last whose time stamp is not after it). So files of a variable frame rate play at
their true speed and any target rate is legal. Time 0 is the file's first frame.

A container is opened per call and closed before the call returns, unless the caller hands in
``Decoders``: nothing is shared between threads and nothing grows. The decoder itself runs on one
thread, because the loader already has as many as there are cores.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import os
import stat
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np

from vidlatent.media.decoders import Decoders, Playing
from vidlatent.media.errors import REASONS, ClipError, Deadline, Limits, named_errors
from vidlatent.media.pictures import AREA, bilinear, is_picture, picture_size, read_picture
from vidlatent.media.transforms import CENTRE, Crop, place

__all__ = [
    "REASONS",
    "ClipError",
    "ClipInfo",
    "Limits",
    "iter_frames",
    "probe",
    "read_all",
    "read_window",
    "verify",
    "window_of",
]

# Backward steps (seconds) tried when a seek lands after the wanted frame; then from the beginning.
_SEEK_BACK = (0.0, 2.0, 15.0)

# PyAV's own differences: before 19 titles in another encoding than UTF-8 are errors unless told
# otherwise, and since 18 scaling has threads of its own, which would compete with the loader's.
_PYAV = int(av.__version__.split(".")[0])
_OPENING = {"metadata_errors": "ignore"} if _PYAV < 19 else {}
_SCALING = {"threads": 1} if _PYAV >= 18 else {}


@dataclasses.dataclass(frozen=True)
class ClipInfo:
    """What is in a file.

    Attributes:
      path: the file, or '<bytes>'.
      frames: frames at the average rate (exact for a constant rate); 1 for a picture.
      fps: average frames per second; 0 for a picture.
      width, height: displayed size in pixels, after rotation and pixel aspect ratio.
      duration: seconds from the first frame to the end of the last.
      is_image: a still picture.
    """

    path: str
    frames: int
    fps: float
    width: int
    height: int
    duration: float
    is_image: bool

    def frames_at(self, fps: float) -> int:
        """Frames that the clip has at a target rate (0: its own)."""
        if self.is_image or self.frames == 1 or fps == 0.0:
            return self.frames
        return int((self.frames - 1) / self.fps * fps + 1e-3) + 1

    def starts(self, count: int, fps: float) -> int:
        """Number of source frames at which a window of ``count`` frames at ``fps`` can begin."""
        if self.is_image or self.frames == 1 or fps == 0.0:
            return max(0, self.frames - count + 1)
        room = (self.frames - 1) - (count - 1) / fps * self.fps
        return max(0, int(np.floor(room + 1e-3)) + 1)


def _check_file(media: str | bytes) -> None:
    if isinstance(media, bytes):
        if not media:
            raise ClipError("empty", "0 bytes")
        return
    with named_errors("unreadable"):
        status = os.stat(media)
    if not stat.S_ISREG(status.st_mode):
        raise ClipError("unreadable", "not a regular file")
    if status.st_size == 0:
        raise ClipError("empty", "0 bytes")
    if not os.access(media, os.R_OK):
        raise ClipError("permission", "reading is not allowed")


@contextlib.contextmanager
def _opened(media: str | bytes, limits: Limits):
    """Yield (container, video stream) with one decoder thread and errors raised, not concealed."""
    with named_errors("unreadable"):
        container = av.open(
            io.BytesIO(media) if isinstance(media, bytes) else media,
            timeout=limits.timeout_s,
            **_OPENING,
        )
    try:
        cover = av.stream.Disposition.attached_pic  # the picture on a music file is no video
        videos = [s for s in container.streams.video if not s.disposition & cover]
        if not videos:
            raise ClipError("no_video", f"a {container.format.name} file without a video track")
        stream = videos[0]
        limits.check_size(stream.codec_context.height or 0, stream.codec_context.width or 0)
        stream.thread_type = "NONE"
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {"err_detect": "explode"}
        yield container, stream
    finally:
        container.close()


def _rate(stream) -> Fraction:
    """Frames a second; 25 where the file does not say."""
    stated = map(_exact, (stream.average_rate, stream.guessed_rate, stream.base_rate))
    return next((rate for rate in stated if rate > 0), Fraction(25))


def _exact(ratio) -> Fraction:
    """PyAV's ratios (a type of its own since 19) as a Fraction; 0 for none and for 0/0."""
    if ratio is None or not ratio.denominator:
        return Fraction(0)
    return Fraction(ratio.numerator, ratio.denominator)


def _decoded(container, stream, deadline: Deadline) -> Iterator[av.VideoFrame]:
    """Frames from the present position on; damaged data raises ``corrupt``."""
    with named_errors("corrupt"):
        for packet in container.demux(stream):
            deadline.check()
            yield from packet.decode()


def _display_size(frame: av.VideoFrame, stream) -> tuple[int, int]:
    """Displayed (height, width): square pixels, upright."""
    aspect = _exact(stream.sample_aspect_ratio)
    width = max(1, round(frame.width * (aspect if aspect > 0 else 1)))
    if frame.rotation % 180:
        return width, frame.height
    return frame.height, width


def _pixels(frame: av.VideoFrame, stream, size, crop, resize=AREA) -> np.ndarray:
    """One frame as uint8 [H, W, 3], upright; with ``AREA`` scaled inside the colour conversion.

    It is cut to ``size`` at ``crop``; ``crop=None`` leaves the whole scaled frame.
    """
    height, width = _display_size(frame, stream)
    spot = place(height, width, size, crop or CENTRE)
    turned = frame.rotation % 180 != 0
    to_height, to_width = (spot.width, spot.height) if turned else (spot.height, spot.width)
    how = {}
    if resize == AREA:
        smaller = to_height < frame.height or to_width < frame.width
        how = {"width": to_width, "height": to_height}
        how["interpolation"] = "AREA" if smaller else "BICUBIC"
    image = frame.reformat(format="rgb24", **how, **_SCALING).to_ndarray()
    if resize != AREA:
        image = bilinear(image, to_height, to_width)
    if frame.rotation:
        image = np.rot90(image, frame.rotation // 90)  # both count counter-clockwise
    return image if crop is None else image[spot.slices]


def probe(media: str | bytes, limits: Limits | None = None) -> ClipInfo:
    """Look into a file (or the bytes of one) without decoding more than its first frame.

    The end of the file is visited too, so a download that broke off is noticed.

    Raises:
      ClipError: with the reason why the clip cannot be used.
    """
    limits = limits or Limits()
    _check_file(media)
    name = "<bytes>" if isinstance(media, bytes) else str(media)
    if is_picture(media):
        height, width = picture_size(media, limits)
        return ClipInfo(name, 1, 0.0, width, height, 0.0, True)
    deadline = Deadline(limits.timeout_s)
    with _opened(media, limits) as (container, stream):
        frame = next(_decoded(container, stream, deadline), None)
        if frame is None:
            raise ClipError("truncated", "no frame before the end of the file")
        limits.check_size(frame.height, frame.width)
        height, width = _display_size(frame, stream)
        rate, kind = _rate(stream), container.format.name
    last = _last_time(media, limits, deadline)
    frames = round(last * rate) + 1
    if frames == 1 and kind.endswith(("_pipe", "image2")):
        return ClipInfo(name, 1, 0.0, width, height, 0.0, True)
    return ClipInfo(name, frames, float(rate), width, height, float(last + 1 / rate), False)


def _last_time(media: str | bytes, limits: Limits, deadline: Deadline) -> Fraction:
    """Time stamp of the last frame in seconds, from the packets at the end of the file.

    Formats without an index are walked through. Each try opens the file anew, because raw streams
    cannot be wound back.
    """
    for seek in (True, False):
        with _opened(media, limits) as (container, stream), named_errors("corrupt"):
            origin = (stream.start_time or 0) * _exact(stream.time_base)
            declared = None
            if stream.duration:
                declared = stream.duration * _exact(stream.time_base)
            elif container.duration:
                declared = Fraction(container.duration, av.time_base)
            if seek and declared is None:
                continue
            if seek:
                # Frames are stored in decoding order: the last to be shown is not the last stored.
                target = int((origin + max(0, declared - 2)) / _exact(stream.time_base))
                try:
                    container.seek(target, stream=stream, backward=True)
                except av.error.FFmpegError:
                    continue
            last, end, packets = _walk(container, stream, deadline)
            if last is not None:
                break
            if not seek:  # no time stamps at all: count
                return Fraction(max(0, packets - 1)) / _rate(stream)
    if declared is not None and end - origin < declared - max(Fraction(1, 2), declared / 50):
        raise ClipError(
            "truncated", f"ends at {float(end - origin):.2f} s of {float(declared):.2f} s"
        )
    return max(Fraction(0), last - origin)


def _walk(container, stream, deadline: Deadline):
    """(last video time, end over all streams, video packets) without decoding; None if unknown."""
    last, end, count = None, None, 0
    for packet in container.demux():
        deadline.check()
        if not packet.size:
            continue
        count += packet.stream_index == stream.index
        stamp = packet.dts if packet.pts is None else packet.pts
        if stamp is None or packet.time_base is None:
            continue
        moment = stamp * _exact(packet.time_base)
        done = moment + (packet.duration or 0) * _exact(packet.time_base)
        end = done if end is None else max(end, done)
        if packet.stream_index == stream.index:
            last = moment if last is None else max(last, moment)
    return last, end, count


def verify(media: str | bytes, limits: Limits | None = None) -> None:
    """Decode a whole clip to know that it is sound; raises ``ClipError`` where it is not.

    The time limit holds for each second of video, not for the clip.
    """
    limits = limits or Limits()
    if is_picture(media):
        return  # probing has decoded it
    deadline = Deadline(limits.timeout_s)
    with _opened(media, limits) as (container, stream):
        rate = max(1, round(_rate(stream)))
        for number, frame in enumerate(_decoded(container, stream, deadline)):
            _check_frame(frame, limits)
            if number % rate == 0:
                deadline.restart()


def _check_frame(frame: av.VideoFrame, limits: Limits) -> None:
    if frame.is_corrupt:
        raise ClipError("corrupt", "the decoder marks a frame as damaged")
    limits.check_size(frame.height, frame.width)


def read_window(
    media: str | bytes,
    start: float,
    count: int,
    fps: float = 0.0,
    size: tuple[int, int] | None = None,
    crop: Crop = CENTRE,
    limits: Limits | None = None,
    decoders: Decoders | None = None,
    resize: str = AREA,
) -> np.ndarray:
    """``count`` frames from ``start`` seconds on, as uint8 [T, H, W, 3].

    Args:
      media: a path, or the bytes of a file.
      start: seconds after the first frame.
      count: frames wanted; a picture is repeated.
      fps: frames per second of the window; 0 takes the file's average rate, which for a constant
        rate gives consecutive frames.
      size: (height, width) to cover and cut to; None keeps the file's.
      crop: where to cut, see ``transforms.place``.
      limits: frame size and time allowed.
      decoders: of files: read on where an earlier window ended shortly before, and leave the file
        open for the next. The frames are those of a decode from the beginning either way.
      resize: ``pictures.AREA`` or ``BILINEAR``.

    Raises:
      ClipError: the reason and what was found.
    """
    limits = limits or Limits()
    _check_file(media)
    if is_picture(media):
        return np.repeat(read_picture(media, size, crop, limits, resize)[None], count, axis=0)
    deadline = Deadline(limits.timeout_s)
    wanted = _Wanted(start, count, fps, size, crop, resize)
    if isinstance(media, bytes):
        decoders = None
    video = None if decoders is None else _read_on(media, wanted, limits, decoders)
    if video is not None:
        return video
    for back in (*_SEEK_BACK, None) if start > 0 else (None,):
        with contextlib.ExitStack() as stack:
            container, stream = stack.enter_context(_opened(media, limits))
            latest = start + _slack(fps, float(_rate(stream)))
            frames = _timed(container, stream, back, latest, deadline)
            playing = Playing(stream, frames, deadline, stack.close)
            video = _window(playing, wanted, limits, sought=back is not None)
            if video is not None and decoders is not None:
                playing.close = stack.pop_all().close
                decoders.leave(media, playing)
        if video is not None:
            return video
    raise ClipError("corrupt", f"no frame at or before {start:.3f} s")


def _read_on(media: str, wanted: _Wanted, limits: Limits, decoders: Decoders) -> np.ndarray | None:
    """The window by a decoder that stands shortly before it; None where there is none.

    What a window holds, and whether it is sound, must not depend on what was read before: what
    fails is read anew.
    """
    playing = decoders.take(media, wanted.start)
    if playing is None:
        return None
    playing.deadline.restart()
    try:
        video = _window(playing, wanted, limits, sought=True)
    except ClipError:
        video, playing.at_hand = None, []
    decoders.leave(media, playing)
    return video


@dataclasses.dataclass(frozen=True)
class _Wanted:
    """The arguments of ``read_window`` that say what to read."""

    start: float
    count: int
    fps: float
    size: tuple[int, int] | None
    crop: Crop
    resize: str


def _instants(start: float, count: int, rate: float, source_rate: float):
    """The instants of a window, and how much later a frame's time stamp may be than its instant.

    Time stamps are rounded (to 1 ms in Matroska) and average rates drift: a quarter of a frame of
    slack keeps "the frame at this instant" the right one.
    """
    return start + np.arange(count) / rate, _slack(rate, source_rate)


def _slack(rate: float, source_rate: float) -> float:
    return 0.25 / max(rate, source_rate)


def _window(playing: Playing, wanted: _Wanted, limits, sought: bool) -> np.ndarray | None:
    """The window, or None when what was ``sought`` turned out to lie before the frames."""
    stream = playing.stream
    source_rate = float(_rate(stream))
    rate = wanted.fps or source_rate
    times, slack = _instants(wanted.start, wanted.count, rate, source_rate)
    images: list[np.ndarray] = []

    def show(frame, until):
        """Put ``frame`` at the instants before ``until``; converted once, if at all."""
        image = None
        while len(images) < wanted.count and times[len(images)] + slack < until:
            if image is None:
                _check_frame(frame, limits)
                image = _pixels(frame, stream, wanted.size, wanted.crop, wanted.resize)
            images.append(image)

    shown, shown_at = None, 0.0
    at_hand, playing.at_hand = playing.at_hand, []
    for moment, frame in itertools.chain(at_hand, playing.frames):
        if shown is None and moment > times[0] + slack:
            return None
        if shown is not None:
            show(shown, moment)
        if len(images) == wanted.count:
            playing.at_hand = [(shown_at, shown), (moment, frame)]
            return np.stack(images)
        shown, shown_at = frame, moment
    if shown is None and sought:
        return None
    if shown is None:
        raise ClipError("truncated", "no frame before the end of the file")
    _check_end(times[-1], shown_at, rate, source_rate)
    show(shown, float("inf"))
    return np.stack(images)


def _timed(container, stream, back, latest, deadline) -> Iterator[tuple[float, av.VideoFrame]]:
    """(seconds, frame) from the key frame ``back`` seconds before ``latest`` on.

    ``back=None`` starts at the beginning, which needs no seek; there the first frame is time 0
    whatever its stamp, and frames without stamps are counted. Yields nothing when a seek cannot
    be made.
    """
    origin = stream.start_time or 0
    if back is not None:
        target = origin + int(max(0.0, latest - back) / _exact(stream.time_base))
        try:
            container.seek(target, stream=stream, backward=True)
        except av.error.FFmpegError:
            return
    rate = _rate(stream)
    frames = enumerate(_decoded(container, stream, deadline))
    if back is not None:
        try:
            first = next(frames, None)
        except ClipError as error:
            if error.reason == "corrupt":  # MPEG-TS seeks may come down between key frames
                return
            raise
        frames = itertools.chain(() if first is None else (first,), frames)
    for number, frame in frames:
        if frame.pts is not None:
            moment = float((frame.pts - origin) * _exact(stream.time_base))
        elif back is None:
            moment = float(number / rate)
        else:
            return
        yield (min(moment, 0.0) if back is None and number == 0 else moment), frame


def read_all(
    media: str | bytes, size: tuple[int, int], limits: Limits | None = None, resize: str = AREA
) -> tuple[np.ndarray, np.ndarray]:
    """A whole clip: time stamps float64 [N] and uint8 [N, H, W, 3] scaled to cover ``size``.

    ``window_of`` takes windows from it that equal ``read_window``'s bit by bit.
    """
    limits = limits or Limits()
    _check_file(media)
    if is_picture(media):
        return np.zeros(1), read_picture(media, size, None, limits, resize)[None]
    deadline = Deadline(limits.timeout_s)
    times, images = [], []
    with _opened(media, limits) as (container, stream):
        for moment, frame in _timed(container, stream, None, 0.0, deadline):
            _check_frame(frame, limits)
            times.append(moment)
            images.append(_pixels(frame, stream, size, None, resize))
    if not images:
        raise ClipError("truncated", "no frame before the end of the file")
    return np.asarray(times), np.stack(images)


def window_of(
    info: ClipInfo,
    clip: tuple[np.ndarray, np.ndarray],
    start: float,
    count: int,
    fps: float,
    size: tuple[int, int],
    crop: Crop,
) -> np.ndarray:
    """``read_window`` from what ``read_all`` returned."""
    stamps, images = clip
    rows, columns = place(info.height, info.width, size, crop).slices
    if len(images) == 1:
        return np.repeat(images[:, rows, columns], count, axis=0)
    rate = fps or info.fps
    times, slack = _instants(start, count, rate, info.fps)
    _check_end(times[-1], stamps[-1], rate, info.fps)
    chosen = np.searchsorted(stamps, times + slack, side="right") - 1
    return images[np.maximum(chosen, 0), rows, columns]


def _check_end(wanted: float, last: float, rate: float, source_rate: float) -> None:
    if wanted > last + 1.5 / rate + 1.5 / source_rate:
        raise ClipError("truncated", f"frames end at {last:.2f} s, the window needs {wanted:.2f} s")


def iter_frames(
    media: str | bytes, limits: Limits | None = None, size: tuple[int, int] | None = None
) -> tuple[ClipInfo, Iterator[np.ndarray]]:
    """What is in a clip, and its frames in order as uint8 [H, W, 3], one in memory at a time.

    The time limit holds for each frame. Damaged data raises ``ClipError`` at the frame it hits.
    """
    limits = limits or Limits()
    return probe(media, limits), _all_frames(media, limits, size)


def _all_frames(media, limits, size) -> Iterator[np.ndarray]:
    if is_picture(media):
        yield read_picture(media, size, CENTRE, limits)
        return
    deadline = Deadline(limits.timeout_s)
    with _opened(media, limits) as (container, stream):
        for frame in _decoded(container, stream, deadline):
            _check_frame(frame, limits)
            image = _pixels(frame, stream, size, CENTRE)
            yield np.ascontiguousarray(image)
            deadline.restart()
