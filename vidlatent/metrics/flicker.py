"""Whether the borders between separately coded parts of a video can be seen.

Measured by second differences ``|x[i-1] - 2 x[i] + x[i+1]|`` in 8-bit levels, over frames for
borders in time, over rows or columns for borders in space. Smooth motion and smooth pictures have
small ones; a jump between two frames (or rows) gives a large one on either side. Their mean is
taken once over the places next to a border and once over all others. If a codec leaves no visible
border, the ratio of the two means is that of the original video.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from vidlatent.spec import check_shape

__all__ = ["BorderDifferences", "FrameDifferences"]


class _NearAndFar:
    """Means over the places ``near`` a border and ``far`` from one, summed in float64."""

    def __init__(self) -> None:
        self._sums = {"near": 0.0, "far": 0.0}
        self._counts = {"near": 0, "far": 0}

    def take(self, values: np.ndarray, near: bool) -> None:
        place = "near" if near else "far"
        self._sums[place] += float(values.sum(dtype=np.float64))
        self._counts[place] += values.size

    def means(self) -> dict[str, float]:
        """``{'near': mean, 'far': mean}``; one without any place is left out."""
        return {name: self._sums[name] / n for name, n in self._counts.items() if n}


class FrameDifferences(_NearAndFar):
    """Second differences over time, of a video that is added piece by piece.

    Args:
      borders: ``(first, end)`` of the frames that each border touches, in order; endless if the
        length of the video is not known. A hard cut between frames t - 1 and t is
        ``(t - 1, t + 1)``; chunks that fade into each other over n frames from t on give
        ``(t - 1, t + n + 1)``. A border that the video ends inside of does not count.
    """

    def __init__(self, borders: Iterable[tuple[int, int]]):
        super().__init__()
        self._borders = iter(borders)
        self._border = next(self._borders, None)
        self._held: list[np.ndarray] = []
        self._place = 0  # number of the last middle frame measured
        self._open: list[np.ndarray] = []  # at a border, until its last frame has come

    def add(self, frames: np.ndarray) -> None:
        """The next frames, uint8 ``[T, H, W, C]``."""
        check_shape(frames, "T H W C")
        for frame in frames:
            # Second differences of bytes lie in [-510, 510], where uint8 would wrap.
            self._held.append(frame.astype(np.int16))
            if len(self._held) < 3:
                continue
            before, now, after = self._held
            self._place += 1
            while self._border is not None and self._border[1] <= self._place:
                self._border = next(self._borders, None)
            second = np.abs(before - 2 * now + after)
            if self._border is None or self._place < self._border[0]:
                self.take(second, False)
            else:
                self._open.append(second)
                if self._place + 2 >= self._border[1]:  # frames so far
                    self._close(True)
            del self._held[0]

    def means(self) -> dict[str, float]:
        # If the video ended inside a border, its places count as far from one.
        self._close(False)
        return super().means()

    def _close(self, near: bool) -> None:
        for second in self._open:
            self.take(second, near)
        self._open.clear()


class BorderDifferences(_NearAndFar):
    """Second differences across rows and columns, of frames that are added piece by piece.

    Args:
      rows, columns: the first row or column after each border.
    """

    def __init__(self, rows: Sequence[int], columns: Sequence[int]):
        super().__init__()
        self._lines = (tuple(rows), tuple(columns))

    def add(self, frames: np.ndarray) -> None:
        """Frames uint8 ``[T, H, W, C]``."""
        check_shape(frames, "T H W C")
        for axis, borders in zip((1, 2), self._lines, strict=True):
            if not borders or frames.shape[axis] < 3:
                continue
            for frame in frames:
                x = np.moveaxis(frame, axis - 1, 0).astype(np.int16)
                second = np.abs(x[:-2] - 2 * x[1:-1] + x[2:])
                middles = np.arange(1, len(x) - 1)
                # A border before row b is touched by the triples around b - 1 and b.
                near = np.isin(middles, [*borders, *(border - 1 for border in borders)])
                self.take(second[near], True)
                self.take(second[~near], False)
