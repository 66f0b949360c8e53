"""What is in a clip (``probe``), and whether all of it can be decoded (``verify``)."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import av
import numpy as np

from vidlatent.media.container import (
    check_file,
    check_frame,
    decode_frames,
    display_size,
    frame_rate,
    open_video,
    to_fraction,
)
from vidlatent.media.errors import ClipError, Deadline, Limits, named_errors
from vidlatent.media.pictures import is_picture, read_picture_size

__all__ = ["ClipInfo", "probe", "verify"]


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
        # Rates such as 30000/1001 are floats here: a thousandth of a frame covers their rounding.
        return int((self.frames - 1) / self.fps * fps + 1e-3) + 1

    def starts(self, count: int, fps: float) -> int:
        """Number of source frames at which a window of ``count`` frames at ``fps`` can begin."""
        if self.is_image or self.frames == 1 or fps == 0.0:
            return max(0, self.frames - count + 1)
        # Source frames left over after the window's last one.
        room = (self.frames - 1) - (count - 1) / fps * self.fps
        return max(0, int(np.floor(room + 1e-3)) + 1)


def probe(media: str | bytes, limits: Limits | None = None) -> ClipInfo:
    """Find out what a file (or the bytes of one) holds, decoding no more than its first frame.

    The packets at its end are read too, so that a download that broke off is noticed.

    Raises:
      ClipError: with the reason why the clip cannot be used.
    """
    limits = limits or Limits()
    check_file(media)
    name = "<bytes>" if isinstance(media, bytes) else str(media)
    if is_picture(media):
        height, width = read_picture_size(media, limits)
        return ClipInfo(name, 1, 0.0, width, height, 0.0, True)
    deadline = Deadline(limits.timeout_s)
    with open_video(media, limits) as (container, stream):
        frame = next(decode_frames(container, stream, deadline), None)
        if frame is None:
            raise ClipError("truncated", "no frame before the end of the file")
        limits.check_size(frame.height, frame.width)
        height, width = display_size(frame, stream)
        rate, kind = frame_rate(stream), container.format.name
    last = _last_time(media, limits, deadline)
    frames = round(last * rate) + 1
    # A still picture in a format that FFmpeg reads and Pillow was not asked to.
    if frames == 1 and kind.endswith(("_pipe", "image2")):
        return ClipInfo(name, 1, 0.0, width, height, 0.0, True)
    return ClipInfo(name, frames, float(rate), width, height, float(last + 1 / rate), False)


def _last_time(media: str | bytes, limits: Limits, deadline: Deadline) -> Fraction:
    """Time stamp of the last frame in seconds, from the packets at the end of the file.

    A file that cannot be sought in is read from its beginning. Each try opens the file again,
    because raw streams cannot be rewound.
    """
    for seek in (True, False):
        with open_video(media, limits) as (container, stream), named_errors("corrupt"):
            origin = (stream.start_time or 0) * to_fraction(stream.time_base)
            declared = None
            if stream.duration:
                declared = stream.duration * to_fraction(stream.time_base)
            elif container.duration:
                # Containers count in microseconds, streams in units of their own.
                declared = Fraction(container.duration, av.time_base)
            if seek and declared is None:
                continue
            if seek:
                # Frames are stored in decoding order, and the last one shown need not be the last
                # one stored: look at the final two seconds.
                target = int((origin + max(0, declared - 2)) / to_fraction(stream.time_base))
                try:
                    container.seek(target, stream=stream, backward=True)
                except av.error.FFmpegError:
                    continue
            last, end, packets = _read_packets(container, stream, deadline)
            if last is not None:
                break
            if not seek:  # no packet has a time stamp: count them
                return Fraction(max(0, packets - 1)) / frame_rate(stream)
    # Headers are not exact: half a second or 2 % less is no damage.
    if declared is not None and end - origin < declared - max(Fraction(1, 2), declared / 50):
        raise ClipError(
            "truncated", f"ends at {float(end - origin):.2f} s of {float(declared):.2f} s"
        )
    return max(Fraction(0), last - origin)


def _read_packets(container, stream, deadline: Deadline):
    """(last video time, end over all streams, number of video packets), without decoding.

    Times are in seconds, None if no packet has one.
    """
    last, end, count = None, None, 0
    for packet in container.demux():
        deadline.check()
        # PyAV ends a stream with an empty packet.
        if not packet.size:
            continue
        count += packet.stream_index == stream.index
        stamp = packet.dts if packet.pts is None else packet.pts
        if stamp is None or packet.time_base is None:
            continue
        moment = stamp * to_fraction(packet.time_base)
        done = moment + (packet.duration or 0) * to_fraction(packet.time_base)
        end = done if end is None else max(end, done)
        if packet.stream_index == stream.index:
            last = moment if last is None else max(last, moment)
    return last, end, count


def verify(media: str | bytes, limits: Limits | None = None) -> None:
    """Decode a whole clip to know that no frame is damaged; raises ``ClipError`` if one is.

    The time limit holds for each second of video, not for the whole clip.
    """
    limits = limits or Limits()
    if is_picture(media):
        return  # probing has decoded it
    deadline = Deadline(limits.timeout_s)
    with open_video(media, limits) as (container, stream):
        rate = max(1, round(frame_rate(stream)))
        for number, frame in enumerate(decode_frames(container, stream, deadline)):
            check_frame(frame, limits)
            if number % rate == 0:
                deadline.restart()
