"""Tables in Markdown, if asked for in columns that line up in a terminal too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["markdown_table"]


def markdown_table(rows: Sequence[Mapping[str, Any]], aligned: bool = False) -> str:
    """Rows, each a dict of cells by column, as a Markdown table.

    Args:
      rows: columns appear in the order in which rows first name them; None is an empty cell.
      aligned: pad the cells of each column to the same width.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [[_cell(name) for name in columns]]
    lines += [[_cell(row.get(name)) for name in columns] for row in rows]
    # Width 0 pads nothing.
    widths = [max(map(len, column)) if aligned else 0 for column in zip(*lines, strict=True)]
    texts = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines]
    rule = "|" + "".join("-" * max(3, width + 2) + "|" for width in widths)
    return "\n".join([texts[0], rule, *texts[1:]])


def _cell(value: Any) -> str:
    return "" if value is None else str(value).replace("|", "\\|").replace("\n", " ")
