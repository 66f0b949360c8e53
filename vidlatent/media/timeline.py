"""When the frames of a file are shown: from the time stamps of its packets, not from its header.

Headers lie. Recorders write no rate, and FFmpeg then guesses the tick of the clock (1000 a second);
joined recordings have stamps that jump by hours or start again; durations are counted from other
beginnings than the picture's. So the packets are asked, and a header counts only where it agrees
with them. Reading packets decodes nothing.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence
from fractions import Fraction
from statistics import median

import av
import numpy as np

from vidlatent.media.container import open_video, to_fraction
from vidlatent.media.errors import ClipError, Deadline, Limits, named_errors

__all__ = [
    "STAMPS_MAY_JUMP",
    "Packets",
    "Splice",
    "check_whole",
    "find_rate",
    "is_shown",
    "read_packets",
]

# Where neither header nor stamps say a rate.
_DEFAULT_RATE = Fraction(25)
# Rates that stamps rounded to a coarse clock are taken for.
_USUAL_RATES = tuple(
    Fraction(rate) for rate in ("24000/1001", "24", "25", "30000/1001", "30", "50", "60000/1001",
                                "60", "120")
)  # fmt: skip
_FASTEST_GUESS = 240  # frames a second; above this a rate that nothing confirms is not believed

# A gap is the seam between two recordings, not a picture that stays on display, if it is longer
# than this and no other stream has anything in it. In formats whose stamps may jump by design
# (MPEG-TS) that is the threshold of FFmpeg's command line; elsewhere long pictures are more likely.
_SEAM_S, _SEAM_ELSEWHERE_S = Fraction(10), Fraction(60)
_SEAM_FRAMES = 100  # and longer than so many frames: slides that change each minute are no seams
_BACK_S = Fraction(1, 10)  # stamps that go back by more than this start again
STAMPS_MAY_JUMP = 0x0200  # AVFMT_TS_DISCONT, a flag of FFmpeg's formats
_COMPARED = 8  # packets after a seek
_CHECKED = 1000  # packets read between two restarts of the time limit


@dataclasses.dataclass(frozen=True)
class Splice:
    """From video packet ``number`` on, ``ticks`` are added to time stamps."""

    number: int
    ticks: int


@dataclasses.dataclass
class Packets:
    """What the packets of a file say, in the order of decoding.

    Attributes:
      tick: seconds of one tick of the video stream.
      stamps: of each video packet in ticks; None where there is none.
      clocks: the same for decoding, which never goes back within a recording.
      keys: whether decoding can begin at it.
      shown: whether it holds a frame to be shown.
      sizes: bytes of each video packet.
      cut: the last packet is incomplete.
      splices: where stamps jump.
      counted: places are found by counting packets, since stamps jump or are others after a seek.
      start, end: seconds at which the first stream begins and the last one ends; None if unknown.
    """

    tick: Fraction
    stamps: list[int | None] = dataclasses.field(default_factory=list)
    clocks: list[int | None] = dataclasses.field(default_factory=list)
    keys: list[bool] = dataclasses.field(default_factory=list)
    shown: list[bool] = dataclasses.field(default_factory=list)
    sizes: list[int] = dataclasses.field(default_factory=list)
    cut: bool = False
    splices: tuple[Splice, ...] = ()
    counted: bool = False
    start: Fraction | None = None
    end: Fraction | None = None

    def shown_stamps(self) -> np.ndarray:
        """Stamps int64 of the frames to be shown in their order, seams closed."""
        found, at, offset = [], 0, 0
        for number, (stamp, shown) in enumerate(zip(self.stamps, self.shown, strict=True)):
            if at < len(self.splices) and self.splices[at].number == number:
                offset, at = self.splices[at].ticks, at + 1
            if shown and stamp is not None:
                found.append(stamp + offset)
        return np.sort(np.array(found, np.int64))


def read_packets(media: str | bytes, limits: Limits) -> Packets:
    """Read all packets of a file; the time limit holds for each thousand of them."""
    deadline = Deadline(limits.timeout_s)
    with open_video(media, limits) as (container, stream), named_errors("corrupt"):
        packets = Packets(to_fraction(stream.time_base))
        others: list[float] = []
        extents: dict[int, _Extent] = {}
        for number, packet in enumerate(container.demux()):
            if number % _CHECKED == 0:
                deadline.restart()
            deadline.check()
            # PyAV ends a stream with an empty packet.
            if packet.size:
                _note(packet, stream, packets, extents, others)
        jumps = bool(container.format.flags & STAMPS_MAY_JUMP)
        lies = _changes_after_seek(container, stream, packets, deadline)
    packets.start = min((e.start * e.tick for e in extents.values()), default=None)
    packets.end = max((e.end * e.tick for e in extents.values()), default=None)
    packets.splices = _find_splices(packets, sorted(others), jumps)
    packets.counted = lies or bool(packets.splices)
    return packets


def _changes_after_seek(container, stream, packets: Packets, deadline: Deadline) -> bool:
    """Whether packets have other time stamps after a seek to the middle of the file.

    In MPEG program streams few packets are stamped, and FFmpeg counts on from where it began.
    """
    stamps = [stamp for stamp in packets.stamps if stamp is not None]
    # Without a second key frame a seek leads to the beginning.
    if not stamps or sum(packets.keys) < 2:
        return False
    known, keyed, compared = set(zip(packets.stamps, packets.sizes, strict=True)), False, 0
    deadline.restart()
    try:
        container.seek((min(stamps) + max(stamps)) // 2, stream=stream, backward=True)
        for packet in container.demux(stream):
            deadline.check()
            # The first packet may be a part of one.
            if not packet.size or not (keyed or packet.is_keyframe):
                continue
            keyed, compared = True, compared + 1
            stamp = packet.dts if packet.pts is None else packet.pts
            if (stamp, packet.size) not in known:
                return True
            if compared == _COMPARED:
                return False
    except av.error.FFmpegError:
        pass  # a file that cannot be sought in is read from its beginning anyway
    return False


@dataclasses.dataclass
class _Extent:
    """First and last tick of a stream."""

    tick: Fraction
    start: int
    end: int


def _note(packet, stream, packets: Packets, extents: dict[int, _Extent], others) -> None:
    """Add what a packet says; in whole ticks, because fractions take most of the time."""
    stamp = packet.dts if packet.pts is None else packet.pts
    index = packet.stream_index
    if stamp is not None and packet.time_base is not None:
        end = stamp + (packet.duration or 0)
        extent = extents.get(index)
        if extent is None:
            extents[index] = extent = _Extent(to_fraction(packet.time_base), stamp, end)
        extent.start, extent.end = min(extent.start, stamp), max(extent.end, end)
        if index != stream.index:
            others.append(stamp * float(extent.tick))
    if index != stream.index:
        return
    packets.stamps.append(stamp)
    packets.clocks.append(packet.dts)
    packets.sizes.append(packet.size)
    packets.cut = bool(packet.is_corrupt)
    packets.keys.append(bool(packet.is_keyframe))
    packets.shown.append(is_shown(packet, stream.codec_context.name))


def is_shown(packet, codec: str) -> bool:
    """Whether a packet holds a frame to be shown.

    Edit lists cut packets away, and VP8 has packets that only later frames refer to.
    """
    if packet.is_discard:
        return False
    return not (codec == "vp8" and not memoryview(packet)[0] & 0x10)


def _find_splices(packets: Packets, others: Sequence[float], jumps: bool) -> tuple[Splice, ...]:
    """Where stamps jump, and by how much they do so in all.

    Args:
      packets: of the file.
      others: moments of the packets of all other streams in seconds, sorted.
      jumps: whether the format's stamps may jump by design.
    """
    clocks, back = packets.clocks, _BACK_S
    if all(clock is None for clock in clocks):
        clocks, back = packets.stamps, Fraction(1)  # stamps are out of order by a few frames
    known = [clock for clock in clocks if clock is not None]
    steps = [b - a for a, b in zip(known, known[1:], strict=False) if b > a]
    if not steps:
        return ()
    usual = int(median(steps))
    limit = max(int((_SEAM_S if jumps else _SEAM_ELSEWHERE_S) / packets.tick), _SEAM_FRAMES * usual)
    backwards = max(int(back / packets.tick), 2 * usual)
    tick = float(packets.tick)
    splices, offset = [], 0
    latest = last = None  # stamp of the latest frame, clock of the last packet, seams closed
    for number, (raw_clock, raw, key) in enumerate(
        zip(clocks, packets.stamps, packets.keys, strict=True)
    ):
        clock = None if raw_clock is None else raw_clock + offset
        stamp = None if raw is None else raw + offset
        seam = False
        if clock is not None and last is not None and stamp is not None and latest is not None:
            # An encoder that skips frames moves its clock some packets after its stamps. At a
            # seam both jump at once, and where stamps should not jump, a recording begins.
            ahead = clock - last > limit and 2 * (stamp - latest) > limit and (jumps or key)
            seam = clock < last - backwards or (
                ahead and not _goes_on(others, last - offset, clock - offset - usual, tick)
            )
        # What is stored before a key frame is shown before it: else a recording begins there.
        seam = seam or (key and stamp is not None and latest is not None and stamp <= latest)
        if seam:
            # A key frame follows the latest frame; of others only the clock is in order.
            added = latest + usual - stamp if key else last + usual - clock
            offset += added
            splices.append(Splice(number, offset))
            clock, stamp = None if clock is None else clock + added, stamp + added
        last = clock if clock is not None else last
        if packets.shown[number] and stamp is not None:
            latest = stamp if latest is None else max(latest, stamp)
    return tuple(splices)


def _goes_on(others: Sequence[float], last: int, clock: int, tick: float) -> bool:
    """Whether another stream has packets in a gap: then the picture just stays on display."""
    first = bisect.bisect_right(others, last * tick)
    return first < len(others) and others[first] < clock * tick


def find_rate(
    stated: Sequence[Fraction], frames: int, span: Fraction, tick: Fraction, fields: bool = False
) -> Fraction:
    """Frames a second.

    A stated rate counts if it puts the last frame where its stamp is. Otherwise it is the usual
    rate that the stamps are those of, up to the rounding of their clock, or their mean.

    Args:
      stated: by the header, the best first; 0 where it says nothing.
      frames: number of frames.
      span: seconds from the first to the last one.
      tick: seconds of the clock.
      fields: frames may be counted twice, as fields.
    """
    believable = [rate for rate in stated if 0 < rate <= _FASTEST_GUESS]
    if frames < 2 or span <= 0:
        return believable[0] if believable else _DEFAULT_RATE

    def misses(rate: Fraction) -> Fraction:
        """By how many frames the last one is off."""
        return abs(span * rate - (frames - 1))

    for rate in stated:
        # Up to a fifth of a frame off, no window shows a frame twice.
        if rate > 0 and misses(rate) <= min(Fraction(1, 5) + 2 * tick * rate, Fraction(9, 20)):
            return rate
    if fields:
        for rate in believable:
            if misses(2 * rate) <= 2:
                return rate
    nearest = min(_USUAL_RATES, key=misses)
    if misses(nearest) <= 2 * tick * nearest:
        return nearest
    return Fraction(frames - 1) / span


def check_whole(container, stream, start, end) -> None:
    """Raise ``ClipError`` 'truncated' if a file ends well before its header says.

    Args:
      container, stream: of PyAV.
      start, end: seconds at which the first stream begins and the last one ends.
    """
    if stream.duration:
        declared = stream.duration * to_fraction(stream.time_base)
    elif container.duration:
        # Containers count in microseconds, streams in units of their own.
        declared = Fraction(container.duration, av.time_base)
    else:
        return
    # Some durations are counted from 0, others from the first packet.
    reached = max(end, end - start)
    # Headers are not exact: half a second or 2 % less is no damage.
    if reached < declared - max(Fraction(1, 2), declared / 50):
        raise ClipError("truncated", f"ends at {float(reached):.2f} s of {float(declared):.2f} s")
