"""``python -m vidlatent.selftest``: runs the checks, prints a table, and says whether all pass."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax

from vidlatent.files import dump_json, write_json
from vidlatent.report.tables import markdown_table
from vidlatent.selftest import devices, diffusion  # noqa: F401, they register their checks
from vidlatent.selftest.check import CHECKS, Row, run_check

__all__ = ["main", "run_all", "use_several_devices"]

_ABOUT = """Closed-form checks of vidlatent on this machine and its devices; about two minutes.

Each row is a number that theory or a second computation knows. The exit status is 0 if all are
within their tolerances, else 1."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks that the arguments choose; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m vidlatent.selftest", description=_ABOUT)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", default="", help="checks whose name contains this text")
    parser.add_argument("--list", action="store_true", help="names of the checks, and stop")
    parser.add_argument("--json", default="", help="write the result to this file; - prints it")
    options = parser.parse_args(arguments)
    use_several_devices()
    chosen = [name for name in CHECKS if options.only in name]
    if not chosen:
        print(f"error: no check is called {options.only!r}: {', '.join(CHECKS)}", file=sys.stderr)
        return 2
    if options.list:
        print("\n".join(chosen))
        return 0
    result = run_all(chosen, quiet=options.json == "-")
    if options.json == "-":
        print(dump_json(result))
    elif options.json:
        write_json(options.json, result)
    return 0 if result["passed"] else 1


def use_several_devices() -> None:
    """Four devices where there are only processors, so that a step can be spread over some.

    Call it before JAX looks for devices; where it is too late, or where there are accelerators, it
    changes nothing.
    """
    with contextlib.suppress(RuntimeError):
        if jax.config.values["jax_num_cpu_devices"] <= 1:
            jax.config.update("jax_num_cpu_devices", 4)


def run_all(names: Sequence[str], quiet: bool = False) -> dict[str, Any]:
    """Run checks by name, and print each as it is done; the result as JSON."""
    begin = time.perf_counter()
    device = jax.devices()[0]
    about = f"{jax.device_count()} x {device.device_kind}, jax {jax.__version__}"
    rows: list[Row] = []
    for name in names:
        if not quiet:
            print(f"checking {name} ...", file=sys.stderr, flush=True)
        rows += run_check(name)
    seconds = time.perf_counter() - begin
    failed = [row.name for row in rows if not row.passed]
    if not quiet:
        print(f"{about}\n")
        print(markdown_table([_format_row(row) for row in rows], aligned=True))
        skipped = sum(row.skipped for row in rows)
        kept = len(rows) - len(failed) - skipped
        print(f"\n{kept} passed, {len(failed)} failed, {skipped} skipped in {seconds:.0f} s")
    return {
        "devices": about,
        "seconds": round(seconds, 1),
        "passed": not failed,
        "failed": failed,
        "rows": [_to_json(row) for row in rows],
    }


def _format_row(row: Row) -> dict[str, Any]:
    def write(value: float) -> str | None:
        return f"{value:.6g}" if math.isfinite(value) else None

    return {
        "check": row.name,
        "measured": write(row.measured),
        "expected": write(row.expected),
        "tolerance": write(row.tolerance),
        "result": row.verdict + (f": {row.note}" if row.note else ""),
    }


def _to_json(row: Row) -> dict[str, Any]:
    # JSON has no NaN.
    plain = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in dataclasses.asdict(row).items()
    }
    return {**plain, "result": row.verdict}
