"""Frames of clips, from files or bytes through PyAV: a window of them, or all.

A window is a list of instants, and the frame at an instant is the one on display then: the last
whose time stamp is not after it. So files with a variable frame rate play at their true speed, and
any target rate is possible. Time 0 is the file's first frame.

A container is opened for each call and closed before the call returns, unless the caller hands in
``Decoders``: nothing is shared between threads and nothing grows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator

import av
import numpy as np

from vidlatent.media.container import (
    check_file,
    check_frame,
    decode_frames,
    frame_rate,
    frame_to_array,
    open_video,
    to_fraction,
)
from vidlatent.media.decoders import Decoders, Playing
from vidlatent.media.errors import ClipError, Deadline, Limits
from vidlatent.media.pictures import AREA, is_picture, read_picture
from vidlatent.media.probe import ClipInfo, probe
from vidlatent.media.transforms import CENTRE, Crop, place

__all__ = ["iter_frames", "read_all", "read_window", "cut_window"]

# When a seek lands after the wanted frame, it is tried again this many seconds earlier, and at last
# from the beginning of the file.
_SEEK_BACK = (0.0, 2.0, 15.0)


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
      decoders: files left open by earlier windows. If one ended shortly before this window, its
        decoder goes on from there; the file is left open for the next window. The frames are the
        same with and without.
      resize: ``pictures.AREA`` or ``BILINEAR``.

    Raises:
      ClipError: the reason and what was found.
    """
    limits = limits or Limits()
    check_file(media)
    if is_picture(media):
        return np.repeat(read_picture(media, size, crop, limits, resize)[None], count, axis=0)
    deadline = Deadline(limits.timeout_s)
    wanted = _Wanted(start, count, fps, size, crop, resize)
    # Open files are found again by their path, which bytes do not have.
    if isinstance(media, bytes):
        decoders = None
    video = None if decoders is None else _continue_reading(media, wanted, limits, decoders)
    if video is not None:
        return video
    # A window at the beginning needs no seek.
    for back in (*_SEEK_BACK, None) if start > 0 else (None,):
        with contextlib.ExitStack() as stack:
            container, stream = stack.enter_context(open_video(media, limits))
            latest = start + _slack(fps, float(frame_rate(stream)))
            frames = _iterate_timed(container, stream, back, latest, deadline)
            playing = Playing(stream, frames, deadline, stack.close)
            video = _collect_window(playing, wanted, limits, sought=back is not None)
            if video is not None and decoders is not None:
                # Closing becomes the decoder's business: the file stays open after this block.
                playing.close = stack.pop_all().close
                decoders.leave(media, playing)
        if video is not None:
            return video
    raise ClipError("corrupt", f"no frame at or before {start:.3f} s")


def _continue_reading(
    media: str, wanted: _Wanted, limits: Limits, decoders: Decoders
) -> np.ndarray | None:
    """The window from a decoder that is shortly before it; None if there is none, or if it failed.

    What a window holds, and whether it can be read, must not depend on what was read before. So
    after a failure the caller opens the file and reads again.
    """
    playing = decoders.take(media, wanted.start)
    if playing is None:
        return None
    playing.deadline.restart()
    try:
        video = _collect_window(playing, wanted, limits, sought=True)
    except ClipError:
        # With nothing at hand, `leave` closes the file.
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


def _make_instants(start: float, count: int, rate: float, source_rate: float):
    """The instants of a window in seconds, and how late a frame may be for its instant.

    Time stamps are rounded (to 1 ms in Matroska) and average rates drift. A quarter of a frame of
    slack still finds the right frame.
    """
    return start + np.arange(count) / rate, _slack(rate, source_rate)


def _slack(rate: float, source_rate: float) -> float:
    return 0.25 / max(rate, source_rate)


def _collect_window(playing: Playing, wanted: _Wanted, limits, sought: bool) -> np.ndarray | None:
    """The window uint8 [T, H, W, 3]; None if a seek (``sought``) landed after its first frame."""
    stream = playing.stream
    source_rate = float(frame_rate(stream))
    rate = wanted.fps or source_rate
    times, slack = _make_instants(wanted.start, wanted.count, rate, source_rate)
    images: list[np.ndarray] = []

    def show(frame, until):
        """Use ``frame`` for all instants before ``until``; it is converted once, or not at all."""
        image = None
        while len(images) < wanted.count and times[len(images)] + slack < until:
            if image is None:
                check_frame(frame, limits)
                image = frame_to_array(frame, stream, wanted.size, wanted.crop, wanted.resize)
            images.append(image)

    # A frame stays on display until the next one, so the loop lags one frame behind.
    shown, shown_at = None, 0.0
    at_hand, playing.at_hand = playing.at_hand, []
    for moment, frame in itertools.chain(at_hand, playing.frames):
        if shown is None and moment > times[0] + slack:
            return None
        if shown is not None:
            show(shown, moment)
        if len(images) == wanted.count:
            # The next window may need both: the frame on display now, and the one read already.
            playing.at_hand = [(shown_at, shown), (moment, frame)]
            return np.stack(images)
        shown, shown_at = frame, moment
    if shown is None and sought:
        return None
    if shown is None:
        raise ClipError("truncated", "no frame before the end of the file")
    _check_end(times[-1], shown_at, rate, source_rate)
    # Nothing follows: the last frame stays on display.
    show(shown, float("inf"))
    return np.stack(images)


def _iterate_timed(
    container, stream, back, latest, deadline
) -> Iterator[tuple[float, av.VideoFrame]]:
    """(seconds, frame) from the key frame ``back`` seconds before ``latest`` on.

    ``back=None`` starts at the beginning of the file, without a seek. There the first frame is at
    time 0, whatever its stamp, and frames without stamps are counted. Yields nothing if the file
    cannot be sought in.
    """
    # A file may begin at any stamp; here its first frame is at time 0.
    origin = stream.start_time or 0
    if back is not None:
        target = origin + int(max(0.0, latest - back) / to_fraction(stream.time_base))
        try:
            container.seek(target, stream=stream, backward=True)
        # The caller's last try starts at the beginning, without a seek.
        except av.error.FFmpegError:
            return
    rate = frame_rate(stream)
    frames = enumerate(decode_frames(container, stream, deadline))
    if back is not None:
        try:
            first = next(frames, None)
        except ClipError as error:
            if error.reason == "corrupt":  # a seek in MPEG-TS may land between key frames
                return
            raise
        frames = itertools.chain(() if first is None else (first,), frames)
    for number, frame in frames:
        if frame.pts is not None:
            moment = float((frame.pts - origin) * to_fraction(stream.time_base))
        # After a seek, frames without stamps could be anywhere.
        elif back is None:
            moment = float(number / rate)
        else:
            return
        yield (min(moment, 0.0) if back is None and number == 0 else moment), frame


def read_all(
    media: str | bytes, size: tuple[int, int], limits: Limits | None = None, resize: str = AREA
) -> tuple[np.ndarray, np.ndarray]:
    """A whole clip: time stamps float64 [N] and uint8 [N, H, W, 3] scaled to cover ``size``.

    ``cut_window`` cuts windows out of it that equal those of ``read_window`` bit by bit.
    """
    limits = limits or Limits()
    check_file(media)
    if is_picture(media):
        return np.zeros(1), read_picture(media, size, None, limits, resize)[None]
    deadline = Deadline(limits.timeout_s)
    times, images = [], []
    with open_video(media, limits) as (container, stream):
        for moment, frame in _iterate_timed(container, stream, None, 0.0, deadline):
            check_frame(frame, limits)
            times.append(moment)
            images.append(frame_to_array(frame, stream, size, None, resize))
    if not images:
        raise ClipError("truncated", "no frame before the end of the file")
    return np.asarray(times), np.stack(images)


def cut_window(
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
    times, slack = _make_instants(start, count, rate, info.fps)
    _check_end(times[-1], stamps[-1], rate, info.fps)
    # The last frame whose stamp is not after the instant, as in `_collect_window`.
    chosen = np.searchsorted(stamps, times + slack, side="right") - 1
    return images[np.maximum(chosen, 0), rows, columns]


def _check_end(wanted: float, last: float, rate: float, source_rate: float) -> None:
    # Stamps are rounded and average rates drift, so the end may seem a frame early.
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
    with open_video(media, limits) as (container, stream):
        for frame in decode_frames(container, stream, deadline):
            check_frame(frame, limits)
            image = frame_to_array(frame, stream, size, CENTRE)
            yield np.ascontiguousarray(image)
            # The time that the caller spends on a frame does not count.
            deadline.restart()
