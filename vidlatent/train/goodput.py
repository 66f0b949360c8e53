"""Goodput: the share of a run's time that went into steps that count, over all of its starts."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import logging

from vidlatent.errors import VidlatentError
from vidlatent.files import read_json, write_json
from vidlatent.parallel.multihost import is_main

__all__ = ["FILE", "Goodput"]

FILE = "goodput.json"
# In the order in which they are told: `lost` went into steps that were done again after a restart,
# and between two starts the run was `down`.
_PARTS = ("steps", "start", "compilation", "data", "saves", "evaluation", "lost", "down")


class Goodput:
    """Adds up where a run's time goes, and keeps it in ``goodput.json`` of the workdir.

    Args:
      workdir: of the run.
      step: at which this start begins.
      began: ``time.monotonic()`` at which this start began.
    """

    def __init__(self, workdir: Path, step: int, began: float):
        self._file = workdir / FILE
        self._mark = time.monotonic()  # up to here the time has been told apart
        known = self._read() if is_main() else {}
        self.seconds = {part: float(known.get("seconds", {}).get(part, 0.0)) for part in _PARTS}
        self.starts = int(known.get("starts", 0)) + 1
        self._step = step
        if known:
            self._take_over(known, step, began)
        self.seconds["start"] += self._mark - began

    def _read(self) -> dict[str, Any]:
        try:
            found = read_json(self._file, "it is begun anew") if self._file.is_file() else {}
            if found and not isinstance(found["seconds"], dict):
                raise TypeError("no seconds")
            return found
        except (VidlatentError, OSError, KeyError, TypeError) as error:
            logging.warning("%s cannot be read (%s): it is begun anew", self._file, error)
            return {}

    def _take_over(self, known: dict[str, Any], step: int, began: float) -> None:
        passed = time.time() - (time.monotonic() - began) - known["time"]
        self.seconds["down"] += max(0.0, passed)
        # Steps after the one that was restored are done again.
        again = max(0, known["step"] - step)
        share = again / known["step"] if known["step"] else 0.0
        lost = share * self.seconds["steps"]
        self.seconds["steps"] -= lost
        self.seconds["lost"] += lost

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time inside as ``name``; what lies between two such blocks is steps."""
        self._settle("steps")
        try:
            yield
        finally:
            self._settle(name)

    def _settle(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name] += now - self._mark
        self._mark = now

    def move(self, name: str, seconds: float) -> None:
        """Count ``seconds`` that were counted as steps as ``name``."""
        self._settle("steps")
        self.seconds["steps"] -= seconds
        self.seconds[name] += seconds

    @property
    def share(self) -> float:
        """Of all time that went into steps that count."""
        total = sum(self.seconds.values())
        return self.seconds["steps"] / total if total else 0.0

    def write(self, step: int) -> None:
        """Keep the sums; a failure is only said."""
        self._settle("steps")
        if not is_main():
            return
        seconds = {name: round(value, 3) for name, value in self.seconds.items()}
        content = {
            "share": round(self.share, 4),
            "starts": self.starts,
            "step": step,
            "time": round(time.time(), 3),
            "seconds": seconds,
        }
        try:
            write_json(self._file, content)
        except OSError as error:
            logging.warning("%s is not written: %s", self._file, error)

    def describe(self) -> str:
        """``goodput 81 %: steps 40 s, start 5 s, ...``, without what took no time."""
        parts = [f"{name} {value:.0f} s" for name, value in self.seconds.items() if value >= 0.5]
        starts = f" in {self.starts} starts" if self.starts > 1 else ""
        return f"goodput {self.share:.0%}{starts}: {', '.join(parts)}"
