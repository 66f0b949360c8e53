"""Ctrl-C and SIGTERM ask a run to finish its step, save and exit."""

from __future__ import annotations

import signal
import threading
from types import FrameType

from vidlatent.parallel.together import Agreement

__all__ = ["Interruption", "Stop"]


class Stop(Exception):
    """Raised by ``Interruption.check``: leave what can be left, then save and exit."""


class Interruption:
    """Turns signals into a reason to stop, until the end of the ``with`` block.

    Before ``begin`` there is nothing to save, so a signal interrupts at once. After it the first
    signal is noted for ``poll``, and a second one interrupts at once. With several processes, a
    signal to one of them stops all, after the same step (``parallel.together.Agreement``).
    """

    def __init__(self) -> None:
        self._agreement = Agreement()
        self._begun = self._asked = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Interruption:
        # Python lets only the main thread handle signals: elsewhere the program's own stay.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *unused) -> None:
        for number, handler in self._previous.items():
            # Put back what was there before: the program may go on after training.
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._asked or not self._begun:
            # The second signal: whoever sends it does not want to wait for the step and the save.
            raise KeyboardInterrupt
        self._asked = True
        self._agreement.ask(signal.Signals(number).name)

    def begin(self) -> None:
        """From now on there is work to save."""
        self._begun = True

    def poll(self) -> str:
        """The name of the signal, if the run should stop now, else ''.

        All processes must call it, and ``check``, the same number of times.
        """
        return self._agreement.poll()

    def check(self) -> None:
        """Raise ``Stop`` if the run should stop now."""
        if self.poll():
            raise Stop
