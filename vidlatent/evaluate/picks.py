"""Which clips an evaluation shows: spread over the set, and of as many files as there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["Picks"]


class Picks:
    """Chooses clips batch by batch.

    Args:
      count: of clips to show.
      batches: that there will be.
    """

    def __init__(self, count: int, batches: int):
        self._count = count
        self._each = -(-count // max(1, batches))
        self._stride = max(1, batches // max(1, count))
        self._files: list[Any] = []
        self.shown: list[Any] = []

    def look(self, number: int, files: Sequence[Any], make: Callable[[], Sequence[Any]]) -> None:
        """Take some clips of a batch.

        Args:
          number: of the batch, from 0.
          files: of its clips.
          make: the clips themselves, as they are to be kept; only called if some are taken.
        """
        new = [row for row, file in enumerate(files) if file not in self._files]
        new = [row for place, row in enumerate(new) if files[row] not in _at(files, new[:place])]
        others = [row for row in range(len(files)) if row not in new]
        due = self._each if number % self._stride == 0 else 0
        taken = [*new, *others][: min(due, self._count - len(self.shown))]
        # A file that is shown twice makes room for one that is not shown at all.
        swaps = list(zip(self._repeats(), [r for r in new if r not in taken], strict=False))
        if not taken and not swaps:
            return
        clips = make()
        for place, row in swaps:
            self._files[place], self.shown[place] = files[row], clips[row]
        self._files += [files[row] for row in taken]
        self.shown += [clips[row] for row in taken]

    def _repeats(self) -> list[int]:
        return [n for n, file in enumerate(self._files) if file in self._files[:n]]


def _at(items: Sequence[Any], rows: Sequence[int]) -> list[Any]:
    return [items[row] for row in rows]
