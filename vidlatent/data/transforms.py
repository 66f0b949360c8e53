"""Where a frame is scaled and cut: plain arithmetic, no pixels."""

from __future__ import annotations

import dataclasses

__all__ = ["CENTRE", "Placement", "place"]

CENTRE = (0.5, 0.5)


@dataclasses.dataclass(frozen=True)
class Placement:
    """Scale a frame to ``height x width``, then cut ``crop_height x crop_width`` at (top, left)."""

    height: int
    width: int
    top: int
    left: int
    crop_height: int
    crop_width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Row and column slices of the cut."""
        rows = slice(self.top, self.top + self.crop_height)
        return rows, slice(self.left, self.left + self.crop_width)


def place(
    height: int, width: int, size: tuple[int, int] | None, crop: tuple[float, float] = CENTRE
) -> Placement:
    """Smallest scaling of ``height x width`` that covers ``size``, and the cut inside it.

    Args:
      height, width: displayed size of the source in pixels.
      size: wanted ``(height, width)``; None keeps the source's size.
      crop: share of the spare rows and columns that lies above and to the left of the cut, each
        in [0, 1]; (0.5, 0.5) is the centre.
    """
    if size is None:
        return Placement(height, width, 0, 0, height, width)
    scale = max(size[0] / height, size[1] / width)
    scaled_height = max(size[0], round(height * scale))
    scaled_width = max(size[1], round(width * scale))
    top = round((scaled_height - size[0]) * crop[0])
    left = round((scaled_width - size[1]) * crop[1])
    return Placement(scaled_height, scaled_width, top, left, size[0], size[1])
