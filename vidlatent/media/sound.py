"""The sound of a file, copied as it is stored: beside restored pictures, or by itself."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Iterator
from typing import Any

import av

from vidlatent.media.container import open_container, to_fraction
from vidlatent.media.errors import ClipError, Limits, named_errors
from vidlatent.media.frames import Track
from vidlatent.media.probe import ClipInfo

__all__ = ["SoundTracks", "is_sound", "pack_sound", "unpack_sound"]

_LATER = 1.0  # seconds


class SoundTracks:
    """The sound tracks of a file, for ``VideoWriter``.

    Nothing is decoded: packets are copied, with their times counted from the first picture. Their
    file is open from ``attach`` to ``close``.

    Args:
      source: path of the file, or its bytes.
      info: what ``probe`` found in it.

    Attributes:
      told: what becomes of the sound, in words; '' if there is none.
      lead: seconds by which the sound begins before the picture.
    """

    def __init__(self, source: str | bytes, info: ClipInfo):
        self._source, self._info = source, info
        self._stack = contextlib.ExitStack()
        self._outputs: dict[int, Any] = {}
        self._last: dict[int, int] = {}
        self._packets: Iterator[av.Packet] = iter(())
        self._next: av.Packet | None = None
        self.told, self.lead = "", 0.0
        if "sound" not in info.remarks:
            return
        if "spliced" in info.remarks:
            self.told = "not copied: the recordings that were joined would lose their sync"
            return
        self._find_lead()

    def _find_lead(self) -> None:
        try:
            with open_container(self._source, Limits()) as container, named_errors("corrupt"):
                starts = [
                    track.start_time * to_fraction(track.time_base)
                    for track in container.streams.audio
                    if track.start_time is not None and track.codec_context is not None
                ]
        except ClipError as error:
            self.told = f"not copied: {error.detail}"
            return
        # Encoders of sound begin some milliseconds early, which a file can say by itself.
        lead = self._info.track.origin - float(min(starts, default=0))
        self.lead = lead if starts and lead > 0.1 else 0.0

    def attach(self, output: Any, suffix: str) -> None:
        """Add the tracks to PyAV's output container, for a file whose name ends in ``suffix``."""
        if self.told or "sound" not in self._info.remarks:
            return
        container = self._stack.enter_context(open_container(self._source, Limits()))
        copied, left = [], []
        for track in container.streams.audio:
            name = "unknown" if track.codec_context is None else track.codec_context.name
            if track.codec_context is not None and _can_hold(track, suffix):
                self._outputs[track.index] = output.add_stream_from_template(track)
                copied.append(name)
            else:
                left.append(name)
        words = [f"copied: {', '.join(copied)}"] if copied else []
        words += [f"not copied: {suffix} cannot hold {', '.join(left)}"] if left else []
        self.told = "; ".join(words)
        if copied:
            tracks = [s for s in container.streams.audio if s.index in self._outputs]
            self._packets = container.demux(tracks)

    def packets(self, until: float) -> Iterator[av.Packet]:
        """Packets of ``output`` that begin before ``until`` seconds after the first picture."""
        while True:
            packet = self._next or self._read()
            self._next = None
            if packet is None:
                return
            tick = to_fraction(packet.time_base)
            shift = round((self._info.track.origin - self.lead) / tick)
            if float((packet.dts - shift) * tick) >= until:
                self._next = packet
                return
            index = packet.stream_index
            packet.dts -= shift
            packet.pts = packet.dts if packet.pts is None else packet.pts - shift
            # Files hold packets in order only; a damaged one may lack some.
            if packet.dts > self._last.get(index, packet.dts - 1):
                self._last[index] = packet.dts
                packet.stream = self._outputs[index]
                yield packet

    def _read(self) -> av.Packet | None:
        try:
            with named_errors("corrupt"):
                for packet in self._packets:
                    if packet.size and packet.dts is not None:
                        return packet
        except ClipError as error:
            self.told += f"; it ends early: {error.detail}"
            self._packets = iter(())
        return None

    def close(self) -> None:
        """Close the file."""
        self._stack.close()


def _can_hold(track: Any, suffix: str) -> bool:
    """Whether a container takes a track, by writing the head of one into memory."""
    memory = io.BytesIO()
    memory.name = f"sound{suffix}"  # FFmpeg chooses the container by it
    try:
        with av.open(memory, "w") as trial:
            trial.add_stream_from_template(track)
            trial.start_encoding()
    except (av.FFmpegError, OSError, ValueError):
        return False
    return True


def pack_sound(source: str, info: ClipInfo) -> tuple[bytes, float, str]:
    """The sound tracks of a file by themselves, as they are stored.

    Args:
      source: path of the file.
      info: what ``probe`` found in it.

    Returns:
      ``(data, origin, told)``: a NUT file, which keeps any codec and exact times, or nothing; the
      second in it at which the first picture is shown; what became of the sound, in words.
    """
    # One second later than in the file, since NUT holds no times below 0.
    track = dataclasses.replace(info.track, origin=info.track.origin - _LATER)
    tracks = SoundTracks(source, dataclasses.replace(info, track=track))
    if tracks.told or "sound" not in info.remarks:
        return b"", 0.0, tracks.told
    memory = io.BytesIO()
    try:
        with av.open(memory, "w", format="nut") as container:
            tracks.attach(container, ".nut")
            for packet in tracks.packets(float("inf")) if container.streams else ():
                container.mux(packet)
    except (OSError, ValueError, av.FFmpegError) as error:
        return b"", 0.0, f"not copied: {error}"
    finally:
        tracks.close()
    data = memory.getvalue() if tracks.told.startswith("copied") else b""
    return data, tracks.lead + _LATER, tracks.told


def unpack_sound(data: bytes, origin: float) -> SoundTracks:
    """What ``pack_sound`` made, for ``VideoWriter``; no bytes: no sound."""
    remarks = ("sound",) if data else ()
    return SoundTracks(
        data, ClipInfo("<bytes>", 1, 0.0, 1, 1, 0.0, False, 0, remarks, Track(origin))
    )


def is_sound(data: bytes) -> bool:
    """Whether these bytes begin as ``pack_sound``'s."""
    return data.startswith(b"nut/multimedia container\0")
