"""Ctrl-C and SIGTERM ask a run to finish its step, save and exit."""

from __future__ import annotations

import signal
from types import FrameType

import jax

__all__ = ["Interruption"]


class Interruption:
    """While active, the first signal sets ``requested``; a second one interrupts at once.

    This handles runs of one process only. Several processes must all stop at the same step, and
    they agree on it through the checkpointer's ``reached_preemption``.
    """

    def __init__(self):
        self.requested = ""
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Interruption:
        if jax.process_count() == 1:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *unused) -> None:
        for number, handler in self._previous.items():
            # Put back what was there before: the program may go on after training.
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            # The second signal: whoever sends it does not want to wait for the step and the save.
            raise KeyboardInterrupt
        self.requested = signal.Signals(number).name
