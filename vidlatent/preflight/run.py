"""``--mode=preflight``: a table of what a run needs and what this machine has, and a verdict."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

from absl import logging
from ml_collections import ConfigDict

from vidlatent.errors import VidlatentError
from vidlatent.files import write_json
from vidlatent.parallel.multihost import is_main
from vidlatent.plan.hardware import parse_topology
from vidlatent.preflight import checks
from vidlatent.report.tables import markdown_table
from vidlatent.report.writers import METRICS_FILE, read_metrics

__all__ = ["inspect_machine", "refuse_unfit_machine"]


def inspect_machine(config: ConfigDict, workdir: Path, topology: str, output: str) -> int:
    """Print the table; returns the exit status: 0, or 2 if a check failed.

    Args:
      config: of the run.
      workdir: of the run, in which a file is written and removed.
      topology: that the run was planned for, ``v5p:8x8x4``; empty for any.
      output: JSON file for the table; empty for none.
    """
    rows = _look(config, workdir, topology)
    if is_main():
        _print(rows)
        if output:
            write_json(output, [dataclasses.asdict(row) for row in rows])
    return 2 if checks.worst(rows) == checks.FAILED else 0


def refuse_unfit_machine(config: ConfigDict, workdir: Path, topology: str) -> None:
    """The same before a run begins (``config.processes.preflight``).

    Raises:
      VidlatentError: a check failed; the sentence names it.
    """
    rows = _look(config, workdir, topology)
    if is_main():
        _print(rows)
    for row in rows:
        if row.verdict == checks.FAILED:
            raise VidlatentError(
                f"this machine is not fit for the run: {row.check} ({row.found}; needed: "
                f"{row.needed}): {row.remedy}."
            )


def _look(config: ConfigDict, workdir: Path, topology: str) -> list[checks.Row]:
    planned = parse_topology(topology) if topology else None
    began = time.monotonic()
    hardware = checks.find_hardware()
    rows = checks.check_devices(planned)
    if checks.worst(rows) == checks.FAILED:
        return rows  # what follows needs all devices, and would only repeat it
    rows += checks.check_code(config) + checks.check_data(config) + checks.check_clocks()
    rows += checks.check_speed(hardware) + checks.check_links(hardware)
    memory, held = checks.check_memory(config, hardware)
    rows += memory + checks.check_storage(workdir, held, _find_interval(config, workdir))
    logging.info("looked at the machine in %.1f s", time.monotonic() - began)
    return rows


def _find_interval(config: ConfigDict, workdir: Path) -> float:
    """Seconds between saves, from the speed that an earlier start of the run had; 0 if unknown."""
    _, speeds = read_metrics(workdir / METRICS_FILE).get("train/steps_per_second", ((), ()))
    known = [speed for speed in speeds if speed > 0]
    return config.checkpoint.every / known[-1] if known else 0.0


def _print(rows: list[checks.Row]) -> None:
    cells = [{**dataclasses.asdict(row)} for row in rows]
    for cell in cells:
        if cell["verdict"] == checks.OK:
            cell["remedy"] = ""
    print(markdown_table(cells, aligned=True), flush=True)
