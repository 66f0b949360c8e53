"""Lists of clips with labels and captions: one JSON object per line, or one path per line."""

from __future__ import annotations

import codecs
import json
import os

from vidlatent.errors import VidlatentError
from vidlatent.paths import absolute, as_path

__all__ = ["read_caption", "read_table", "read_text"]

# Characters of a caption that are kept. No text encoder here reads more than 512 tokens.
_LONGEST = 1 << 14


def read_text(path: str, longest: int | None = None) -> str:
    """A text file in UTF-8, with or without a byte-order mark.

    Args:
      path: of the file.
      longest: characters that are kept; None: all.

    Raises:
      VidlatentError: it is UTF-16, or no text, or its bytes are no UTF-8. Read as UTF-8 anyway, it
        would hold letters that nobody wrote.
    """
    with as_path(path).open("rb") as file:
        # A character has at most four bytes; the mark has three.
        content = file.read(-1 if longest is None else 4 * longest + 3)
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise VidlatentError(f"{path} is UTF-16: save it as UTF-8.")
    if b"\0" in content:
        raise VidlatentError(f"{path} holds NUL characters, so it is no text in UTF-8.")
    try:
        # What is cut at the end may cut a character.
        whole = longest is None or len(content) < 4 * longest + 3
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(content, whole)
    except UnicodeDecodeError as error:
        raise VidlatentError(
            f"{path} is no UTF-8 (byte {error.start}): save it as UTF-8."
        ) from error
    return text[:longest].replace("\r\n", "\n").replace("\r", "\n")


def read_table(path: str) -> dict[str, tuple[str, str]]:
    """Name of a clip -> (label, caption).

    Each line of a ``.jsonl`` file is ``{"file": "b/a.mp4", "caption": "...", "label": "..."}``;
    each line of any other file is a path. Paths are relative to the list's folder, and so are the
    returned names.

    Raises:
      VidlatentError: a malformed line, a name that no file can have, a clip that is listed twice,
        or a file that is no UTF-8.
    """
    table: dict[str, tuple[str, str]] = {}
    root = os.path.dirname(absolute(path))
    # Not splitlines(), which also splits at characters that JSON allows within a line.
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        name, *words = _parse_row(path, number, line)
        _check_characters(path, number, name, *words)
        # One spelling for a clip: `a.mp4` and `./a.mp4` are the same.
        name = _relative(os.path.join(root, name), root)
        if name in table:
            raise VidlatentError(f"{path}, line {number}: {name} is named a second time.")
        table[name] = (words[0], words[1][:_LONGEST])
    return table


def _relative(path: str, root: str) -> str:
    # Of an address, only what follows the scheme is a path: `gs://` would lose a stroke.
    scheme, colon, _ = root.partition("://")
    if colon and path.startswith(f"{scheme}{colon}"):
        path, root = path[len(scheme) + 2 :], root[len(scheme) + 2 :]
    return os.path.relpath(path, root).replace(os.sep, "/")


def _check_characters(path: str, number: int, *texts: str) -> None:
    """Refuse what JSON can spell but no file name and no text encoder can hold."""
    for text in texts:
        if "\0" in text:
            raise VidlatentError(f"{path}, line {number}: {text!r} holds a NUL character.")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise VidlatentError(f"{path}, line {number}: {text!r} holds half a character.")


def _parse_row(path: str, number: int, line: str) -> tuple[str, str, str]:
    """(file, label, caption) of one line."""
    if not path.endswith(".jsonl"):
        return line.strip(), "", ""
    try:
        row = json.loads(line)
        label, caption = (str(row.get(key) or "").strip() for key in ("label", "caption"))
        return os.path.expanduser(row["file"]), label, caption
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise VidlatentError(
            f'{path}, line {number}: each line is an object {{"file": ..., "caption": ..., '
            '"label": ...}.'
        ) from error


def read_caption(path: str) -> str:
    """The text of a file, stripped; '' if there is no such file.

    Raises:
      VidlatentError: see ``read_text``.
    """
    return read_text(path, _LONGEST).strip() if as_path(path).is_file() else ""
