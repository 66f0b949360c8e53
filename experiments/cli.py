"""The command line that every experiment has."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import logging

from experiments.design import Experiment
from experiments.report import write_table_and_plot
from experiments.runner import run_all
from vidlatent.errors import VidlatentError
from vidlatent.parallel.compilation import keep_compiled

__all__ = ["main", "main_with_data", "prepare"]


def prepare() -> None:
    """Set up logging, and the cache of compiled programs for later processes."""
    logging.set_verbosity(logging.INFO)
    logging.set_stderrthreshold("info")
    keep_compiled()


def main(
    build: Callable[[str], Experiment],
    sizes: Sequence[str],
    text: str,
    argv: Sequence[str] | None = None,
) -> int:
    """Run an experiment or report on it; returns the exit status.

    Args:
      build: ``size -> Experiment``.
      sizes: to choose from; the first is the default.
      text: the design in a few lines, shown by ``--help``.
      argv: arguments after the program's name; None: those of the process.
    """
    args = _make_parser(sizes, text).parse_args(argv)
    return _run(args, lambda: build(args.size))


def main_with_data(
    name: str,
    build: Callable[[str, Path], Experiment],
    make_data: Callable[[str, Path], int],
    sizes: Sequence[str],
    text: str,
    argv: Sequence[str] | None = None,
) -> int:
    """``main`` for an experiment whose runs share data that is made once, before them.

    Args:
      name: of the experiment.
      build: ``(size, folder of the data) -> Experiment``.
      make_data: ``(size, folder) -> exit status``; makes what is not there yet.
      sizes, text, argv: as in ``main``.
    """
    parser = _make_parser(sizes, text)
    parser.add_argument(
        "--data", help="folder of tokenizer and latents that may be there already (<workdir>/data)"
    )
    args = parser.parse_args(argv)
    args.workdir = args.workdir or f"runs/{name}-{args.size}"
    data = Path(args.data or f"{args.workdir}/data")
    return _run(args, lambda: build(args.size, data), lambda: make_data(args.size, data))


def _make_parser(sizes: Sequence[str], text: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", help="folder of runs, results and report")
    parser.add_argument("--size", choices=sizes, default=sizes[0])
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of the design's")
    parser.add_argument(
        "--only", nargs="+", default=[], help="arms to run; those they need must have finished"
    )
    parser.add_argument(
        "--report", action="store_true", help="only write the table and plot of finished runs"
    )
    return parser


def _run(
    args: argparse.Namespace,
    build: Callable[[], Experiment],
    make_data: Callable[[], int] = lambda: 0,
) -> int:
    prepare()
    try:
        if not args.report and (status := make_data()):
            return status
        experiment = build()
        if args.seeds:
            experiment = dataclasses.replace(experiment, seeds=tuple(args.seeds))
        folder = Path(args.workdir or f"runs/{experiment.name}-{args.size}")
        status = 0 if args.report else run_all(experiment, folder, args.only)
        if status:
            return status
        summary = write_table_and_plot(experiment, folder)
    except VidlatentError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print((folder / "table.md").read_text())
    print(f"table and plot in {folder}; {len(summary['missing'])} runs missing")
    return 0
