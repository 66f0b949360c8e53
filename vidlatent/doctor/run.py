"""``--mode=doctor``: a table of what is installed here and whether it works."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ml_collections import ConfigDict

from vidlatent.doctor.checks import CHECKS, FAILED, OK, Row, hide_home
from vidlatent.files import write_text
from vidlatent.report.tables import markdown_table

__all__ = ["examine", "look"]


def examine(config: ConfigDict, workdir: Path, output: str) -> int:
    """Print the table, which belongs into an issue report; returns 0, or 2 if something failed.

    Args:
      config: not read; every mode gets one.
      workdir: folder whose disk is looked at; the current one by default.
      output: Markdown file for the table; empty for none.
    """
    rows = look(workdir)
    table = markdown_table([_shorten(row) for row in rows])
    print(table, flush=True)
    if output:
        write_text(output, table + "\n")
    return 2 if any(row.verdict == FAILED for row in rows) else 0


def look(folder: Path) -> list[Row]:
    """The rows of all checks. One that raises is a failed row, and the others go on."""
    rows = []
    for check in CHECKS:
        try:
            rows += check(folder)
        except Exception as error:  # whatever is broken here is what is looked for
            name = check.__name__.removeprefix("check_")
            found = hide_home(f"{type(error).__name__}: {error}")[:300]
            rows.append(Row(name, found, FAILED, "report this with the table"))
    return rows


def _shorten(row: Row) -> dict[str, str]:
    cells = dataclasses.asdict(row)
    return cells if row.verdict != OK else {**cells, "remedy": ""}
