"""Lists of clips with labels and captions: one JSON object per line, or one path per line."""

from __future__ import annotations

import json
import os

from vidlatent.errors import VidlatentError

__all__ = ["read_caption", "read_table"]

# Characters of a caption that are kept. No text encoder here reads more than 512 tokens.
_LONGEST = 1 << 14


def read_table(path: str) -> dict[str, tuple[str, str]]:
    """Name of a clip -> (label, caption).

    Each line of a ``.jsonl`` file is ``{"file": "b/a.mp4", "caption": "...", "label": "..."}``;
    each line of any other file is a path. Paths are relative to the list's folder, and so are the
    returned names.

    Raises:
      VidlatentError: a malformed line, or a clip that is listed twice.
    """
    table: dict[str, tuple[str, str]] = {}
    root = os.path.dirname(os.path.abspath(path))
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            name, *words = _parse_row(path, number, line)
            # One spelling for a clip: `a.mp4` and `./a.mp4` are the same.
            name = os.path.relpath(os.path.join(root, name), root).replace(os.sep, "/")
            if name in table:
                raise VidlatentError(f"{path}, line {number}: {name} is named a second time.")
            table[name] = (words[0], words[1][:_LONGEST])
    return table


def _parse_row(path: str, number: int, line: str) -> tuple[str, str, str]:
    """(file, label, caption) of one line."""
    if not path.endswith(".jsonl"):
        return line.strip(), "", ""
    try:
        row = json.loads(line)
        label, caption = (str(row.get(key) or "").strip() for key in ("label", "caption"))
        return os.path.expanduser(row["file"]), label, caption
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise VidlatentError(
            f'{path}, line {number}: each line is an object {{"file": ..., "caption": ..., '
            '"label": ...}.'
        ) from error


def read_caption(path: str) -> str:
    """The text of a file, stripped; '' if there is no such file."""
    if not os.path.isfile(path):
        return ""
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read(_LONGEST).strip()
