"""Opening a video file with PyAV: its stream, its frames in order, one frame as pixels.

Every container is opened with one decoder thread, because the loader already runs as many threads
as there are cores, and with errors raised instead of concealed, so that damaged frames are noticed.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np

from vidlatent.media.errors import ClipError, Deadline, Limits, named_errors
from vidlatent.media.pictures import AREA, resize_bilinear
from vidlatent.media.transforms import CENTRE, place

__all__ = [
    "check_file",
    "check_frame",
    "decode_frames",
    "display_size",
    "frame_rate",
    "open_video",
    "to_fraction",
    "frame_to_array",
]

# Versions of PyAV differ. Before 19, a title that is not UTF-8 is an error unless told otherwise.
# Since 18, scaling starts threads of its own, which would compete with the loader's.
_PYAV = int(av.__version__.split(".")[0])
_OPENING = {"metadata_errors": "ignore"} if _PYAV < 19 else {}
_SCALING = {"threads": 1} if _PYAV >= 18 else {}


def check_file(media: str | bytes) -> None:
    """Raise ``ClipError`` unless the file (or its bytes) can be read and is not empty."""
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
def open_video(media: str | bytes, limits: Limits):
    """Yield (container, video stream) of a file or the bytes of one, and close it afterwards.

    Raises:
      ClipError: it is no video, or its frames are larger than the limit.
    """
    # Only opening is guarded here: what the caller does with the file is named by the caller.
    with named_errors("unreadable"):
        container = av.open(
            io.BytesIO(media) if isinstance(media, bytes) else media,
            timeout=limits.timeout_s,
            **_OPENING,
        )
    try:
        cover = av.stream.Disposition.attached_pic  # the cover picture of a music file
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


def frame_rate(stream) -> Fraction:
    """Frames a second; 25 where the file does not say."""
    # From the most to the least exact; some files lack the first.
    stated = map(to_fraction, (stream.average_rate, stream.guessed_rate, stream.base_rate))
    return next((rate for rate in stated if rate > 0), Fraction(25))


def to_fraction(ratio) -> Fraction:
    """PyAV's ratios (a type of its own since 19) as a Fraction; 0 for none and for 0/0."""
    if ratio is None or not ratio.denominator:
        return Fraction(0)
    return Fraction(ratio.numerator, ratio.denominator)


def decode_frames(container, stream, deadline: Deadline) -> Iterator[av.VideoFrame]:
    """Frames from the current position on; damaged data raises ``ClipError`` 'corrupt'."""
    with named_errors("corrupt"):
        for packet in container.demux(stream):
            deadline.check()
            yield from packet.decode()


def display_size(frame: av.VideoFrame, stream) -> tuple[int, int]:
    """Displayed (height, width): square pixels, upright."""
    aspect = to_fraction(stream.sample_aspect_ratio)
    width = max(1, round(frame.width * (aspect if aspect > 0 else 1)))
    if frame.rotation % 180:
        return width, frame.height
    return frame.height, width


def frame_to_array(frame: av.VideoFrame, stream, size, crop, resize=AREA) -> np.ndarray:
    """One frame as uint8 [H, W, 3], upright, scaled to cover ``size`` and cut to it at ``crop``.

    ``crop=None`` keeps the whole scaled frame. With ``AREA`` the frame is scaled while its colours
    are converted, in one pass.
    """
    height, width = display_size(frame, stream)
    spot = place(height, width, size, crop or CENTRE)
    # A frame on its side is scaled before it is turned, so its sides swap.
    turned = frame.rotation % 180 != 0
    to_height, to_width = (spot.width, spot.height) if turned else (spot.height, spot.width)
    how = {}
    if resize == AREA:
        smaller = to_height < frame.height or to_width < frame.width
        how = {"width": to_width, "height": to_height}
        how["interpolation"] = "AREA" if smaller else "BICUBIC"
    image = frame.reformat(format="rgb24", **how, **_SCALING).to_ndarray()
    if resize != AREA:
        image = resize_bilinear(image, to_height, to_width)
    if frame.rotation:
        image = np.rot90(image, frame.rotation // 90)  # both count counter-clockwise
    return image if crop is None else image[spot.slices]


def check_frame(frame: av.VideoFrame, limits: Limits) -> None:
    """Raise ``ClipError`` if a decoded frame is damaged or larger than the limit."""
    if frame.is_corrupt:
        raise ClipError("corrupt", "the decoder marks a frame as damaged")
    # The size may change within a stream, so the header's is not enough.
    limits.check_size(frame.height, frame.width)
