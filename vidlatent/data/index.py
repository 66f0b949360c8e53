"""The index: every clip of a source is probed once, and unusable ones are set aside."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import json
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from absl import logging

from vidlatent.data.sources import Entry, Source
from vidlatent.files import write_json
from vidlatent.media.errors import ClipError, Limits, named_errors
from vidlatent.media.probe import REMARKS, ClipInfo
from vidlatent.paths import absolute, as_path

__all__ = ["BadClip", "Clip", "Index", "build_index"]

_FORMAT = 2
_THREADS = 8  # more than cores: probing mostly waits for the disc
# data.verify = 'auto' decodes all clips if they have no more pixels in all: about 10 s of one core.
_AUTO_PIXELS = 4e9
_PASSING = frozenset(("slow", "missing", "permission"))  # may pass: not kept in the cache


@dataclasses.dataclass(frozen=True)
class Clip:
    """A usable clip.

    Attributes:
      info: what probing found.
      group, part: as of ``sources.Entry``.
      label: name of its class; '' for none.
      caption: '' for none.
    """

    info: ClipInfo
    group: str
    part: str = ""
    label: str = ""
    caption: str = ""

    @property
    def path(self) -> str:
        return self.info.path

    @property
    def frames(self) -> int:
        return self.info.frames

    @property
    def fps(self) -> float:
        return self.info.fps

    @property
    def size(self) -> tuple[int, int]:
        """Displayed (height, width) in pixels."""
        return self.info.height, self.info.width


@dataclasses.dataclass(frozen=True)
class BadClip:
    """A clip left out: its name, a key of ``media.errors.REASONS``, and what was found."""

    path: str
    reason: str
    detail: str


@dataclasses.dataclass(frozen=True)
class Index:
    """Usable and unusable clips of a source, each in the order of their names.

    ``labels`` are the names of the classes in their order; () where no clip has one.
    """

    where: str
    clips: tuple[Clip, ...]
    bad: tuple[BadClip, ...]
    labels: tuple[str, ...] = ()


def build_index(source: Source, limits: Limits, verify: str = "auto", cache: str = "") -> Index:
    """Probe every entry of a source in threads.

    Args:
      source: see ``sources.Source``.
      limits: frame size and seconds allowed for each clip.
      verify: 'header', 'decode' or 'auto', see ``DataOptions.verify``.
      cache: JSON file that keeps what was found; entries whose stamp changed are probed again.
    """
    began = time.monotonic()
    entries = source.entries()
    known = _read_cache(cache, source.where, limits)
    findings = _run_threads(entries, lambda entry: _probe(source, entry, limits, known))
    infos = [found for found in findings if isinstance(found, ClipInfo)]
    pixels = sum(info.frames * info.width * info.height for info in infos)
    if verify == "decode" or (verify == "auto" and pixels <= _AUTO_PIXELS):
        sound = {name for name, row in known.items() if row.get("verified") is True}
        pairs = list(zip(entries, findings, strict=True))
        findings = _run_threads(pairs, lambda pair: _verify(source, *pair, limits, sound, known))
        # All clips that are still usable have been decoded now, or were in an earlier run.
        verified = True
    else:
        verified = False
    _write_cache(cache, source.where, limits, entries, findings, known, verified)
    pairs = list(zip(entries, findings, strict=True))
    words = _run_threads(pairs, lambda pair: _describe(source, *pair))
    clips, bad = [], []
    for (entry, found), said in zip(pairs, words, strict=True):
        if isinstance(said, BadClip):
            bad.append(said)
        else:
            clips.append(Clip(found, entry.group, entry.part, *said))
    # Sorted, so that a class has the same number in every run.
    labels = source.labels() or tuple(sorted({clip.label for clip in clips} - {""}))
    _log_remarks(source.where, clips)
    logging.info(
        "%s: %d clips, %d unusable, looked at in %.1f s",
        *(source.where, len(clips), len(bad), time.monotonic() - began),
    )
    return Index(source.where, tuple(clips), tuple(bad), labels)


def _run_threads(items: Sequence[Any], look) -> list[Any]:
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(look, items))


def _probe(source: Source, entry: Entry, limits: Limits, known) -> ClipInfo | BadClip:
    # A row of another shape is damaged: the clip is probed again.
    with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):
        row = known[entry.name]
        if tuple(row["stamp"]) == entry.stamp:
            if "info" in row:
                return ClipInfo.from_json(row["info"])
            return BadClip(entry.name, row["reason"], row["detail"])
    # The clip changed. What else is known of it, such as that it was verified, no longer holds.
    known.pop(entry.name, None)
    try:
        with named_errors("unreadable"):
            return source.probe(entry.name, limits)
    except ClipError as error:
        return BadClip(entry.name, error.reason, error.detail)


def _verify(source: Source, entry: Entry, found, limits: Limits, sound, known):
    # `known` has lost the clips that changed since they were verified (see `_probe`).
    if isinstance(found, BadClip) or (entry.name in sound and entry.name in known):
        return found
    try:
        with named_errors("unreadable"):
            # Decoding all of a clip may find that its last packets hold no frame.
            return source.verify(entry.name, limits) or found
    except ClipError as error:
        return BadClip(entry.name, error.reason, error.detail)


def _describe(source: Source, entry: Entry, found) -> tuple[str, str] | BadClip:
    if isinstance(found, BadClip):
        return found
    try:
        return source.describe(entry.name)
    except ClipError as error:
        return BadClip(entry.name, error.reason, error.detail)


def _log_remarks(where: str, clips: Sequence[Clip]) -> None:
    """Say what is changed or lost of clips that are used, as counts."""
    counts = Counter(remark for clip in clips for remark in clip.info.remarks)
    for remark in sorted(set(counts) - {"sound"}):  # a model of pictures misses no sound
        logging.info("%s: %d clips: %s", where, counts[remark], REMARKS[remark])
    trimmed = sum(clip.info.trimmed for clip in clips)
    if trimmed:
        logging.info("%s: %d packets at the edges of recordings left out", where, trimmed)


def _cache_head(where: str, limits: Limits) -> dict[str, Any]:
    # The limit decides which clips are usable, so another limit makes the cache void.
    return {"format": _FORMAT, "where": where, "max_pixels": limits.max_pixels}


def _read_cache(path: str, where: str, limits: Limits) -> dict[str, Any]:
    if not path or not as_path(path).exists():
        return {}
    try:
        content = json.loads(as_path(path).read_bytes())
        rows = {name: row for name, row in content.pop("clips").items() if isinstance(row, dict)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        # A cache only saves time, so a damaged one is no reason to stop.
        logging.warning("the index %s cannot be read (%s): clips are probed again", path, error)
        return {}
    return rows if content == _cache_head(where, limits) else {}


def _write_cache(path, where, limits, entries, findings, known, verified) -> None:
    if not path:
        return
    rows = {}
    for entry, found in zip(entries, findings, strict=True):
        row: dict[str, Any] = {"stamp": list(entry.stamp)}
        if isinstance(found, ClipInfo):
            row["info"] = dataclasses.asdict(found)
            row["verified"] = verified or known.get(entry.name, {}).get("verified", False)
        # Tried again next time: by then the disc may be quicker, or the file back.
        elif found.reason in _PASSING:
            continue
        else:
            row |= {"reason": found.reason, "detail": found.detail}
        rows[entry.name] = row
    if rows == known:
        return
    try:
        as_path(absolute(path)).parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {**_cache_head(where, limits), "clips": rows}, indent=None)
    except OSError as error:
        logging.warning("the index cannot be kept in %s: %s", path, error)
