"""Runs the slow tests that fit into the time that is left, those near the change first.

    python .ci/slow_tests.py                  # all of them, however long they take
    python .ci/slow_tests.py --minutes 20     # those that fit into 20 minutes
    python .ci/slow_tests.py --list           # the order and the estimates; runs nothing

    make test; python .ci/slow_tests.py --fast-seconds 900   # after 'make test' took 900 seconds:
    cp runs/ci/slow_seconds.json tests/slow_seconds.json     # measures the table anew

Files of slow tests are run one process each, two at a time. First come those that were changed
themselves, then those that import what was changed, then those of a folder whose package was
changed, then all others. Among equals the first one differs from commit to commit, so that each
gets its turn.

How long a file takes is looked up in ``tests/slow_seconds.json``, and corrected by how long the
fast tests took here and where the table was made. After every run the table with what was measured
is in ``runs/ci/slow_seconds.json`` and at the end of the output.
"""

from __future__ import annotations

import argparse
import ast
import collections
import dataclasses
import heapq
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TABLE = Path("tests/slow_seconds.json")
MEASURED = Path("runs/ci/slow_seconds.json")
LOGS = Path("runs/ci/slow_tests")
WORKERS = 2
# For a file that was never measured; most take less than a minute on two cores.
UNKNOWN_SECONDS = 120.0
COMMITS_BACK = 10
# After its time a file that takes longer than expected may run on for so long, then it is stopped.
GRACE_SECONDS = 8 * 60
# Between asking a process to stop, so that it can report what it has, and killing it.
PATIENCE_SECONDS = 15.0
WHY = ("changed", "imports what changed", "its package changed", "in turn")

_OUTCOME = re.compile(r"^(\S+::.*?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b", re.MULTILINE)
_CLOSING = re.compile(r"^=+ (.*\d+ \w+.*) in [\d.]+s.*=+$", re.MULTILINE)
_SUMMARY = re.compile(r"^=+ short test summary info =+$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Job:
    """A file of slow tests: its tests' names, the seconds it should take, and its place in WHY."""

    file: str
    tests: tuple[str, ...]
    seconds: float
    nearness: int = len(WHY) - 1


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a job that was started; ``stopped`` if its time was over before its end."""

    job: Job
    seconds: float
    failed: bool
    stopped: bool
    log: str

    @property
    def missed(self) -> tuple[str, ...]:
        """Names of the tests that had no result when the job was stopped."""
        told = {match[1] for match in _OUTCOME.finditer(self.log)}
        return tuple(n for n in self.job.tests if self.stopped and n not in told)


# What was changed, and which tests are near it.


def git(*words: str, root: Path = ROOT) -> str | None:
    """What git answers, or nothing where it fails: no git, no repository, no such commit."""
    try:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def base_commit(root: Path = ROOT) -> str | None:
    """Where the branch left main; on main itself the oldest of the last commits that there are."""
    head = git("rev-parse", "HEAD", root=root)
    for branch in ("origin/main", "main"):
        base = git("merge-base", "HEAD", branch, root=root)
        if base and base != head:
            return base
    count = f"--max-count={COMMITS_BACK + 1}"
    last = (git("rev-list", "--first-parent", count, "HEAD", root=root) or "").split()
    return last[-1] if len(last) > 1 else None


def changed_files(root: Path = ROOT) -> set[str]:
    """Files that differ from the base, uncommitted ones included; none if there is no history."""
    base = base_commit(root)
    return set((base and git("diff", "--name-only", base, root=root) or "").splitlines())


def commit_number(root: Path = ROOT) -> int:
    """Grows by one a commit; in a shallow clone, which cannot count, it is taken from the hash."""
    if git("rev-parse", "--is-shallow-repository", root=root) == "false":
        return int(git("rev-list", "--count", "HEAD", root=root) or 0)
    return int((git("rev-parse", "HEAD", root=root) or "0")[:8], 16)


def imported_files(file: str, root: Path = ROOT) -> set[str]:
    """Files of the repository that a test imports itself or through helpers among the tests."""
    found: set[str] = set()
    waiting = [file]
    while waiting:
        here = waiting.pop()
        for name in _imported_names(ast.parse((root / here).read_text(encoding="utf-8"))):
            path = name.replace(".", "/")
            beside = str(Path(here).parent / path)  # helpers that a folder's conftest makes known
            for stem in (path, beside):
                for candidate in (f"{stem}.py", f"{stem}/__init__.py"):
                    if candidate not in found and (root / candidate).is_file():
                        found.add(candidate)
                        waiting += [candidate] if candidate.startswith("tests/") else []
    return found - {file}


def _imported_names(tree: ast.AST) -> Iterable[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def nearness(file: str, changed: set[str], root: Path = ROOT) -> int:
    """Place in WHY: how close a test file is to what was changed."""
    folder = Path(file).parent
    helpers = {c for c in changed if Path(c).parent == folder and not Path(c).match("test_*.py")}
    if file in changed:
        return 0
    if helpers or imported_files(file, root) & changed:
        return 1
    package = Path("vidlatent") / folder.relative_to("tests")
    if folder != Path("tests") and any(Path(c).is_relative_to(package) for c in changed):
        return 2
    return 3


def in_order(jobs: Iterable[Job], number: int) -> list[Job]:
    """The nearest first; among equals the commit's number says who begins.

    Numbers that follow each other begin far apart (steps of the golden ratio), so that a few
    commits reach all files even if each has only time for some.
    """
    groups: dict[int, list[Job]] = collections.defaultdict(list)
    for job in sorted(jobs, key=lambda job: (job.nearness, job.file)):
        groups[job.nearness].append(job)
    ordered = []
    for group in groups.values():
        first = int(len(group) * (number * 0.6180339887498949 % 1))
        ordered += group[first:] + group[:first]
    return ordered


# How long it takes.


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of each file, where the fast tests took ``fast_suite`` seconds (None: not known)."""

    fast_suite: float | None = None
    files: dict[str, float] = dataclasses.field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Times:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return cls(stored["fast_suite"], stored["files"])

    def here(self, fast_seconds: float | None) -> Times:
        """The same for a machine on which the fast tests took so long."""
        if not fast_seconds or not self.fast_suite:
            return Times(fast_seconds or self.fast_suite, dict(self.files))
        scale = fast_seconds / self.fast_suite
        return Times(fast_seconds, {name: scale * took for name, took in self.files.items()})

    def with_measured(self, outcomes: Iterable[Outcome], existing: Iterable[str]) -> Times:
        """With what was measured; files that do not exist any more are gone."""
        ended = {o.job.file: o.seconds for o in outcomes if not (o.stopped or o.failed)}
        known = {name: took for name, took in self.files.items() if name in set(existing)}
        return Times(self.fast_suite, dict(sorted({**known, **ended}.items())))

    def text(self) -> str:
        rounded = {name: round(took, 1) for name, took in self.files.items()}
        return json.dumps({"fast_suite": self.fast_suite, "files": rounded}, indent=1) + "\n"


def foresee(jobs: Sequence[Job], seconds: float, workers: int = WORKERS) -> list[bool]:
    """For each job whether it would be started, if all took as long as they should."""
    free = [0.0] * workers
    started = []
    for job in jobs:
        started.append(free[0] + job.seconds <= seconds)
        if started[-1]:
            heapq.heapreplace(free, free[0] + job.seconds)
    return started


# Running.


def collect() -> dict[str, tuple[str, ...]]:
    """Names of the slow tests by file.

    Raises:
      SystemExit: the tests cannot be collected; pytest's words are printed.
    """
    command = [sys.executable, "-m", "pytest", "-m", "slow", "--collect-only", "-q"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        print(done.stdout, done.stderr)
        raise SystemExit(f"The slow tests cannot be collected (exit status {done.returncode}).")
    found = collections.defaultdict(list)
    for line in done.stdout.splitlines():
        if re.match(r"tests/\S+\.py::", line):
            found[line.split("::")[0]].append(line)
    return {file: tuple(names) for file, names in found.items()}


def pytest_command(file: str) -> list[str]:
    words = ["-v", "--color=no", "-m", "slow", "-p", "no:cacheprovider", file]
    return [sys.executable, "-m", "pytest", *words]


def run(
    jobs: Sequence[Job],
    until: float,
    stop_at: float,
    command: Callable[[str], Sequence[str]] = pytest_command,
    tell: Callable[[Outcome], None] = lambda outcome: None,
    folder: Path = ROOT / LOGS,
) -> tuple[list[Outcome], list[Job]]:
    """Start jobs in their order, as long as they should end before ``until``.

    Args:
      until: by ``time.time()``; a job that would not end before it is left out, and the next ones
        are asked.
      stop_at: by the same clock; what still runs then is stopped.
      command: makes the words of a process from a file.
      tell: called with each outcome as it comes.
      folder: for what the processes print.

    Returns:
      What was started, and what was left out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    waiting, running = list(jobs), []
    outcomes, left_out = [], []
    try:
        while waiting or running:
            while waiting and len(running) < WORKERS:
                job = waiting.pop(0)
                if time.time() + job.seconds > until:
                    left_out.append(job)
                else:
                    running.append(_Running(job, command(job.file), folder))
            for process in [p for p in running if p.has_ended() or time.time() > stop_at]:
                outcomes.append(process.end())
                running.remove(process)
                tell(outcomes[-1])
            time.sleep(0.05)
    finally:  # interrupted: nothing of it goes on
        for process in running:
            process.end()
    return outcomes, left_out


class _Running:
    """A process with a group of its own, so that what it started ends with it."""

    def __init__(self, job: Job, command: Sequence[str], folder: Path):
        self.job, self.begin = job, time.monotonic()
        self.path = folder / (job.file.replace("/", ".") + ".log")
        with self.path.open("w") as log:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def end(self) -> Outcome:
        """Its outcome; it is stopped if it still runs, and first asked, so that it can report."""
        stopped = not self.has_ended()
        for number in (signal.SIGINT, signal.SIGKILL) if stopped else ():
            try:
                os.killpg(self.process.pid, number)
                self.process.wait(PATIENCE_SECONDS)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                pass
        log = self.path.read_text(errors="replace")
        failed = self.process.returncode != 0
        if stopped:
            failed = any(match[2] in ("FAILED", "ERROR") for match in _OUTCOME.finditer(log))
        return Outcome(self.job, time.monotonic() - self.begin, failed, stopped, log)


# Telling.


def closing_lines(log: str) -> str:
    """Pytest's summary and last line, without the list of tests before them."""
    starts = [match.start() for match in (*_SUMMARY.finditer(log), *_CLOSING.finditer(log))]
    return log[min(starts) :].rstrip() if starts else log.rstrip()


def tell(outcome: Outcome) -> None:
    """Print what pytest said: all of it if something is wrong, its closing lines if not."""
    job, wrong = outcome.job, outcome.failed or outcome.stopped
    state = "stopped after" if outcome.stopped else "failed in" if outcome.failed else "took"
    print(f"\n{job.file} {state} {outcome.seconds:.0f} s; {job.seconds:.0f} s were expected.")
    print(outcome.log.rstrip() if wrong else closing_lines(outcome.log), flush=True)


def counts(outcomes: Iterable[Outcome]) -> str:
    """``12 passed, 1 failed``: the sum of what pytest counted."""
    total: collections.Counter[str] = collections.Counter()
    for outcome in outcomes:
        for match in list(_CLOSING.finditer(outcome.log))[-1:]:
            for number, word in re.findall(r"(\d+) (\w+)", match[1]):
                total["error" if word == "errors" else word] += int(number)
    words = ("passed", "failed", "error", "skipped", "xfailed", "xpassed")
    return ", ".join(f"{total[word]} {word}" for word in words if total[word]) or "no results"


def names_and_numbers(tests: Iterable[str]) -> str:
    """``test_a, test_b x 3``: functions, and how many cases they have where there are several."""
    cases = collections.Counter(test.split("::", 1)[1].split("[")[0] for test in tests)
    return ", ".join(name + (f" x {n}" if n > 1 else "") for name, n in cases.items())


def summary(outcomes: Sequence[Outcome], left_out: Sequence[Job]) -> str:
    """What ran, what was left out by name and number, and pytest's counts in one line."""
    missing = [(job.file, job.tests) for job in left_out]
    missing += [(o.job.file, o.missed) for o in outcomes if o.missed]
    number = sum(len(tests) for _, tests in missing)
    lines = [f"Left out for lack of time: {number} slow tests in {len(missing)} files."]
    lines += [f"  {len(t):3d} {file}: {names_and_numbers(t)}" for file, t in missing]
    lines += [f"FAILED: {o.job.file}" for o in outcomes if o.failed]
    stopped = [o.job.file for o in outcomes if o.stopped]
    lines += [f"Stopped before its end: {file}" for file in stopped]
    left = f", {number} left out" if number else ""
    lines.append(f"==== slow tests: {counts(outcomes)}{left} ====")
    return "\n".join(lines)


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, help="time for all; without it all are run")
    parser.add_argument("--until", type=float, help="the same as a time, in seconds since 1970")
    parser.add_argument("--fast-seconds", type=float, help="how long the fast tests took here")
    parser.add_argument("--list", action="store_true", help="only say what would be run")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    options = arguments(words)
    until = options.until or float("inf")
    if options.minutes is not None:
        until = min(until, time.time() + 60 * options.minutes)
    collected, changed = collect(), changed_files()
    times = Times.read(ROOT / TABLE).here(options.fast_seconds)
    jobs = in_order(
        (
            Job(file, tests, times.files.get(file, UNKNOWN_SECONDS), nearness(file, changed))
            for file, tests in collected.items()
        ),
        commit_number(),
    )
    print(f"{sum(map(len, collected.values()))} slow tests in {len(jobs)} files, in this order:")
    for job, fits in zip(jobs, foresee(jobs, until - time.time()), strict=True):
        known = "" if job.file in times.files else " (a guess)"
        note = f"{WHY[job.nearness]}; {job.seconds:.0f} s{known}"
        print(f"  {'runs' if fits else 'out '} {job.file}: {len(job.tests)} tests; {note}")
    if options.list:
        return 0
    sys.stdout.flush()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    outcomes, left_out = run(jobs, until, until + GRACE_SECONDS, tell=tell)
    measured = times.with_measured(outcomes, collected).text()
    (ROOT / MEASURED).write_text(measured, encoding="utf-8")
    print(f"\nSeconds of each file, for {TABLE} ({MEASURED} can be copied):\n{measured}")
    print(summary(outcomes, left_out))
    return int(any(outcome.failed for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
