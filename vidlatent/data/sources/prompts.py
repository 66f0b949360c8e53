"""``data.source = 'prompts'``: prompts without pictures, for fine-tuning by rewards.

A prompt is a grey picture with a caption and a class, as large as the largest bucket. Only texts
and classes of such a set mean anything: what trains on latents, or reads a first frame, refuses it.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from vidlatent.data.options import DataOptions
from vidlatent.data.sources.base import Entry
from vidlatent.data.text.captions import read_text
from vidlatent.errors import VidlatentError
from vidlatent.files import parse_json
from vidlatent.media.errors import Limits
from vidlatent.media.probe import ClipInfo
from vidlatent.paths import absolute, as_path

__all__ = ["PromptSource", "make", "read_rows"]

_GREY = 128
_LINE = '{"prompt": "...", "label": "..."}, or {"classes": ["...", "..."]} for all of them in order'


def read_rows(path: str) -> tuple[list[tuple[str, str]], tuple[str, ...]]:
    """``(label, prompt)`` of each line of a list, and the classes that it names, if any.

    A ``.jsonl`` has one object a line, any other file one prompt.

    Raises:
      VidlatentError: there is no such file, it holds no prompt, or a line is malformed.
    """
    if not path or not as_path(path).is_file():
        raise VidlatentError(
            f"data.path = {path!r} is no list of prompts: a .txt, one a line, or a .jsonl whose "
            f"lines are {_LINE}."
        )
    rows: list[tuple[str, str]] = []
    classes: tuple[str, ...] = ()
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not (line := line.strip()):
            continue
        if not path.endswith(".jsonl"):
            rows.append(("", line))
            continue
        row = _parse(path, number, line)
        if "classes" in row:
            classes = tuple(map(str, row["classes"]))
        else:
            rows.append((str(row.get("label") or ""), str(row.get("prompt") or "")))
    if not rows:
        raise VidlatentError(f"{path} holds no prompt: each line is {_LINE}.")
    if classes and (unknown := {label for label, _ in rows} - {"", *classes}):
        raise VidlatentError(f"{path}: {sorted(unknown)[0]!r} is none of its classes.")
    return rows, classes


def _parse(path: str, number: int, line: str) -> Mapping[str, Any]:
    try:
        row = parse_json(line)
        known = row.keys() == {"classes"} or (row and row.keys() <= {"prompt", "label"})
    except (ValueError, AttributeError):
        known = False
    if not known:
        raise VidlatentError(f"{path}, line {number}: each line is {_LINE}.")
    return row


class PromptSource:
    """The prompts of a list, one entry for each line."""

    cacheable = False

    def __init__(self, path: str, size: tuple[int, int]):
        self.where = absolute(path) if path else path
        rows, self._classes = read_rows(self.where)
        self._rows = {f"{number:06d}": row for number, row in enumerate(rows)}
        self._size = size

    def entries(self) -> list[Entry]:
        # The same prompt twice is not split between training and validation.
        return [
            Entry(name, "|".join(row), (zlib.crc32("|".join(row).encode()), *self._size))
            for name, row in self._rows.items()
        ]

    def probe(self, name: str, limits: Limits) -> ClipInfo:
        limits.check_size(*self._size)
        height, width = self._size
        return ClipInfo(name, 1, 0.0, width, height, 0.0, True)

    def verify(self, name: str, limits: Limits) -> None:
        pass  # there is nothing to be damaged

    def labels(self) -> tuple[str, ...]:
        return self._classes

    def describe(self, name: str) -> tuple[str, str]:
        return self._rows[name]

    def read(self, info, start, count, fps, size, crop, limits):
        del info, start, fps, crop, limits
        return np.full((count, *(size or self._size), 3), _GREY, np.uint8)

    def read_all(self, info, size, limits):
        return np.zeros(1), self.read(info, 0.0, 1, 0.0, size, None, limits)


def make(options: DataOptions, seed: int) -> PromptSource:
    del seed
    if any(bucket[0] != 1 for bucket in options.buckets):
        raise VidlatentError(
            "data.source=prompts has no videos: give buckets of one frame, such as ((1, 384, 640, "
            "16),), and by config.rl.frames how long the videos are that are drawn."
        )
    largest = max((bucket[1:3] for bucket in options.buckets), key=lambda side: side[0] * side[1])
    return PromptSource(options.path, (largest[0], largest[1]))
