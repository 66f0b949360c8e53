"""Opening a video file with PyAV: its container, and the stream that players show.

Every container is opened with one decoder thread, because the loader already runs as many threads
as there are cores, and with errors raised instead of concealed, so that damaged frames are noticed.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import stat
from fractions import Fraction

import av

from vidlatent.media.errors import ClipError, Limits, named_errors
from vidlatent.media.pictures import is_motion_jpeg

__all__ = ["check_file", "local_name", "open_container", "open_video", "read_head", "to_fraction"]

# Before PyAV 19, a title that is not UTF-8 is an error unless told otherwise.
_OPENING = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}

# Formats that are lists of other files or streams of a network. A file in a data folder must not
# open files outside of it, nor count the content of its neighbours once more.
_LISTS = frozenset("hls concat concatf dash sdp rtsp rtp sap imf dvdvideo lavfi webm_dash_manifest "
                   "vapoursynth avisynth".split())  # fmt: skip
_LIST_STARTS = (b"#EXTM3U", b"ffconcat version", b"[playlist]", b"v=0\r", b"v=0\n")


def local_name(path: str) -> str:
    """A path that FFmpeg cannot take for an address: ``a:b.mp4`` would name the protocol ``a``."""
    return os.path.abspath(path)


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


@functools.cache
def _format_list() -> str:
    """The formats that may be opened, as FFmpeg's option ``format_whitelist`` takes them."""
    return ",".join(sorted(set(av.formats_available) - _LISTS))


def read_head(media: str | bytes, count: int = 64) -> bytes:
    """The first bytes of a file, or of the bytes of one."""
    if isinstance(media, bytes):
        return media[:count]
    with open(media, "rb") as file:
        return file.read(count)


@contextlib.contextmanager
def open_container(media: str | bytes, limits: Limits):
    """Yield PyAV's container of a file or the bytes of one, and close it afterwards.

    Raises:
      ClipError: FFmpeg cannot open it, or it is a playlist.
    """
    # Only opening is guarded here: what the caller does with the file is named by the caller.
    with named_errors("unreadable"):
        head = read_head(media)
        if head.removeprefix(b"\xef\xbb\xbf").startswith(_LIST_STARTS) or b"<MPD" in head:
            raise ClipError("unsupported", "a list of other files: use the files themselves")
        container = av.open(
            io.BytesIO(media) if isinstance(media, bytes) else local_name(media),
            format="mjpeg" if is_motion_jpeg(media) else None,
            options={"format_whitelist": _format_list()},
            timeout=limits.timeout_s,
            **_OPENING,
        )
    try:
        yield container
    finally:
        container.close()


@contextlib.contextmanager
def open_video(media: str | bytes, limits: Limits):
    """Yield (container, video stream) of a file or the bytes of one, and close it afterwards.

    Raises:
      ClipError: it is no video, or its frames are larger than the limit.
    """
    with open_container(media, limits) as container:
        with named_errors("unreadable"):
            stream = _choose_stream(container)
            context = stream.codec_context
            limits.check_size(context.height or 0, context.width or 0)
            stream.thread_type = "NONE"
            context.thread_count = 1
            # Sizes may also change within the stream; coded frames are a little larger than shown.
            most = 2 * limits.max_pixels + (1 << 16)
            context.options = {"err_detect": "explode", "max_pixels": str(most)}
        yield container, stream


def _choose_stream(container):
    """The video stream that players choose: the one marked as default, then the largest."""
    # The cover picture of a music file is a video stream too.
    cover = av.stream.Disposition.attached_pic
    videos = [s for s in container.streams.video if not s.disposition & cover]
    if not videos:
        raise ClipError("no_video", f"a {container.format.name} file without a video track")
    # FFmpeg has no decoder for a stream without codec context.
    known = [s for s in videos if s.codec_context is not None]
    if not known:
        raise ClipError("unsupported", "FFmpeg has no decoder for its video track")
    best = container.streams.best("video")
    for stream in known:
        if best is not None and stream.index == best.index:
            return stream
    return max(known, key=lambda s: (s.codec_context.width or 0) * (s.codec_context.height or 0))


def to_fraction(ratio) -> Fraction:
    """PyAV's ratios (a type of its own since 19) as a Fraction; 0 for none and for 0/0."""
    if ratio is None or not ratio.denominator:
        return Fraction(0)
    return Fraction(ratio.numerator, ratio.denominator)
