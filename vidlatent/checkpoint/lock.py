"""One writer for a folder: a lock file with host, process and start time.

Two runs in one workdir would overwrite each other's files and both report success. Whoever writes
a folder therefore holds ``writer.lock`` in it. The lock of a dead process is taken over. Whether a
process of this machine lives is asked of the system; of another machine it is seen by its touching
the file every few seconds, which needs no agreement of clocks.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from absl import logging

from vidlatent.errors import VidlatentError
from vidlatent.files import dump_json, parse_json

__all__ = ["FILE", "FolderLock", "lock_folder"]

FILE = "writer.lock"
_BEAT_SECONDS = 10.0  # between two touches of the file
_SILENCE_SECONDS = 35.0  # without a touch, after which a process elsewhere counts as dead


def _describe_process() -> dict[str, Any]:
    """What a lock says about the process that holds it."""
    return {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "started": _read_start(os.getpid()),
        "namespace": _read_namespace(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }


def _read_start(process: int) -> str:
    """When a process started, in the system's own unit; '' if there is none or it is dead."""
    try:
        text = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return ""
    # The name of the program stands in brackets and may hold blanks; field 22 is the start time.
    fields = text.rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else fields[19]


def _read_namespace() -> str:
    """Which table of process numbers this is: containers on one host have their own."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


class FolderLock:
    """A lock that is held; ``check`` says whether it still is.

    Attributes:
      path: of the lock file.
    """

    def __init__(self, path: Path, mine: dict[str, Any]):
        self.path, self._mine = path, mine
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="writer.lock", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        while not self._ended.wait(_BEAT_SECONDS):
            with contextlib.suppress(OSError):
                if _read(self.path) == self._mine:
                    os.utime(self.path)

    def check(self) -> None:
        """Raise ``VidlatentError`` if another process has taken the folder over."""
        try:
            holder = _read(self.path)
        except OSError:
            return  # gone with its folder, or out of reach: the writing itself will tell
        if holder and holder != self._mine:
            raise VidlatentError(
                f"{self.path.parent} was taken over by {_words(holder)}, since this process did "
                "not answer for a while: nothing more is written by this one."
            )

    def release(self) -> None:
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(OSError), _open_locked(self.path) as file:
            if _parse(file) in ({}, self._mine):
                self.path.unlink()


@contextlib.contextmanager
def lock_folder(
    folder: str | os.PathLike[str], what: str, name: str = FILE
) -> Iterator[FolderLock | None]:
    """Hold the lock of a folder, which is made if need be.

    Args:
      folder: to write in. Addresses of object stores (``gs://``) are not locked.
      what: the folder's key or flag, for the error: ``--workdir``.
      name: of the lock file; writers with different names do not mind each other.

    Raises:
      VidlatentError: a process that lives holds it; or the lock cannot be written.
    """
    if "://" in os.fspath(folder):
        yield None
        return
    path, mine = Path(folder) / name, _describe_process()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _acquire(path, mine, what)
    except OSError as error:
        raise VidlatentError(
            f"{what}={os.fspath(folder)} cannot be written ({error}): check its permissions and "
            "the free space."
        ) from error
    lock = FolderLock(path, mine)
    try:
        yield lock
    finally:
        lock.release()


def _acquire(path: Path, mine: dict[str, Any], what: str) -> None:
    watched: tuple[float, float] | None = None  # time of the last touch, and when it was first seen
    while True:
        with _open_locked(path) as file:
            holder = _parse(file)
            if watched is None and holder and not _is_here(holder):
                logging.info("%s holds %s: looking whether it lives", _words(holder), path)
            silent, watched = _is_silent(path, watched)
            if not holder or _is_dead_here(holder) or silent:
                if holder:
                    logging.warning("The lock of %s is taken over: it is dead.", _words(holder))
                file.seek(0)
                file.truncate()
                file.write(dump_json(mine).encode())
                file.flush()
                os.fsync(file.fileno())
                return
        if _is_here(holder) or not watched[1]:
            raise VidlatentError(
                f"{what}={path.parent} is being written by {_words(holder)}: wait for it, stop "
                f"it, or use another folder. (If that process is gone, delete {path}.)"
            )
        time.sleep(1.0)


def _is_silent(path: Path, watched: tuple[float, float] | None) -> tuple[bool, tuple[float, float]]:
    """Whether the file was not touched for long, and what to hand over next time.

    The second value has the time 0 once a touch was seen: its process lives.
    """
    touched, now = path.stat().st_mtime, time.monotonic()
    if watched is None:
        return False, (touched, now)
    if touched != watched[0]:
        return False, (touched, 0.0)
    return now - watched[1] > _SILENCE_SECONDS, watched


def _is_here(holder: dict[str, Any]) -> bool:
    """Whether the holder's process number can be looked up on this machine."""
    same = holder.get("host") == socket.gethostname()
    return same and holder.get("namespace") == _read_namespace() and bool(holder.get("started"))


def _is_dead_here(holder: dict[str, Any]) -> bool:
    # The start time tells a process from a later one of the same number.
    return _is_here(holder) and _read_start(holder.get("process", 0)) != holder["started"]


def _words(holder: dict[str, Any]) -> str:
    return (
        f"process {holder.get('process')} on {holder.get('host')} "
        f"(since {holder.get('since', 'an unknown time')})"
    )


@contextlib.contextmanager
def _open_locked(path: Path) -> Iterator[IO[bytes]]:
    """Open the file, made if need be, while no other process looks at it in here."""
    while True:
        with open(path, "a+b") as file:
            # Not all file systems of several machines have it.
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            # Its former holder may have removed the file between the two calls.
            current = path.exists() and os.stat(path).st_ino == os.fstat(file.fileno()).st_ino
            if current:
                yield file
                return


def _parse(file: IO[bytes]) -> dict[str, Any]:
    """Who holds the lock; empty for a new file, and for one that a power cut emptied."""
    file.seek(0)
    try:
        holder = parse_json(file.read(4096))
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _read(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return _parse(file)
