"""``python -m vidlatent.weights``: the table of released weights, as text, JSON or Markdown."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence

from vidlatent.errors import VidlatentError
from vidlatent.files import dump_json
from vidlatent.weights.files import read_tensors
from vidlatent.weights.released import Released, list_released, recognise

__all__ = ["main", "make_page"]

_ABOUT = """Released weights that vidlatent reads: files, where their authors publish them, licence,
config, size and the command that reads them. No row was tried on the real file.

    python -m vidlatent.weights                  the list
    python -m vidlatent.weights --json           the same for programs
    python -m vidlatent.weights FILE             what a file holds"""

_HEAD = """# Released weights

Made by `python -m docs.make_weights` from `vidlatent/weights/released.py`; change the
table there. `python -m vidlatent.weights` prints it, `--json` for programs, and
`python -m vidlatent.weights FILE` says which of these a file holds.

**No row was tried on the real file**: nothing could be fetched where this was written. The column
"tried" says what was compared instead. Files and places are as their authors' pages name them; a
licence or size that is not stated here is not known to us, so look at the page before you use the
weights. `.pth`, `.pt`, `.ckpt` and `.bin` files need torch to be read (`pip install torch`), once:
`--mode=convert` and `python -m vidlatent.convert.networks` write `.safetensors` or a workdir, which
do not.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the list, or what a file holds; returns 1 after an error of the user, else 0."""
    parser = argparse.ArgumentParser(prog="python -m vidlatent.weights", description=_ABOUT)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("file", nargs="?", default="", help="weights file or folder")
    parser.add_argument("--json", action="store_true", help="for programs")
    options = parser.parse_args(arguments)
    rows = list_released()
    try:
        if options.file:
            found = recognise(read_tensors(options.file))
            if not found:
                print(f"error: {options.file} holds none of the known weights.", file=sys.stderr)
                return 1
            rows = {name: rows[name] for name in found}
    except VidlatentError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(dump_json({name: _to_json(row) for name, row in rows.items()}, indent=2))
    else:
        print("\n\n".join(_to_text(name, row) for name, row in rows.items()))
    return 0


def _to_json(row: Released) -> dict[str, object]:
    return {key: value for key, value in dataclasses.asdict(row).items() if key != "marks"}


def _to_text(name: str, row: Released) -> str:
    size = ", ".join(filter(None, (row.size, row.sha256 and f"sha256 {row.sha256}")))
    lines = {
        "file": ", ".join(row.files),
        "published at": row.where,
        "licence": row.licence or "not known to us",
        "size": size or "not known to us",
        "our network": row.network + (f", --config={row.config}" if row.config else ""),
        "command": row.command,
        "tried": row.tried,
    }
    return "\n".join([f"{name}: {row.model}", *(f"  {key}: {x}" for key, x in lines.items())])


def make_page() -> str:
    """The text of docs/weights.md."""
    rows = list_released()
    frozen = {name: row for name, row in rows.items() if row.network.startswith("networks.")}
    parts = [_HEAD.strip(), "## Tokenizers and generators"]
    parts.append(_table({name: row for name, row in rows.items() if name not in frozen}))
    parts += ["## Frozen networks", "Keys of `config.networks`.", _table(frozen)]
    return "\n\n".join(parts) + "\n"


def _table(rows: dict[str, Released]) -> str:
    head = ("name", "model", "files", "published at", "licence", "size", "our network, config")
    lines = [f"| {' | '.join((*head, 'command', 'tried'))} |", "|---" * (len(head) + 2) + "|"]
    for name, row in rows.items():
        size = " ".join(filter(None, (row.size, row.sha256 and f"sha256 `{row.sha256}`")))
        ours = f"`{row.network}`" + (f", `{row.config}`" if row.config else "")
        files = ", ".join(f"`{file}`" for file in row.files)
        cells = (f"`{name}`", row.model, files, row.where, row.licence, size, ours)
        lines.append(f"| {' | '.join(cells)} | `{row.command}` | {row.tried} |")
    return "\n".join(lines)
