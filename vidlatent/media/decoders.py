"""Files left open after a window of them was read, for readers that go through clips in order.

To open a file and seek, all frames since the last key frame must be decoded, often more than the
window has. A decoder that stopped shortly before the window gives the same frames without that.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from typing import Any

from vidlatent.media.errors import Deadline
from vidlatent.media.probe import ClipInfo

__all__ = ["Decoders", "Playing"]

# Seconds of video that are decoded and thrown away rather than sought past. Key frames may be 10 s
# apart, so a seek decodes more on average.
_REACH_S = 2.0


@dataclasses.dataclass
class Playing:
    """A video while it is decoded.

    Attributes:
      info: what is in the file.
      frames: (seconds, frame) that follow.
      deadline: the time limit that ``frames`` checks.
      close: closes the file.
      at_hand: two (seconds, frame): the frame on display when the last window ended, and the one
        after it. Empty before the first window and at the end of the file.
    """

    info: ClipInfo
    frames: Iterator[tuple[float, Any]]
    deadline: Deadline
    close: Callable[[], None]
    at_hand: list[tuple[float, Any]] = dataclasses.field(default_factory=list)


class Decoders:
    """At most ``most`` open files that nobody is reading.

    Threads may share it. A copy made by pickling is empty.
    """

    def __init__(self, most: int):
        self._most = most
        self._lock = threading.Lock()
        self._idle: list[tuple[str, Playing]] = []  # in the order in which they were left

    def __reduce__(self):
        return (Decoders, (self._most,))

    def take(self, path: str, start: float) -> Playing | None:
        """The decoder of a file that is nearest before ``start`` seconds; None if none is near."""
        with self._lock:
            near = [
                (playing.at_hand[1][0], place)
                for place, (known, playing) in enumerate(self._idle)
                if known == path
                # A decoder cannot go back: it must not be past the window's first frame.
                and playing.at_hand[0][0] <= start <= playing.at_hand[1][0] + _REACH_S
            ]
            return self._idle.pop(max(near)[1])[1] if near else None

    def leave(self, path: str, playing: Playing) -> None:
        """Keep a decoder for the next window, unless it is at the end of its file.

        If there are too many, the one that was left first is closed.
        """
        with self._lock:
            closing = [playing]
            if playing.at_hand:
                self._idle.append((path, playing))
                closing = [old for _, old in self._idle[: -self._most]]
                del self._idle[: -self._most]
        # After the lock is released, so that closing a file keeps nobody waiting.
        for old in closing:
            old.close()

    def close(self) -> None:
        """Close all files."""
        with self._lock:
            closing, self._idle = self._idle, []
        for _, old in closing:
            old.close()
