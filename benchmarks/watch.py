"""Run a command while sampling the memory of its process tree, and kill it at a given moment."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import resource
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vidlatent.errors import VidlatentError

__all__ = ["Watched", "measure_growth", "process_status", "read_place", "measure_resident", "watch"]

POLL_S = 0.02  # seconds between checks whether to kill the command
MIB = 2**20
_PROC = Path("/proc")


def measure_resident(root: int) -> tuple[int, int]:
    """``(resident bytes, anonymous bytes)`` of a process and all its descendants.

    Anonymous pages are those that a program has allocated. The others belong to mapped files,
    mostly libraries, and can be dropped. Pages shared by several processes count once for each.
    """
    parents: dict[int, int] = {}
    sizes: dict[int, tuple[int, int]] = {}
    for folder in _PROC.iterdir():
        if not folder.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # it has ended meanwhile
            fields = process_status(int(folder.name))
            parents[int(folder.name)] = fields["PPid"]
            sizes[int(folder.name)] = fields["VmRSS"], fields["RssAnon"]
    inside = {root}
    while new := {pid for pid, parent in parents.items() if parent in inside} - inside:
        inside |= new
    found = [sizes[pid] for pid in inside if pid in sizes]
    return sum(size for size, _ in found), sum(size for _, size in found)


def process_status(pid: int) -> dict[str, int]:
    """``PPid``, and bytes: ``VmRSS`` resident, ``RssAnon`` anonymous, ``VmHWM`` peak resident."""
    lines = (_PROC / str(pid) / "status").read_text().splitlines()
    fields = {key: value for key, _, value in (line.partition(":\t") for line in lines)}
    sizes = ("VmRSS", "RssAnon", "VmHWM")  # missing of a process that is ending
    found = {key: 1024 * int(fields[key].split()[0]) if key in fields else 0 for key in sizes}
    return {"PPid": int(fields["PPid"]), **found}


def read_place(pid: int, file: Path) -> float:
    """Share of ``file`` that a process has read so far; 0 while it does not have it open."""
    with contextlib.suppress(OSError, ValueError):
        for link in (_PROC / str(pid) / "fd").iterdir():
            if os.readlink(link) == str(file):
                about = (_PROC / str(pid) / "fdinfo" / link.name).read_text()
                return int(about.split()[1]) / file.stat().st_size  # 'pos:' comes first
    return 0.0


@dataclasses.dataclass(frozen=True)
class Watched:
    """A watched command.

    Attributes:
      seconds: wall time from start to end; ``processor_s``: processor time with its children.
      status: exit status; below 0: the signal that ended it.
      killed: whether ``watch`` killed it.
      samples: (seconds since its start, resident bytes, anonymous bytes).
      steady_s: second at which ``at_work`` was first true; None if never.
      progress: share of the work done at the end, from ``progress`` of ``watch``.
    """

    seconds: float
    processor_s: float
    status: int
    killed: bool
    samples: list[tuple[float, int, int]]
    steady_s: float | None
    progress: float

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "growth": measure_growth(self.samples, self.steady_s)}


def measure_growth(
    samples: Sequence[tuple[float, int, int]], steady_s: float | None
) -> dict[str, float] | None:
    """Resident MiB from second ``steady_s`` on; None for fewer than three samples.

    Medians over the first and the last third of that time, their difference, and the most.
    """
    if steady_s is None:
        return None
    kept = [(moment, size) for moment, size, _ in samples if moment >= steady_s]
    if len(kept) < 3:
        return None
    begin, end = kept[0][0], kept[-1][0]
    third = (end - begin) / 3
    first = statistics.median(size for moment, size in kept if moment <= begin + third) / MIB
    last = statistics.median(size for moment, size in kept if moment >= end - third) / MIB
    return {
        "first_third_mib": first,
        "last_third_mib": last,
        "grown_mib": last - first,
        "most_mib": max(size for _, size in kept) / MIB,
        "seconds": end - begin,
    }


def watch(
    command: Sequence[str],
    log: Path,
    name: str,
    *,
    every: float = 1.0,
    progress: Callable[[int], float] = lambda pid: 0.0,
    at_work: Callable[[], bool] = lambda: True,
    cue: Callable[[], bool] = lambda: False,
    limit_s: float = 0.0,
) -> Watched:
    """Run ``command`` to its end, or kill it and its children by SIGKILL when ``cue`` is true.

    Args:
      command: program and arguments.
      log: file that its output is appended to.
      name: printed with its progress.
      every: seconds between samples.
      progress: process id -> share of the work that is done.
      at_work: whether it has begun its actual work, after starting and compiling.
      cue: whether to kill it now; called fifty times a second.
      limit_s: kill it after so many seconds; 0: never.

    Raises:
      VidlatentError: it failed; the message has its last line.
    """
    if not (_PROC / "self" / "status").exists():
        raise VidlatentError("memory is read from /proc, which this system lacks: use Linux.")
    look = _Look(name, every, progress, at_work)
    killed, before = False, _children_s()
    with open(log, "ab") as out:
        start = log.stat().st_size
        process = subprocess.Popen(
            list(command), stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            while process.poll() is None and not killed:
                look(process.pid)
                killed = cue() or 0 < limit_s < look.seconds()
                time.sleep(0 if killed else POLL_S)
        finally:
            # If this program is interrupted, too, nothing may be left running.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            status = process.wait()
    seconds = look.seconds()
    if status and not killed:
        lines = log.read_bytes()[start:].decode(errors="replace").strip().splitlines()
        raise VidlatentError(
            f"{name} ended with status {status}: {(lines or ['no message'])[-1]} (all in {log})"
        )
    used, share = _children_s() - before, look.share if killed else 1.0
    return Watched(seconds, used, status, killed, look.samples, look.steady_s, share)


class _Look:
    """Samples a process and prints its progress every 15 seconds."""

    QUIET_S = 15.0

    def __init__(
        self,
        name: str,
        every: float,
        progress: Callable[[int], float],
        at_work: Callable[[], bool],
    ):
        self._name, self._every, self._progress, self._at_work = name, every, progress, at_work
        self.samples: list[tuple[float, int, int]] = []
        self.steady_s: float | None = None
        self.share = self._at_first = 0.0
        self._said = self._began = time.monotonic()

    def seconds(self) -> float:
        return time.monotonic() - self._began

    def __call__(self, pid: int) -> None:
        now = self.seconds()
        if not self.samples or now - self.samples[-1][0] >= self._every:
            self.samples.append((now, *measure_resident(pid)))
            self.share = max(self.share, self._progress(pid))
            if self.steady_s is None and self._at_work():
                self.steady_s, self._at_first = now, self.share
        if time.monotonic() - self._said > self.QUIET_S:
            self._said = time.monotonic()
            self._say(now)

    def _say(self, now: float) -> None:
        left = ""
        if self.steady_s is not None and now > self.steady_s and self.share > self._at_first:
            pace = (self.share - self._at_first) / (now - self.steady_s)
            seconds = int((1 - self.share) / pace)
            left = f", {seconds // 60}:{seconds % 60:02d} left"
        size = self.samples[-1][1] / MIB
        print(f"{self._name}: {self.share:.0%} after {now:.0f} s{left}, {size:.0f} MiB", flush=True)


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
