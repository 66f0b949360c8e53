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

import numpy as np

from vidlatent.media.container import check_file
from vidlatent.media.decoders import Decoders, Playing
from vidlatent.media.errors import ClipError, Deadline, Limits, named_errors
from vidlatent.media.frames import iterate_frames
from vidlatent.media.pictures import AREA, is_picture, read_picture
from vidlatent.media.pixels import check_frame, frame_to_array
from vidlatent.media.probe import ClipInfo, known_info, probe
from vidlatent.media.transforms import CENTRE, Crop, place

__all__ = ["iter_frames", "iter_timed_frames", "read_all", "read_window", "cut_window"]

# When a seek lands after the wanted frame, it is tried again this many seconds earlier, and at last
# from the beginning of the file.
_SEEK_BACK = (0.0, 2.0, 15.0)

_ROUNDING_S = 0.002  # twice the coarsest clock of containers, that of Matroska


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
    info: ClipInfo | None = None,
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
      info: what ``probe`` found in the file; None: it is probed, once while it does not change.

    Raises:
      ClipError: the reason and what was found.
    """
    limits = limits or Limits()
    check_file(media)
    with named_errors("corrupt"):
        if is_picture(media):
            image = read_picture(media, size, crop, limits, resize)
            return np.repeat(image[None], count, axis=0)
        wanted = _Wanted(start, count, fps, size, crop, resize)
        # Open files are found again by their path, which bytes do not have.
        if isinstance(media, bytes):
            decoders = None
        return _read_video(media, info or known_info(media, limits), wanted, limits, decoders)


def _read_video(media, info: ClipInfo, wanted: _Wanted, limits: Limits, decoders) -> np.ndarray:
    video = None if decoders is None else _continue_reading(media, wanted, limits, decoders)
    if video is not None:
        return video
    slack = _slack(wanted.fps, info)
    # A window at the beginning needs no seek.
    for back in (*_SEEK_BACK, None) if wanted.start > 0 and not info.is_image else (None,):
        deadline = Deadline(limits.timeout_s)
        seek = None if back is None else wanted.start + slack - back
        frames = iterate_frames(media, limits, info.track, deadline, seek)
        playing = Playing(info, frames, deadline, frames.close)
        with contextlib.ExitStack() as stack:
            stack.callback(frames.close)
            video = _collect_window(playing, wanted, limits, sought=back is not None)
            if video is not None and decoders is not None:
                # Closing becomes the decoder's business: the file stays open after this block.
                stack.pop_all()
                decoders.leave(media, playing)
        if video is not None:
            return video
    raise ClipError("corrupt", f"no frame at or before {wanted.start:.3f} s")


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


def _make_instants(start: float, count: int, rate: float, info: ClipInfo):
    """The instants of a window in seconds, and how late a frame may be for its instant."""
    return start + np.arange(count) / rate, _slack(rate, info)


def _slack(rate: float, info: ClipInfo) -> float:
    """How many seconds after an instant a frame may begin that is shown for it.

    Time stamps are rounded (to 1 ms in Matroska) and average rates drift. A quarter of a frame of
    slack still finds the right frame. Where frames last differently long, only rounding counts.
    """
    quarter = 0.25 / max(rate, info.fps or 1.0)
    return min(quarter, _ROUNDING_S) if "variable" in info.remarks else quarter


def _collect_window(playing: Playing, wanted: _Wanted, limits, sought: bool) -> np.ndarray | None:
    """The window uint8 [T, H, W, 3]; None if a seek (``sought``) landed after its first frame."""
    info = playing.info
    # A still picture in a video's format has no rate; one frame is shown at all instants.
    source_rate = info.fps or 1.0
    rate = wanted.fps or source_rate
    times, slack = _make_instants(wanted.start, wanted.count, rate, info)
    images: list[np.ndarray] = []

    def show(frame, until):
        """Use ``frame`` for all instants before ``until``; it is converted once, or not at all."""
        image = None
        while len(images) < wanted.count and times[len(images)] + slack < until:
            if image is None:
                check_frame(frame, limits)
                how = wanted.size, wanted.crop, wanted.resize, limits
                image = frame_to_array(frame, info.size, *how)
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
    if not info.is_image:
        _check_end(times[-1], shown_at, rate, source_rate)
    # Nothing follows: the last frame stays on display.
    show(shown, float("inf"))
    return np.stack(images)


def read_all(
    media: str | bytes,
    size: tuple[int, int],
    limits: Limits | None = None,
    resize: str = AREA,
    info: ClipInfo | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """A whole clip: time stamps float64 [N] and uint8 [N, H, W, 3] scaled to cover ``size``.

    ``cut_window`` cuts windows out of it that equal those of ``read_window`` bit by bit.
    """
    limits = limits or Limits()
    check_file(media)
    with named_errors("corrupt"):
        if is_picture(media):
            return np.zeros(1), read_picture(media, size, None, limits, resize)[None]
        info = info or known_info(media, limits)
        deadline = Deadline(limits.timeout_s)
        times, images = [], []
        for moment, frame in iterate_frames(media, limits, info.track, deadline):
            check_frame(frame, limits)
            times.append(moment)
            images.append(frame_to_array(frame, info.size, size, None, resize, limits))
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
    times, slack = _make_instants(start, count, rate, info)
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
    info, frames = iter_timed_frames(media, limits, size)
    return info, (image for _, image in frames)


def iter_timed_frames(
    media: str | bytes, limits: Limits | None = None, size: tuple[int, int] | None = None
) -> tuple[ClipInfo, Iterator[tuple[float, np.ndarray]]]:
    """``iter_frames`` with the seconds at which each frame is shown; the first is at 0."""
    limits = limits or Limits()
    # All packets are read, so that it is known whether the rate varies.
    info = probe(media, limits, whole=True)
    return info, _all_frames(media, info, limits, size)


def _all_frames(media, info: ClipInfo, limits, size) -> Iterator[tuple[float, np.ndarray]]:
    with named_errors("corrupt"):
        if is_picture(media):
            yield 0.0, read_picture(media, size, CENTRE, limits)
            return
        deadline = Deadline(limits.timeout_s)
        for moment, frame in iterate_frames(media, limits, info.track, deadline):
            check_frame(frame, limits)
            image = frame_to_array(frame, info.size, size, CENTRE, limits=limits)
            yield moment, np.ascontiguousarray(image)
            # The time that the caller spends on a frame does not count.
            deadline.restart()
