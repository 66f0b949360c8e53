"""The progress line of a run: how far it is, how fast, and with which losses."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from absl import logging
from tqdm import tqdm

from vidlatent.parallel.multihost import is_main

__all__ = ["Progress"]


class Progress:
    """A progress bar on a terminal; a log line for each report elsewhere (pods, files, pipes)."""

    def __init__(self, total: int, start: int, name: str):
        self._terminal = is_main() and sys.stderr.isatty()
        self._bar = tqdm(
            total=total,
            initial=start,
            desc=name,
            unit="step",
            disable=not self._terminal,
            dynamic_ncols=True,
            smoothing=0.1,
        )
        self._total = total

    def advance(self) -> None:
        self._bar.update()

    def report(self, step: int, values: Mapping[str, float], seconds_per_step: float) -> None:
        """Show ``values`` at ``step``."""
        text = ", ".join(f"{name} {_format_value(value)}" for name, value in values.items())
        if self._terminal:
            self._bar.set_postfix_str(text)
        elif is_main():
            left = _format_seconds((self._total - step) * seconds_per_step)
            logging.info("step %d/%d, %s, %s left", step, self._total, text, left)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        # Otherwise the text would be written into the line of the bar.
        if self._terminal:
            self._bar.clear()
        if is_main():
            logging.info("%s", text)
        if self._terminal:
            self._bar.refresh()

    def close(self) -> None:
        self._bar.close()


def _format_value(value: float) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _format_seconds(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
