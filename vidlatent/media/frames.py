"""The frames of a file one after the other with their times, from its beginning or from a seek.

Damage is not hidden: a packet that cannot be decoded, or a frame that the decoder marks, raises
``ClipError`` 'corrupt'. Only the edges of a recording may be damaged, because recorders and cutters
leave them so: what comes before the first clean frame, and the last packet. Both are left out.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from fractions import Fraction

import av

from vidlatent.media.container import open_video, to_fraction
from vidlatent.media.errors import ClipError, Deadline, Limits, named_errors
from vidlatent.media.pictures import is_animated_webp, open_picture, to_rgb
from vidlatent.media.timeline import Splice, read_packets

__all__ = ["Track", "find_start", "iterate_frames", "iterate_webp"]

# Raised in place of the decoder, which goes on without the data that a transport stream has lost.
_MISSING = av.error.InvalidDataError(0, "data is missing in a packet")
_SHORTEST_MS = 10  # browsers show a picture that lasts less for 100 ms
_RESTARTS = 100  # key packets tried until one begins a clean picture


@dataclasses.dataclass(frozen=True)
class Track:
    """How the frames of a file are reached.

    Attributes:
      origin: time stamp in seconds of the first frame, which is at time 0.
      skipped: video packets at the beginning that are not decoded, because they are damaged.
      rough: the decoder complains before the first frame, but the frames are whole: the recording
        was cut where others refer to frames before it.
      counted: time stamps jump or are others after a seek, so that a place is found by counting
        packets from the beginning.
      rate: frames a second, for frames without time stamps.
    """

    origin: float = 0.0
    skipped: int = 0
    rough: bool = False
    counted: bool = False
    rate: float = 25.0


@dataclasses.dataclass(frozen=True)
class _Places:
    """Where decoding can begin: numbers of the key packets, their stamps, and the seams.

    Of the packets of a long recording only these are kept in memory.
    """

    keys: tuple[tuple[int, int], ...]
    splices: tuple[Splice, ...]


def _places_of(media: str | bytes, limits: Limits) -> _Places:
    """Kept for files until they change."""
    if isinstance(media, bytes):
        return _find_places(media, limits)
    status = os.stat(media)
    return _places_of_file(media, status.st_size, status.st_mtime_ns, limits)


@functools.lru_cache(maxsize=256)
def _places_of_file(path: str, size: int, changed: int, limits: Limits) -> _Places:
    del size, changed  # of the key only
    return _find_places(path, limits)


def _find_places(media: str | bytes, limits: Limits) -> _Places:
    packets, keys, at, offset = read_packets(media, limits), [], 0, 0
    for number, (stamp, key) in enumerate(zip(packets.stamps, packets.keys, strict=True)):
        if at < len(packets.splices) and packets.splices[at].number == number:
            offset, at = packets.splices[at].ticks, at + 1
        if key and stamp is not None:
            keys.append((number, stamp + offset))
    return _Places(tuple(keys), packets.splices)


def iterate_frames(
    media: str | bytes,
    limits: Limits,
    track: Track,
    deadline: Deadline,
    seek: float | None = None,
) -> Iterator[tuple[float, av.VideoFrame]]:
    """(seconds, frame) from the beginning, or from the key frame at or before ``seek`` seconds.

    Without a seek the first frame is at time 0, and frames without stamps are counted. With a seek
    it yields nothing if the file cannot be sought in. The file is closed with the generator.
    """
    if is_animated_webp(media):
        yield from iterate_webp(media, limits, deadline)
        return
    given, without_last = 0, False
    while True:
        try:
            for frame in _Pass(media, limits, track, deadline, seek, without_last).run(given):
                given += 1
                yield frame
            return
        except _LastPacketDamaged:
            # The decoder has lost the frame that it held when it failed. Everything is decoded
            # again without the last packet, and what was given already is passed over.
            without_last = True


class _LastPacketDamaged(ClipError):
    """The last packet of a file cannot be decoded."""

    def __init__(self):
        super().__init__("corrupt", "the last packet is damaged")


@dataclasses.dataclass
class _Pass:
    """One reading of a file by ``iterate_frames``."""

    media: str | bytes
    limits: Limits
    track: Track
    deadline: Deadline
    seek: float | None
    without_last: bool

    def run(self, given: int) -> Iterator[tuple[float, av.VideoFrame]]:
        """The frames after the first ``given`` ones."""
        with open_video(self.media, self.limits) as (container, stream):
            tick, number, damaged = to_fraction(stream.time_base), 0, False
            last = float("-inf")
            if not self._go_to_start(container, stream, tick):
                return
            for frame in self._decode(container, stream):
                if damaged:
                    raise ClipError("corrupt", "the decoder marks a frame as damaged")
                damaged = frame.is_corrupt
                # A damaged frame is held back: if no other follows, it is the recording's edge.
                if damaged and not number and self.seek is not None:
                    return
                if damaged:
                    continue
                moment = self._moment(frame, tick, number)
                if moment is None:
                    return
                number += 1
                # Time does not go back, whatever the stamps say.
                last = max(last, moment)
                if number > given:
                    yield last, frame

    def _moment(self, frame, tick: Fraction, number: int) -> float | None:
        """Seconds at which a frame is shown; None if that cannot be known."""
        if frame.pts is not None:
            moment = float(frame.pts * tick) - self.track.origin
            # Rounding must not put the first frame after time 0.
            return min(moment, 0.0) if number == 0 and self.seek is None else moment
        # After a seek, frames without stamps could be anywhere.
        return number / self.track.rate if self.seek is None else None

    def _go_to_start(self, container, stream, tick: Fraction) -> bool:
        """Seek; False if that is not possible."""
        if self.seek is None or self.track.counted:
            return True
        target = int((self.track.origin + max(0.0, self.seek)) / tick)
        try:
            container.seek(target, stream=stream, backward=True)
        # The caller's last try starts at the beginning, without a seek.
        except av.error.FFmpegError:
            return False
        return True

    def _packets(self, container, stream) -> Iterator[av.Packet]:
        """Video packets with the seams of their time stamps closed, and an empty one at the end."""
        splices, first = [], self.track.skipped if self.seek is None else 0
        if self.track.counted:
            places = _places_of(self.media, self.limits)
            splices = list(places.splices)
            if self.seek is not None:
                tick = to_fraction(stream.time_base)
                first = _find_key(places, self.track, self.seek, tick)
        offset, number = 0, 0
        for packet in container.demux(stream):
            self.deadline.check()
            if not packet.size:
                continue
            if splices and splices[0].number == number:
                offset = splices.pop(0).ticks
            if offset and packet.pts is not None:
                packet.pts += offset
            if offset and packet.dts is not None:
                packet.dts += offset
            number += 1
            if number > first:
                yield packet

    def _decode(self, container, stream) -> Iterator[av.VideoFrame]:
        # A seek may land between key frames. What comes before the next one cannot be decoded.
        begun, keyed = False, self.seek is None
        with named_errors("corrupt"):
            for packet, ahead in _look_ahead(self._packets(container, stream)):
                keyed = keyed or packet.is_keyframe
                if not keyed or (self.without_last and not ahead):
                    continue
                try:
                    if _misses_data(packet, ahead):
                        raise _MISSING
                    frames = packet.decode()
                except av.error.FFmpegError as error:
                    # The caller tries another place.
                    if not begun and self.seek is not None:
                        return
                    if not ahead:
                        raise _LastPacketDamaged() from error
                    if begun or not self.track.rough:
                        raise ClipError("corrupt", _tell(error)) from error
                    frames = []
                begun = begun or bool(frames)
                yield from frames
            # The decoder gives out the frames that it holds back.
            yield from stream.decode(None)


def _look_ahead(packets: Iterator[av.Packet]) -> Iterator[tuple[av.Packet, list[av.Packet]]]:
    """Each packet with up to two that follow it."""
    waiting: list[av.Packet] = []
    for packet in packets:
        waiting.append(packet)
        if len(waiting) > 2:
            yield waiting[0], waiting[1:]
            del waiting[0]
    while waiting:
        yield waiting[0], waiting[1:]
        del waiting[0]


def _misses_data(packet: av.Packet, ahead: Sequence[av.Packet]) -> bool:
    """Whether a transport stream has lost a part of a packet.

    Decoders may go on without it in silence. Where recordings were joined, a packet shortly before
    the seam is marked as well, though it is whole: then a key frame follows.
    """
    return packet.is_corrupt and not any(p.is_keyframe for p in (packet, *ahead))


def _tell(error: Exception) -> str:
    if error is _MISSING:
        return "data is missing in a packet"
    return f"damaged picture data ({type(error).__name__})"


def _find_key(places: _Places, track: Track, seek: float, tick: Fraction) -> int:
    """Number of the last key packet whose frame is shown at or before ``seek`` seconds."""
    best, latest = 0, (track.origin + seek) / float(tick)
    for number, stamp in places.keys:
        if stamp > latest:
            break
        best = number
    return max(best, track.skipped)


def find_start(media: str | bytes, limits: Limits, deadline: Deadline):
    """Find where clean decoding begins.

    Returns:
      (number of video packets to skip, whether the decoder complains harmlessly before the first
      frame, the first frame).

    Raises:
      ClipError: there is no clean frame.
    """
    skipped, trouble = 0, None
    for _ in range(_RESTARTS):
        frame, rough, following, trouble = _try_start(media, limits, deadline, skipped)
        if frame is not None:
            return skipped, rough, frame
        if following is None:
            break
        skipped = following
    if trouble is None:
        raise ClipError("truncated", "no frame before the end of the file")
    raise ClipError("corrupt", trouble)


def _try_start(media, limits: Limits, deadline: Deadline, skipped: int):
    """(first clean frame or None, whether roughly, number of the next key packet, trouble)."""
    number, trouble, rough = 0, None, False
    with open_video(media, limits) as (container, stream), named_errors("corrupt"):
        codec = stream.codec_context.name
        for packet in container.demux(stream):
            deadline.check()
            number += bool(packet.size)
            if packet.size and number <= skipped:
                continue
            # Once there was trouble that the pictures do not survive, only a key packet helps.
            if trouble is not None and packet.size and packet.is_keyframe:
                return None, False, number - 1, trouble
            if trouble is not None:
                continue
            try:
                if _misses_data(packet, ()):
                    raise _MISSING
                frames = packet.decode()
            except av.error.FFmpegError as error:
                rough = (
                    codec == "h264" and not rough and _is_harmless(media, limits, deadline, skipped)
                )
                trouble = None if rough else _tell(error)
                continue
            if frames and frames[0].is_corrupt:
                trouble = "the decoder marks a frame as damaged"
            elif frames:
                return frames[0], rough, None, None
    return None, False, None, trouble


def _is_harmless(media, limits: Limits, deadline: Deadline, skipped: int) -> bool:
    """Whether all frames up to the second key frame are whole in spite of the complaint.

    H.264 that was cut at a key frame to which frames before it lead (an open group of pictures)
    refers to frames that are gone. The decoder calls that an error when it is strict. When it is
    lenient, it marks the frames that really miss something.
    """
    keys = number = 0
    with open_video(media, limits) as (container, stream), named_errors("corrupt"):
        stream.codec_context.options = {}
        for packet in container.demux(stream):
            deadline.check()
            number += bool(packet.size)
            if packet.size and number <= skipped:
                continue
            keys += bool(packet.size and packet.is_keyframe)
            try:
                frames = packet.decode()
            except av.error.FFmpegError:
                return False
            if any(frame.is_corrupt for frame in frames):
                return False
            if keys >= 2 and frames:
                return True
    return True


def iterate_webp(
    media: str | bytes, limits: Limits, deadline: Deadline
) -> Iterator[tuple[float, av.VideoFrame]]:
    """(seconds, frame) of an animated WebP, by Pillow: FFmpeg has no decoder for it."""
    for _, start, image in _webp_pictures(media, limits, deadline):
        frame = av.VideoFrame.from_image(to_rgb(image, "WEBP"))
        yield start / 1000, frame


def _webp_pictures(media, limits: Limits, deadline: Deadline):
    """(number, milliseconds at which it is shown, picture), one after the other."""
    with open_picture(media, limits) as image:
        moment = 0
        for number in range(getattr(image, "n_frames", 1)):
            deadline.check()
            image.seek(number)
            image.load()
            yield number, moment, image
            lasts = image.info.get("duration", 0)
            moment += lasts if lasts > _SHORTEST_MS else 100
