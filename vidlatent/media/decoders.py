"""Files left open where a window of them ended, for readers that go through clips in order.

Opening a file and seeking costs the decoding of all frames since a key frame, often more than the
window itself. A decoder that stands shortly before the wanted window shows the same frames without.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from typing import Any

from vidlatent.media.errors import Deadline

__all__ = ["Decoders", "Playing"]

# Seconds of video that are decoded in passing rather than sought past; key frames are rarely
# further apart than 10 s, so that on average a seek decodes more.
_REACH_S = 2.0


@dataclasses.dataclass
class Playing:
    """A video while it is decoded.

    Attributes:
      stream: PyAV's stream.
      frames: (seconds, frame) to come.
      deadline: the clock that ``frames`` asks.
      close: closes the file.
      at_hand: (seconds, frame) twice: what was on display when the last window ended, and the frame
        after it. Empty before the first window and at the end of the file.
    """

    stream: Any
    frames: Iterator[tuple[float, Any]]
    deadline: Deadline
    close: Callable[[], None]
    at_hand: list[tuple[float, Any]] = dataclasses.field(default_factory=list)


class Decoders:
    """At most ``most`` open files that nobody reads at present, safe for threads, pickled empty."""

    def __init__(self, most: int):
        self._most = most
        self._lock = threading.Lock()
        self._idle: list[tuple[str, Playing]] = []  # the one left last comes last

    def __reduce__(self):
        return (Decoders, (self._most,))

    def take(self, path: str, start: float) -> Playing | None:
        """The decoder of a file that stands nearest before ``start`` seconds, if it is near."""
        with self._lock:
            near = [
                (playing.at_hand[1][0], place)
                for place, (known, playing) in enumerate(self._idle)
                if known == path
                and playing.at_hand[0][0] <= start <= playing.at_hand[1][0] + _REACH_S
            ]
            return self._idle.pop(max(near)[1])[1] if near else None

    def leave(self, path: str, playing: Playing) -> None:
        """Keep a decoder for the next window, in place of the one left first; not at its end."""
        with self._lock:
            closing = [playing]
            if playing.at_hand:
                self._idle.append((path, playing))
                closing = [old for _, old in self._idle[: -self._most]]
                del self._idle[: -self._most]
        for old in closing:
            old.close()

    def close(self) -> None:
        """Close all."""
        with self._lock:
            closing, self._idle = self._idle, []
        for _, old in closing:
            old.close()
