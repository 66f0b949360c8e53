"""``data.source = 'pairs'``: judged pairs of videos, listed in a folder's ``pairs.jsonl``."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence

import numpy as np

from vidlatent.data.options import DataOptions
from vidlatent.data.sources.base import Entry, MediaSource
from vidlatent.data.text.captions import read_text
from vidlatent.errors import VidlatentError
from vidlatent.media import decode, probe
from vidlatent.media.errors import ClipError, Limits
from vidlatent.media.probe import ClipInfo
from vidlatent.media.transforms import Crop
from vidlatent.paths import absolute, as_path, local_copy

__all__ = ["LIST", "Pair", "PairSource", "make", "read_pairs"]

LIST = "pairs.jsonl"
_JUDGED = {"first": 1, "tie": 0, "second": -1, None: 22}  # as ``losses.preference`` has them
_LINE = (
    '{"first": "a.mp4", "second": "b.mp4", "prompt": "...", "preferred": "first"}, where preferred '
    'is "first", "second", "tie" or null, or an object of these by the names of scores'
)


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two videos and what was judged.

    Attributes:
      first, second: files, relative to the list's folder.
      prompt: that both were made for; '' for none.
      preferred: score -> judgement (``losses.preference``); the score '' stands for all scores.
    """

    first: str
    second: str
    prompt: str
    preferred: Mapping[str, int]


def read_pairs(path: str) -> list[Pair]:
    """The pairs of a list, one JSON object a line.

    Raises:
      VidlatentError: there is no such file, it holds no pair, or a line is malformed.
    """
    if not as_path(path).is_file():
        raise VidlatentError(f"there is no {path}: each of its lines is {_LINE}.")
    lines = list(enumerate(read_text(path).split("\n"), 1))
    pairs = [_parse(path, number, line) for number, line in lines if line.strip()]
    if not pairs:
        raise VidlatentError(f"{path} holds no pair: each line is {_LINE}.")
    return pairs


def _parse(path: str, number: int, line: str) -> Pair:
    try:
        row = json.loads(line)
        judged = row.get("preferred")
        judged = judged if isinstance(judged, dict) else {"": judged}
        preferred = {score: _JUDGED[word] for score, word in judged.items()}
        return Pair(str(row["first"]), str(row["second"]), row.get("prompt") or "", preferred)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise VidlatentError(f"{path}, line {number}: each line is {_LINE}.") from error


class PairSource(MediaSource):
    """The pairs of ``<path>/pairs.jsonl``: one entry for each, as long as the shorter video.

    Pairs that share a video belong to one group, so that no held-out video was trained on.

    Args:
      path: the folder, or the list itself.

    Attributes:
      scores: names of the judged scores, sorted; ('',) where a judgement is about all of them.

    Raises:
      VidlatentError: see ``read_pairs``; or some lines name scores and others do not.
    """

    cacheable = False  # two videos each

    def __init__(self, path: str):
        path = absolute(path)
        self.where = os.path.join(path, LIST) if as_path(path).is_dir() else path
        self.root = os.path.dirname(self.where)
        pairs = read_pairs(self.where)
        self.scores = tuple(sorted({score for pair in pairs for score in pair.preferred}))
        if "" in self.scores and len(self.scores) > 1:
            raise VidlatentError(
                f"{self.where}: some lines judge by {', '.join(self.scores[1:])} and others as a "
                "whole: name the scores in all lines or in none."
            )
        # By the line, since one pair may have been judged several times.
        self._pairs = {
            f"{number}: {pair.first} | {pair.second}": pair for number, pair in enumerate(pairs, 1)
        }

    def entries(self) -> list[Entry]:
        groups = _join_groups([(pair.first, pair.second) for pair in self._pairs.values()])
        return [
            Entry(name, groups[pair.first], self._stamp(pair)) for name, pair in self._pairs.items()
        ]

    def _stamp(self, pair: Pair) -> tuple[int, ...]:
        try:
            found = [as_path(self.root, side).stat() for side in (pair.first, pair.second)]
        except OSError:  # ``probe`` reports it
            return ()
        return tuple(int(n) for status in found for n in (status.st_size, status.st_mtime))

    def _file(self, name: str) -> str:
        try:
            return local_copy(os.path.join(self.root, name))
        except OSError as error:
            raise ClipError("unreadable", " ".join(str(error).split())[:160]) from error

    def media(self, name: str) -> str:
        return self._file(self._pairs[name].first)

    def media_of_second(self, name: str) -> str:
        return self._file(self._pairs[name].second)

    def probe(self, name: str, limits: Limits) -> ClipInfo:
        sides = [probe.probe(find(name), limits) for find in (self.media, self.media_of_second)]
        shorter = min(sides, key=lambda info: info.frames / (info.fps or 1.0))
        return dataclasses.replace(shorter, path=name)

    def verify(self, name: str, limits: Limits) -> ClipInfo | None:
        for find in (self.media, self.media_of_second):
            probe.verify(find(name), limits)
        return None

    def describe(self, name: str) -> tuple[str, str]:
        return "", self._pairs[name].prompt

    def read_pair(
        self,
        info: ClipInfo,
        start: float,
        count: int,
        fps: float,
        size: tuple[int, int] | None,
        crop: Crop,
        limits: Limits,
    ) -> dict[str, np.ndarray]:
        """``video`` and ``other`` uint8 ``[T, H, W, 3]``, and ``judged`` int32 ``[scores]``.

        The arguments are those of ``read``, of both windows.
        """
        keys = start, count, fps, size, crop, limits, self.decoders, self.resize
        sides = [
            decode.read_window(find(info.path), *keys)
            for find in (self.media, self.media_of_second)
        ]
        preferred = self._pairs[info.path].preferred
        judged = [preferred.get(score, _JUDGED[None]) for score in self.scores]
        return {"video": sides[0], "other": sides[1], "judged": np.array(judged, np.int32)}


def _join_groups(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """File -> the first file, by name, of all that pairs connect with it."""
    leader: dict[str, str] = {}

    def find(name: str) -> str:
        while leader.setdefault(name, name) != name:
            name = leader[name]
        return name

    for first, second in pairs:
        low, high = sorted((find(first), find(second)))
        leader[high] = low
    return {name: find(name) for name in list(leader)}


def make(options: DataOptions, seed: int) -> PairSource:
    """The source of ``data.path``."""
    del seed
    return PairSource(options.path)
