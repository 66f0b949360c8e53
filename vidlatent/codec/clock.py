"""The times of the frames of a file, from reading it to writing its copy."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np

from vidlatent.media.probe import REMARKS, ClipInfo
from vidlatent.media.write import STILL_FPS

__all__ = ["Clock"]


class Clock:
    """When the frames of the input are shown, and what else the output keeps or loses.

    Attributes:
      fps: mean frames a second.
      varies: frames last differently long, so each keeps its own time.
    """

    def __init__(self, info: ClipInfo):
        self._info = info
        self.fps = info.fps or STILL_FPS
        self.varies = "variable" in info.remarks
        self._moments: deque[float] = deque()

    def watch(self, timed: Iterator[tuple[float, np.ndarray]]) -> Iterator[np.ndarray]:
        """The frames alone; their times wait for ``take``."""
        for moment, frame in timed:
            self._moments.append(moment)
            yield frame

    def take(self, count: int) -> list[float | None]:
        """Times of the next frames in seconds; None at a constant rate, which is exact."""
        moments = [self._moments.popleft() for _ in range(count)]
        return list(moments) if self.varies else [None] * count

    def tell(self, sound: str) -> list[str]:
        """Sentences on what the output keeps, changes or loses; ``sound`` as of ``SoundTracks``."""
        told = [REMARKS[key] for key in self._info.remarks if key not in ("sound", "variable")]
        if self.varies:
            told.append(
                f"the frame rate varies: each frame keeps its time, {self.fps:.3f} a second"
            )
        if sound:
            told.append(f"sound {sound}")
        return told
