"""Several runs that differ in their seeds or other keys, one after the other on this machine.

    python -m launch.sweep --workdir=runs/rates --config=configs/fsae.py \\
        --config.seed=0,1,2 --config.optim.lr=1e-4,3e-4

Every key with commas takes each of its values, and all their combinations are run, each in a
workdir of its own, ``runs/rates/seed=0,optim.lr=1e-4``. Commas inside brackets or quotes part
nothing. A finished run is not run again, and one that was interrupted resumes, so the same command
goes on where it stopped. At the end a table shows the best score of each (``sweep.json`` too).
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from absl import logging

from vidlatent import config as configs
from vidlatent.config import split_overrides
from vidlatent.errors import VidlatentError
from vidlatent.files import write_json
from vidlatent.paths import as_path

__all__ = ["Point", "expand", "main", "split_values"]

_LONGEST = 150  # bytes of a folder's name
_INTERRUPTED = 130


@dataclasses.dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Attributes:
      name: of its folder: what differs, ``seed=0,optim.lr=1e-4``; empty for a single run.
      overrides: all keys that are set.
    """

    name: str
    overrides: Mapping[str, str]

    def flags(self) -> list[str]:
        """The keys as ``vidlatent.main`` takes them."""
        return [f"--config.{key}={value}" for key, value in self.overrides.items()]


def split_values(text: str) -> list[str]:
    """``'1,2'`` -> ``['1', '2']``; commas inside brackets or quotes do not part.

    Raises:
      VidlatentError: a bracket or quote without its partner, or an empty value.
    """
    found, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
        elif letter == "," and not depth:
            found.append("")
            continue
        found[-1] += letter
    if depth or quote:
        raise VidlatentError(f"{text!r} has a bracket or quote without its partner.")
    values = [value.strip() for value in found]
    if len(values) > 1 and not all(values):
        raise VidlatentError(f"{text!r} has an empty value between its commas: leave it out.")
    return values


def expand(overrides: Mapping[str, str]) -> list[Point]:
    """All combinations of the values, the last key changing fastest.

    Raises:
      VidlatentError: see ``split_values``; a value that is named twice; names that become one.
    """
    values = {key: split_values(text) for key, text in overrides.items()}
    for key, several in values.items():
        if len(set(several)) < len(several):
            raise VidlatentError(f"--config.{key}={overrides[key]} names a value twice.")
    differing = [key for key, several in values.items() if len(several) > 1]
    points = []
    for chosen in itertools.product(*values.values()):
        keys = dict(zip(values, chosen, strict=True))
        words = (f"{key}={keys[key]}" for key in differing)
        points.append(Point(re.sub(r"[^\w.=,+-]+", "_", ",".join(words)), keys))
    names = [point.name for point in points]
    if len({name[:_LONGEST] for name in names}) < len(names):
        raise VidlatentError(
            "two runs of the sweep would have the same folder: name fewer keys or shorter values."
        )
    return [dataclasses.replace(point, name=point.name[:_LONGEST]) for point in points]


def check_points(config: str, points: Iterable[Point]) -> None:
    """Refuse a sweep one of whose configs cannot be run, before the first begins."""
    for point in points:
        configs.load(config, dict(point.overrides))


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="launch.sweep", allow_abbrev=False, description=__doc__.splitlines()[0]
    )
    parser.add_argument("--config", required=True, help="as of vidlatent.main")
    parser.add_argument("--workdir", required=True, help="folder of all runs")
    parser.add_argument("--processes", type=int, default=1, help="of each run, by launch.local")
    parser.add_argument("--dry-run", action="store_true", help="only print the commands")
    return parser.parse_args(arguments)


def _command(given: argparse.Namespace, point: Point) -> list[str]:
    several = ["launch.local", f"--processes={given.processes}", "--"]
    module = several if given.processes > 1 else ["vidlatent.main"]
    flags = [f"--config={given.config}", f"--workdir={_place(given, point)}", *point.flags()]
    return [sys.executable, "-m", *module, *flags]


def _place(given: argparse.Namespace, point: Point) -> str:
    """The workdir of one run."""
    return f"{given.workdir.rstrip('/')}/{point.name or 'run'}"


def _read_scores(workdir: str, metric: str) -> list[tuple[float, int]]:
    """The scores of a run's checkpoints, each with its step."""
    from vidlatent.checkpoint.scores import read_scores  # imports JAX, which takes its time

    folder = as_path(workdir, "checkpoints")
    found = []
    for step in folder.iterdir() if folder.is_dir() else ():
        score = read_scores(step).get(metric) if step.name.isdecimal() else None
        if score is not None:
            found.append((score, int(step.name)))
    return found


def _summarise(given: argparse.Namespace, points: Sequence[Point], statuses: Sequence[int]) -> None:
    config = configs.load(given.config, dict(points[0].overrides))
    metric, best = config.checkpoint.best_metric, config.checkpoint.best_mode
    choose = max if best == "max" else min
    rows = []
    for point, status in zip(points, statuses, strict=False):
        scores = _read_scores(_place(given, point), metric)
        score, step = choose(scores) if scores else (None, None)
        rows.append({"run": point.name or "run", "status": status, metric: score, "step": step})
    width = max(len(str(row["run"])) for row in rows)
    print(f"{'run':{width}}  status  {metric} ({best} is best)  step")
    for row in rows:
        told = "-" if row[metric] is None else f"{row[metric]:.6g}"
        print(f"{row['run']:{width}}  {row['status']:6d}  {told}  {row['step'] or '-'}")
    write_json(as_path(given.workdir, "sweep.json"), rows)


def main(arguments: Sequence[str]) -> int:
    """Run all; returns the first status that is not 0. An interruption ends the sweep."""
    try:
        rest, overrides = split_overrides(list(arguments))
        given = _parse(rest)
        if given.processes < 1:
            raise VidlatentError(f"--processes={given.processes}: give 1 or more.")
        points = expand(overrides)
        check_points(given.config, points)
    except VidlatentError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    statuses: list[int] = []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, _import_path()))}
    for number, point in enumerate(points, 1):
        command = _command(given, point)
        if given.dry_run:
            print(" ".join(command[1:]))
            continue
        logging.info("run %d of %d: %s", number, len(points), point.name or "run")
        statuses.append(subprocess.run(command, env=environment).returncode)
        if statuses[-1] in (_INTERRUPTED, -2, -15):
            break
    if statuses:
        _summarise(given, points, statuses)
    return next((status for status in statuses if status), 0)


def _import_path() -> list[Path | str]:
    """Where this repository lies, before what was given: ``launch`` is not installed."""
    given = os.environ.get("PYTHONPATH")
    return [Path(__file__).resolve().parents[1], *([given] if given else [])]


if __name__ == "__main__":
    logging.set_verbosity(logging.INFO)
    sys.exit(main(sys.argv[1:]))
