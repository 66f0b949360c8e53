"""Small data sets in memory: each clip is decoded once, at its bucket's scale, then only cut."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from vidlatent.data.buckets import Bucket
from vidlatent.data.index import Clip
from vidlatent.media.errors import ClipError
from vidlatent.media.transforms import place

__all__ = ["ClipCache", "count_decoded_bytes"]


def count_decoded_bytes(
    clips: Sequence[Clip], buckets: Sequence[Bucket], members: Sequence[Sequence[int]]
) -> int:
    """Bytes that all clips take once decoded, each at the scale of every bucket it fills."""
    total = 0
    for scale, rows in _group_by_scale(buckets, members).items():
        for row in rows:
            info = clips[row].info
            spot = place(info.height, info.width, scale)
            # uint8 [T, h, w, 3], scaled but not cut.
            total += info.frames * spot.height * spot.width * 3
    return total


def _group_by_scale(buckets, members) -> dict[tuple[int, int], set[int]]:
    rows_at: dict[tuple[int, int], set[int]] = {}
    for bucket, rows in zip(buckets, members, strict=True):
        rows_at.setdefault((bucket.height, bucket.width), set()).update(rows)
    return rows_at


class ClipCache:
    """Decoded clips by key.

    One thread loads a clip while others that want it wait. A copy made by pickling is empty, so
    that each decoding process fills its own.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._locks: dict[Any, threading.Lock] = {}
        self._clips: dict[Any, Any] = {}

    def __reduce__(self):
        return (ClipCache, ())

    def get(self, key: Any, load: Callable[[], Any]) -> Any:
        """What ``load`` returned the first time; None if the clip cannot be decoded to its end."""
        # Held only to find the clip's own lock: other clips can be loaded meanwhile.
        with self._lock:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            if key not in self._clips:
                try:
                    self._clips[key] = load()
                except ClipError:  # windows of its sound parts are read one by one
                    self._clips[key] = None
            return self._clips[key]
