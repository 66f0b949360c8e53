"""How many frames are done: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time

from absl import logging
from tqdm import tqdm

__all__ = ["FrameProgress"]


class FrameProgress:
    """Counts frames.

    Args:
      what: is being done, ``'reconstruct'``.
      total: number of frames as the file claims; 0 if unknown.
      every: least seconds between two lines.
    """

    def __init__(self, what: str, total: int, every: float = 10.0):
        self._lines = not sys.stderr.isatty()
        self._bar = tqdm(total=total or None, unit="frame", disable=self._lines, desc=what)
        self._what, self._total, self._every, self._done = what, total, every, 0
        self._began = self._told = time.monotonic()

    def advance(self, frames: int) -> None:
        """So many more are done."""
        self._done += frames
        self._bar.update(frames)
        now = time.monotonic()
        if not self._lines or now - self._told < self._every:
            return
        self._told = now
        rate = self._done / (now - self._began)
        left = f", {(self._total - self._done) / rate:.0f} s left" if self._total else ""
        of = f" of {self._total}" if self._total else ""
        logging.info("%s: %d%s frames, %.1f a second%s", self._what, self._done, of, rate, left)

    def __enter__(self) -> FrameProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
