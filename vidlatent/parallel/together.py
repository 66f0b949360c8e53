"""What the processes of one run tell each other, beside their arrays.

Arrays go through collective operations, which block for ever, or end in an error about a
connection, if one process is missing. So what has gone wrong goes another way: the key-value store
of JAX's coordination service. A thread of each process looks there once a second.

- ``compare`` stops all processes at the start if one has other data, another config or other code.
- ``Agreement`` makes all stop after the same step when one is asked to stop.
- ``report_failure`` says why a process ends, and the others end with the same sentence.

With one process they cost nothing and do nothing.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import json
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

import jax
from absl import logging
from jax._src import distributed  # the client of the coordination service has no public name

from vidlatent.errors import VidlatentError
from vidlatent.files import dump_json

__all__ = [
    "LOST",
    "Agreement",
    "Failure",
    "SharedError",
    "compare",
    "leave",
    "peer_failure",
    "report_failure",
    "watch",
]

# Exit status after another process or this one was lost: nothing is wrong with what was asked for,
# and starting again may help (EX_TEMPFAIL of sysexits.h).
LOST = 75
_FAILED, _SEEN, _ALIVE = "vidlatent/failed/", "vidlatent/seen/", "vidlatent/alive/"
_LOOK_SECONDS = 0.5  # between two looks of the thread
_GRACE_SECONDS = 8.0  # for a process to end by itself after another one failed
_LINGER_SECONDS = 20.0  # process 0 holds the store: it waits so long for the others to read it
_BEAT_SECONDS = 5.0  # between two signs of life


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a process of the run ended: its number, its sentence, its exit status."""

    process: int
    sentence: str
    status: int

    def __str__(self) -> str:
        return f"process {self.process} of this run stopped: {self.sentence}"


class SharedError(VidlatentError):
    """An error that all processes raise at the same place, with the same sentence."""


class _Watch:
    """The thread that looks for failures, and what it has found."""

    def __init__(self, client: Any, silence: float, compare: float):
        self.client = client
        self.silence, self.compare = silence, compare
        self.me, self.count = jax.process_index(), jax.process_count()
        self.failure: Failure | None = None
        self.agreement: Agreement | None = None
        self.rounds = 0  # of comparisons and agreements, to give each its own keys
        self._heard = {k: ("", time.monotonic()) for k in range(self.count)}
        self._next_beat = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, name="other processes", daemon=True)
        self._thread.start()

    def end_looking(self) -> None:
        """This process has said its sentence: the thread must not say another."""
        self._ended.set()

    def close(self) -> None:
        """Stop looking: the run has ended well, and its store goes away."""
        self._ended.set()
        self._thread.join(5.0)

    def _look(self) -> None:
        lost = 0
        while not self._ended.wait(_LOOK_SECONDS):
            try:
                self._look_once()
                lost = 0
            except jax.errors.JaxRuntimeError:
                # The store is in process 0; one missing answer may be a slow network.
                lost += 1
                if lost > 3 and self.failure is None:
                    self.failure = Failure(
                        0, "it does not answer any more; it was killed or its machine is gone", LOST
                    )
            if self.failure is not None:
                self._end_if_the_main_thread_does_not()
                return

    def _look_once(self) -> None:
        found = dict(self.client.key_value_dir_get(_FAILED))
        if found:
            # Several may have failed; the first of them by number, so that all say the same.
            self.failure = Failure(**json.loads(found[min(found)]))
            return
        if time.monotonic() > self._next_beat:
            self._next_beat = time.monotonic() + _BEAT_SECONDS
            self._beat()
        if self.agreement is not None:
            self.agreement.look()

    def _beat(self) -> None:
        """Give a sign of life, and look who has not for long."""
        now = time.monotonic()
        key = f"{_ALIVE}{self.me}"
        self.client.key_value_set(key, str(now), allow_overwrite=True)
        signs = {int(k.rpartition("/")[2]): v for k, v in self.client.key_value_dir_get(_ALIVE)}
        for process, (sign, since) in self._heard.items():
            if process in signs and signs[process] != sign:
                self._heard[process] = (signs[process], now)
            elif sign and now - since > self.silence:
                self.failure = Failure(
                    process,
                    f"no sign of life for {self.silence:.0f} s; it was killed or its machine "
                    "does not answer",
                    LOST,
                )

    def _end_if_the_main_thread_does_not(self) -> None:
        """End the process, whose main thread may wait for ever for the one that failed."""
        # The main thread ends better: it closes files and says the same.
        if self._ended.wait(_GRACE_SECONDS):
            return
        print(f"error: {self.failure}", file=sys.stderr, flush=True)
        assert self.failure is not None
        leave(self.failure.status)


_watch: _Watch | None = None


def watch(silence: float = 45.0, compare: float = 300.0) -> None:
    """Begin to look after the other processes, once they are joined; again does nothing.

    Args:
      silence: seconds without a sign of life, after which a process counts as dead.
      compare: seconds that a process may take to know its facts, such as an index of many clips.
    """
    global _watch
    client = distributed.global_state.client
    if _watch is None and client is not None and jax.process_count() > 1:
        _watch = _Watch(client, silence, compare)
        # Registered after JAX's own, so it runs before the connection is closed.
        atexit.register(_watch.close)


def peer_failure(seconds: float = 0.0) -> Failure | None:
    """The failure of another process, if there is one; looks for so long."""
    if _watch is None:
        return None
    until = time.monotonic() + seconds
    while _watch.failure is None and time.monotonic() < until:
        time.sleep(0.1)
    failure = _watch.failure
    return failure if failure is not None and failure.process != _watch.me else None


def report_failure(sentence: str, status: int) -> None:
    """Tell the other processes that this one ends, and why."""
    if _watch is not None:
        about = dataclasses.asdict(Failure(_watch.me, sentence, status))
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            _watch.client.key_value_set(f"{_FAILED}{_watch.me:06d}", dump_json(about))


def leave(status: int) -> None:
    """End this process of several after a failure; returns with one process, or before joining.

    It ends at once: the usual way waits for the processes that have failed.
    """
    if _watch is None:
        return
    _watch.end_looking()
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        _watch.client.key_value_set(f"{_SEEN}{_watch.me}", "1", allow_overwrite=True)
        until = time.monotonic() + _LINGER_SECONDS
        while _watch.me == 0 and time.monotonic() < until:
            if len(_watch.client.key_value_dir_get(_SEEN)) == _watch.count:
                break
            time.sleep(0.1)
    for child in multiprocessing.active_children():
        child.kill()  # decoding processes, which would wait for this one
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _get(key: str, seconds: float) -> str:
    """A value that another process sets; ``VidlatentError`` if that one fails, or is late."""
    assert _watch is not None
    until = time.monotonic() + seconds
    while True:
        try:
            return _watch.client.blocking_key_value_get(key, 1000)
        except jax.errors.JaxRuntimeError as error:
            if failure := peer_failure():
                raise VidlatentError(str(failure)) from error
            if time.monotonic() > until:
                raise VidlatentError(
                    f"process {key.rpartition('/')[2]} of this run did not get as far as this one "
                    f"within {seconds:.0f} s: look at its log."
                ) from error


def compare(facts: Mapping[str, Mapping[str, Any]], remedy: str) -> None:
    """Check that all processes of the run start from the same facts.

    Args:
      facts: what must be equal: name of a kind -> key -> value that JSON can hold.
      remedy: what to do if they differ; the end of the sentence.

    Raises:
      SharedError: a process differs from process 0; on all processes, with the same sentence.
    """
    if _watch is None:
        return
    _watch.rounds += 1
    keys = [f"vidlatent/facts/{_watch.rounds}/{k}" for k in range(_watch.count)]
    mine = {kind: dict(values) for kind, values in facts.items()}
    _watch.client.key_value_set(keys[_watch.me], dump_json(mine))
    found = [json.loads(_get(key, _watch.compare)) for key in keys]
    told = []
    for process, theirs in enumerate(found[1:], 1):
        for kind, values in theirs.items():
            first = found[0].get(kind, {})
            keys_apart = [k for k in {**first, **values} if first.get(k) != values.get(k)]
            if keys_apart:
                some = ", ".join(
                    f"{k} {_short(first.get(k))} and {_short(values.get(k))}"
                    for k in keys_apart[:3]
                )
                told.append(f"process {process} has other {kind} than process 0 ({some})")
    if told:
        raise SharedError(f"{'; '.join(told[:4])}: {remedy}.")


def _short(value: Any) -> str:
    text = str(value)
    # Fingerprints are told apart by their beginning.
    return text if len(text) <= 40 else f"{text[:16]}..."


class Agreement:
    """All processes stop after the same one of the calls of ``poll``, which they make alike.

    A process may be several calls ahead of another, since the devices work through a queue. So the
    one that is asked to stop says so; everybody's thread answers with the calls made so far, and
    makes the next call wait for the result; the largest answer is the call to stop at.
    """

    def __init__(self) -> None:
        self._asked = ""
        self._calls = 0
        self._frozen = threading.Event()
        self._stop_at: int | None = None
        self._lock = threading.Lock()
        self.reason = ""
        if _watch is not None:
            _watch.rounds += 1
            self._prefix = f"vidlatent/stop/{_watch.rounds}/"
            _watch.agreement = self

    def ask(self, reason: str) -> None:
        """Ask all processes to stop; may be called in a signal handler."""
        self._asked = self._asked or reason

    def poll(self) -> str:
        """Why all processes stop after this call; '' to go on."""
        if _watch is None:
            return self._asked
        with self._lock:
            if not self._frozen.is_set():
                self._calls += 1
                return ""
        if self._stop_at is None:
            answers = [
                int(_get(f"{self._prefix}at/{k}", _watch.silence)) for k in range(_watch.count)
            ]
            self._stop_at = max(answers)
            self.reason = _get(f"{self._prefix}why", _watch.silence)
            logging.info("%s: all processes stop together", self.reason)
        self._calls += 1
        return self.reason if self._calls > self._stop_at else ""

    def look(self) -> None:
        """Called by the thread: pass on what this process was asked, and answer the others."""
        assert _watch is not None
        if self._frozen.is_set():
            return
        if self._asked:
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # another one was quicker
                _watch.client.key_value_set(f"{self._prefix}why", self._asked)
        if dict(_watch.client.key_value_dir_get(self._prefix)):
            with self._lock:
                self._frozen.set()
                _watch.client.key_value_set(f"{self._prefix}at/{_watch.me}", str(self._calls))
