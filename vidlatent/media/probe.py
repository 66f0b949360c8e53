"""What is in a clip (``probe``), and whether all of it can be decoded (``verify``)."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np

from vidlatent.media.container import check_file, open_video, read_head, to_fraction
from vidlatent.media.errors import ClipError, Deadline, Limits, named_errors
from vidlatent.media.frames import Track, find_start, iterate_frames
from vidlatent.media.pictures import (
    describe_picture,
    is_animated_webp,
    is_picture,
    open_picture,
    read_picture_size,
)
from vidlatent.media.pixels import check_frame, describe_frame, display_size
from vidlatent.media.timeline import STAMPS_MAY_JUMP, check_whole, find_rate, is_shown, read_packets

__all__ = ["REMARKS", "ClipInfo", "known_info", "probe", "verify"]

# What is changed or lost of a clip that can be read.
REMARKS = {
    "alpha": "transparency is dropped: the colours below it are shown",
    "hdr": "HDR colours (PQ or HLG) are taken as they are, without tone mapping",
    "interlaced": "interlaced frames are scaled whole, without deinterlacing",
    "variable": "the frame rate varies: windows show the frame on display at each instant",
    "spliced": "time stamps jump: the parts are joined without a gap",
    "trimmed": "damaged packets at the beginning or end of the recording are left out",
    "sound": "has a sound track",
}

_SAME_RATE = Fraction(1, 50)  # relative difference of rates that are meant to be the same
_EDGE_S = 2  # seconds at the end of a file that are read for its last packet


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
      trimmed: packets left out at the edges, as far as they are known without decoding all.
      remarks: keys of ``REMARKS``.
      track: how its frames are reached.
    """

    path: str
    frames: int
    fps: float
    width: int
    height: int
    duration: float
    is_image: bool
    trimmed: int = 0
    remarks: tuple[str, ...] = ()
    track: Track = Track()

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> ClipInfo:
        """From what ``dataclasses.asdict`` made, through JSON."""
        keys = dict(row, remarks=tuple(row["remarks"]), track=Track(**row["track"]))
        return cls(**keys)

    @property
    def size(self) -> tuple[int, int]:
        """Displayed (height, width) in pixels."""
        return self.height, self.width

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


def known_info(media: str | bytes, limits: Limits) -> ClipInfo:
    """``probe``, kept for files until they change."""
    check_file(media)
    if isinstance(media, bytes):
        return probe(media, limits)
    status = os.stat(media)
    return _info_of_file(media, status.st_size, status.st_mtime_ns, limits)


@functools.lru_cache(maxsize=1024)
def _info_of_file(path: str, size: int, changed: int, limits: Limits) -> ClipInfo:
    del size, changed  # of the key only
    return probe(path, limits)


def probe(media: str | bytes, limits: Limits | None = None, *, whole: bool = False) -> ClipInfo:
    """Find out what a file (or the bytes of one) holds, decoding no more than its first frames.

    Its packets are read too: to count the frames and to know when they are shown, and so that a
    download that broke off is noticed.

    Args:
      media: a path, or the bytes of a file.
      limits: frame size and time allowed.
      whole: read all packets even if those at the end agree with the header, to know whether the
        frame rate varies.

    Raises:
      ClipError: with the reason why the clip cannot be used.
    """
    limits = limits or Limits()
    check_file(media)
    with named_errors("corrupt"):
        if is_picture(media):
            height, width, remarks = read_picture_size(media, limits)
            name = _name(media)
            return ClipInfo(name, 1, 0.0, width, height, 0.0, True, remarks=tuple(remarks))
        if is_animated_webp(media):
            return _probe_by_decoding(media, limits)
        return _probe_video(media, limits, whole)


def _name(media: str | bytes) -> str:
    return "<bytes>" if isinstance(media, bytes) else str(media)


def _probe_by_decoding(media: str | bytes, limits: Limits) -> ClipInfo:
    """For formats without packets."""
    deadline = Deadline(limits.timeout_s)
    times, size = [], (0, 0)
    with open_picture(media, limits) as image:
        remarks = describe_picture(image)
    for moment, frame in iterate_frames(media, limits, Track(), deadline):
        if not times:
            size = (frame.height, frame.width)
        times.append(moment)
    if not times:
        raise ClipError("truncated", "no frame before the end of the file")
    if len(times) == 1:
        return ClipInfo(_name(media), 1, 0.0, size[1], size[0], 0.0, True)
    span = Fraction(times[-1]).limit_denominator(1000)
    rate = find_rate((), len(times), span, Fraction(1, 1000))
    if _varies(times, rate, Fraction(1, 1000)):
        remarks.append("variable")
    return _make_info(media, size, rate, len(times), span, remarks, 0, Track(rate=float(rate)))


def _make_info(media, size, rate, count, span, remarks, trimmed, track) -> ClipInfo:
    frames = max(1, round(span * rate) + 1)
    lasts = float(span + 1 / rate)
    remarks = tuple(sorted({*remarks, *(("trimmed",) if trimmed else ())}))
    return ClipInfo(
        _name(media), frames, float(rate), size[1], size[0], lasts, False, trimmed, remarks, track
    )


def _varies(times: Sequence[float], rate: Fraction, tick: Fraction) -> bool:
    """Whether a frame is further from its place at the rate than rounding explains."""
    step = float(1 / rate)
    off = np.abs(np.asarray(times) - step * np.arange(len(times)))
    return bool(len(off) and off.max() > max(step / 4, 2 * float(tick)))


@dataclasses.dataclass
class _Header:
    """What a file says of itself, and its first frame."""

    size: tuple[int, int]
    rates: tuple[Fraction, ...]
    origin: int | None  # ticks
    start: int
    stated: int
    tick: Fraction
    kind: str
    interlaced: bool
    remarks: list[str]
    skipped: int
    rough: bool
    cut_anywhere: bool


def _read_header(media: str | bytes, limits: Limits) -> _Header:
    skipped, rough, frame = find_start(media, limits, Deadline(limits.timeout_s))
    check_frame(frame, limits)
    with open_video(media, limits) as (container, stream):
        tick = to_fraction(stream.time_base)
        rates = (stream.average_rate, stream.guessed_rate, stream.base_rate)
        remarks = describe_frame(frame)
        if stream.metadata.get("alpha_mode") == "1" or _is_clear_avif(media, limits):
            remarks.append("alpha")
        if container.streams.audio:
            remarks.append("sound")
        return _Header(
            display_size(frame, stream),
            # From the most to the least exact; some files lack the first.
            tuple(map(to_fraction, rates)),
            frame.pts,
            stream.start_time or 0,
            stream.frames,
            tick,
            container.format.name,
            frame.interlaced_frame,
            remarks,
            skipped,
            rough,
            bool(container.format.flags & STAMPS_MAY_JUMP),
        )


def _is_clear_avif(media: str | bytes, limits: Limits) -> bool:
    """Whether it is an AVIF sequence with transparency, which lies in a track of its own."""
    if read_head(media, 12)[4:] != b"ftypavis":
        return False
    try:
        with open_picture(media, limits) as image:
            return "alpha" in describe_picture(image)
    except ClipError:  # FFmpeg reads it all the same
        return False


def _probe_video(media: str | bytes, limits: Limits, whole: bool) -> ClipInfo:
    head = _read_header(media, limits)
    if not whole and head.stated > 1 and head.origin == head.start and not head.skipped:
        info = _trust_header(media, limits, head)
        if info is not None:
            return info
    packets = read_packets(media, limits)
    if packets.start is not None and not packets.splices:
        with open_video(media, limits) as (container, stream):
            check_whole(container, stream, packets.start, packets.end)
    stamps, trimmed = packets.shown_stamps(), head.skipped
    if head.origin is None or not len(stamps):
        # Without stamps: the decoder shows nothing before the first key frame.
        first = packets.keys.index(True) if True in packets.keys else 0
        first = max(first, head.skipped)
        count, trimmed = sum(packets.shown[first:]), first
        rate = find_rate(head.rates, 1, Fraction(0), head.tick)
        span = Fraction(max(0, count - 1)) / rate
    else:
        # Frames before the first clean one are never shown.
        before = int(np.searchsorted(stamps, head.origin))
        trimmed, stamps = max(trimmed, before), stamps[before:] - head.origin
        if head.cut_anywhere or packets.cut:
            kept = _count_to_last(media, limits, head, stamps, packets.counted)
            trimmed, stamps = trimmed + len(stamps) - kept, stamps[:kept]
        count = len(stamps)
        span = int(stamps[-1]) * head.tick if count else Fraction(0)
        rate = find_rate(head.rates, count, span, head.tick, head.interlaced)
        if _varies(stamps * float(head.tick), rate, head.tick):
            head.remarks.append("variable")
    if packets.splices:
        head.remarks.append("spliced")
    # A still picture in a format that FFmpeg reads and Pillow was not asked to.
    if count == 1 and head.kind.endswith(("_pipe", "image2")):
        return ClipInfo(
            _name(media), 1, 0.0, head.size[1], head.size[0], 0.0, True,
            remarks=tuple(head.remarks),
        )  # fmt: skip
    track = _make_track(head, rate, packets.counted)
    return _make_info(media, head.size, rate, count, span, head.remarks, trimmed, track)


def _count_to_last(media, limits: Limits, head: _Header, stamps, counted: bool) -> int:
    """Number of frames up to the last one that can be decoded, from the last seconds of a file.

    Of a transport stream that was cut, the last packet is incomplete.

    Args:
      media, limits, head: of the file.
      stamps: ticks after the first frame of all frames.
      counted: see ``Track``.
    """
    if not len(stamps):
        return 0
    track, deadline = _make_track(head, Fraction(25), counted), Deadline(limits.timeout_s)
    seek = float(stamps[-1] * head.tick) - _EDGE_S
    last = None
    # Damage before the last packet is none of the edge: whoever reads that far finds it.
    try:
        for moment, _ in iterate_frames(media, limits, track, deadline, seek if seek > 0 else None):
            last = moment
    except ClipError:
        return len(stamps)
    if last is None:
        return len(stamps)
    return int(np.searchsorted(stamps, last / float(head.tick) + 0.5))


def _make_track(head: _Header, rate: Fraction, counted: bool) -> Track:
    return Track(
        float((head.origin or 0) * head.tick), head.skipped, head.rough, counted, float(rate)
    )


def _trust_header(media: str | bytes, limits: Limits, head: _Header) -> ClipInfo | None:
    """The answer from the header and the packets at the end; None if they contradict each other.

    For formats whose header counts the frames. It saves reading all of a long file.
    """
    rate = head.rates[0]
    # Average and usual rate differ where the rate varies, or stamps jump.
    if not rate or any(abs(other / rate - 1) > _SAME_RATE for other in head.rates if other):
        return None
    last = _last_stamp(media, limits, head)
    if last is None:
        return None
    span = last - head.start * head.tick
    if find_rate((rate,), head.stated, span, head.tick) != rate or rate > 240:
        return None
    track = _make_track(head, rate, False)
    return _make_info(media, head.size, rate, head.stated, span, head.remarks, 0, track)


def _last_stamp(media: str | bytes, limits: Limits, head: _Header) -> Fraction | None:
    """Seconds at which the last frame is shown, from the end of the file; None if unknown.

    Frames are stored in decoding order, and the last one shown need not be the last one stored.
    """
    deadline = Deadline(limits.timeout_s)
    with open_video(media, limits) as (container, stream):
        if not stream.duration:
            return None
        end = stream.duration * head.tick
        target = head.start + int(max(Fraction(0), end - _EDGE_S) / head.tick)
        try:
            container.seek(target, stream=stream, backward=True)
        except av.error.FFmpegError:
            return None
        last = done = None
        for packet in container.demux():
            deadline.check()
            stamp = packet.dts if packet.pts is None else packet.pts
            if not packet.size or stamp is None or packet.time_base is None:
                continue
            moment = stamp * to_fraction(packet.time_base)
            ends = moment + (packet.duration or 0) * to_fraction(packet.time_base)
            done = ends if done is None else max(done, ends)
            if packet.stream_index == stream.index and is_shown(packet, stream.codec_context.name):
                last = moment if last is None else max(last, moment)
        if last is not None and done is not None:
            check_whole(container, stream, head.start * head.tick, done)
        return last


def verify(media: str | bytes, limits: Limits | None = None) -> ClipInfo | None:
    """Decode a whole clip to know that no frame is damaged; raises ``ClipError`` if one is.

    The time limit holds for each second of video, not for the whole clip.

    Returns:
      What decoding found where it differs from ``probe``: fewer frames, because packets at the end
      are damaged or hold no frame of their own; else None.
    """
    limits = limits or Limits()
    check_file(media)
    with named_errors("corrupt"):
        if is_picture(media):
            return None  # probing has decoded it
        info = known_info(media, limits)
        if info.is_image:
            return None
        deadline, times = Deadline(limits.timeout_s), []
        for moment, frame in iterate_frames(media, limits, info.track, deadline):
            check_frame(frame, limits)
            if int(moment) != int(times[-1] if times else 0.0):
                deadline.restart()
            times.append(moment)
        return _correct(info, times)


def _correct(info: ClipInfo, times: Sequence[float]) -> ClipInfo | None:
    """The info that decoding gives; None if it is the same."""
    if not times:
        raise ClipError("truncated", "no frame before the end of the file")
    step = 1 / info.fps
    missing = round((info.duration - step - max(times)) / step)
    # A frame more or less at a varying rate is no other clip.
    if missing < 1:
        return None
    frames = info.frames - missing
    return dataclasses.replace(
        info,
        frames=frames,
        duration=info.duration - missing * step,
        trimmed=info.trimmed + missing,
        remarks=tuple(sorted({*info.remarks, "trimmed"})),
    )
