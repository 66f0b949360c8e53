"""The progress line of a run: how far it is, how fast, and with which losses."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from absl import logging
from tqdm import tqdm

from vidlatent.parallel.multihost import is_main

__all__ = ["Progress"]


class Progress:
    """A log line for each report, and on a terminal a bar below them."""

    def __init__(self, total: int, start: int, name: str):
        self._bar = tqdm(
            total=total,
            initial=start,
            desc=name,
            unit="step",
            disable=not (is_main() and sys.stderr.isatty()),
            dynamic_ncols=True,
            smoothing=0.1,
        )
        self._total = total

    def advance(self) -> None:
        self._bar.update()

    def report(self, step: int, values: Mapping[str, float], seconds_per_step: float) -> None:
        """Tell ``values`` at ``step``: a line, so that what was is still there to read."""
        text = ", ".join(f"{name} {_format_value(value)}" for name, value in values.items())
        left = _format_seconds((self._total - step) * seconds_per_step)
        self.say(f"step {step}/{self._total}, {text}, {left} left")

    def say(self, text: str) -> None:
        """Log a line, which the program's handler writes above the bar."""
        if is_main():
            logging.info("%s", text)

    def close(self) -> None:
        self._bar.close()


def _format_value(value: float) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _format_seconds(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
