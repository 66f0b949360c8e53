"""At which rate windows take the frames of their clips."""

from __future__ import annotations

import dataclasses

from vidlatent.media.probe import ClipInfo

__all__ = ["FrameRate"]


@dataclasses.dataclass(frozen=True)
class FrameRate:
    """``data.fps`` and ``data.frame_interval``.

    Attributes:
      fps: frames a second; 0: the clip's own.
      interval: of these every so manyth frame is taken; 1: all.
    """

    fps: float = 0.0
    interval: int = 1

    def of(self, info: ClipInfo) -> float:
        """Frames a second of a window of this clip; 0: the clip's own."""
        # A picture has rate 0, which stays its own.
        return self.fps if self.interval == 1 else (self.fps or info.fps) / self.interval

    def count_starts(self, info: ClipInfo, frames: int) -> int:
        """Number of source frames at which a window of ``frames`` frames can begin."""
        return info.starts(frames, self.of(info))

    def count_frames(self, info: ClipInfo) -> int:
        """Frames that the clip has at this rate."""
        return info.frames_at(self.of(info))

    def __str__(self) -> str:
        words = f" at {self.fps:g} fps" if self.fps else ""
        return words if self.interval == 1 else f"{words}, every {self.interval} frames"
