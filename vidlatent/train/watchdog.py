"""Notices a run that hangs, says where, and ends it so that a scheduler can start it again."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from vidlatent.parallel.together import LOST, leave, report_failure
from vidlatent.report.log_file import log_path

__all__ = ["Watchdog"]

_FIRST = 4  # times as long is waited for a step that compiles


class Watchdog:
    """A thread that ends the process when ``alive`` was not called for too long.

    The stacks of all threads go to the log file and to the error output. Other processes of the run
    are told and end with the same status, ``LOST``.

    Args:
      seconds: without a step, a batch of an evaluation or the end of a save; 0 watches nothing.
    """

    def __init__(self, seconds: float):
        self._seconds, self._limit = seconds, seconds * _FIRST
        self._seen = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True, name="watchdog")

    @contextlib.contextmanager
    def watching(self) -> Iterator[Watchdog]:
        """Watch until the end of the block."""
        if not self._seconds:
            yield self
            return
        self._seen = time.monotonic()
        self._thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            self._thread.join(5.0)

    def alive(self, *, compiles: bool = False) -> None:
        """The run goes on; ``compiles``: its next step may take longer than others."""
        self._seen = time.monotonic()
        self._limit = self._seconds * (_FIRST if compiles else 1)

    def _look(self) -> None:
        while not self._ended.wait(min(1.0, self._seconds / 4)):
            silent = time.monotonic() - self._seen
            if silent > self._limit:
                self._end(silent)
                return

    def _end(self, silent: float) -> None:
        file = _dump_stacks()
        sentence = (
            f"process {jax.process_index()} hangs: no step for {silent:.0f} s "
            "(config.train.hang_timeout); look at the stacks of its threads, and at the others'"
        )
        details = f" (Details: {file})" if file else ""
        print(f"error: {sentence}.{details}", file=sys.stderr, flush=True)
        report_failure(sentence, LOST)
        leave(LOST)  # returns if there is no other process
        os._exit(LOST)


def _dump_stacks() -> Path | None:
    """Write what every thread is doing to the error output and the log; returns the log's path."""
    file: Any = log_path()
    faulthandler.dump_traceback(file=sys.__stderr__, all_threads=True)
    if file is not None:
        with contextlib.suppress(OSError), open(file, "a", encoding="utf-8") as log:
            faulthandler.dump_traceback(file=log, all_threads=True)
    return file
