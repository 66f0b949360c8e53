"""How far sampling is: a bar on a terminal, a line now and then elsewhere (pods, files, pipes)."""

from __future__ import annotations

import sys
import time

from absl import logging
from tqdm import tqdm

from vidlatent.parallel.multihost import is_main

__all__ = ["VideoProgress"]

_EVERY = 10.0  # seconds between lines


class VideoProgress:
    """Counts videos.

    Args:
      total: number of videos.
      every: least seconds between two lines; the last one always comes.
    """

    def __init__(self, total: int, every: float = _EVERY):
        terminal = is_main() and sys.stderr.isatty()
        self._bar = tqdm(total=total, unit="video", disable=not terminal, dynamic_ncols=True)
        self._lines = is_main() and not terminal
        self._total, self._every, self._done = total, every, 0
        self._began = self._told = time.monotonic()

    def step(self, done: int, steps: int, part: str = "") -> None:
        """So many steps of what is being drawn are done, by this part of a cascade."""
        if done == steps:
            self._bar.set_postfix_str("")
            return
        text = f"{part}{': ' * bool(part)}step {done} of {steps}"
        self._bar.set_postfix_str(text)
        now = time.monotonic()
        if self._lines and now - self._told >= self._every:
            self._told = now
            logging.info("%s after %d of %d videos", text, self._done, self._total)

    def advance(self) -> None:
        """One more video is written."""
        self._done += 1
        self._bar.update()
        now = time.monotonic()
        if self._lines and (now - self._told >= self._every or self._done == self._total):
            self._told = now
            left = (now - self._began) / self._done * (self._total - self._done)
            logging.info("%d of %d videos, %.0f s left", self._done, self._total, left)

    def say(self, text: str) -> None:
        """Log a line, which the program's handler writes above the bar."""
        if is_main():
            logging.info("%s", text)

    def close(self) -> None:
        self._bar.close()
