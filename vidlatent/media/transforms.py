"""Where a frame is scaled and cut: arithmetic on sizes, without pixels."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np

__all__ = ["CENTRE", "Box", "Crop", "Placement", "place", "random_box"]

CENTRE = (0.5, 0.5)


class Box(NamedTuple):
    """A part of a frame; each number is a share of the frame's height or width."""

    top: float
    left: float
    height: float
    width: float


# (share of the spare rows above the cut, of the spare columns left of it), or the part of the frame
# that is scaled to the size.
Crop = tuple[float, float] | Box


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


def place(height: int, width: int, size: tuple[int, int] | None, crop: Crop = CENTRE) -> Placement:
    """The smallest scaling of ``height x width`` that covers ``size``, and where to cut.

    With a ``Box``: the scaling that brings the box to ``size``, each side by its own factor.

    Args:
      height, width: displayed size of the source in pixels.
      size: wanted ``(height, width)``; None keeps the source's size.
      crop: share of the spare rows and columns that lies above and to the left of the cut, each
        in [0, 1]; (0.5, 0.5) is the centre. Or a ``Box``.
    """
    if size is None:
        return Placement(height, width, 0, 0, height, width)
    if isinstance(crop, Box):
        # Rounding must not make the frame smaller than the cut, nor move the cut out of it.
        scaled = [max(s, round(s / share)) for s, share in zip(size, crop[2:], strict=True)]
        spare = [all - cut for all, cut in zip(scaled, size, strict=True)]
        starts = [min(n, round(a * s)) for n, a, s in zip(spare, scaled, crop[:2], strict=True)]
        return Placement(*scaled, *starts, *size)
    # The larger of the two factors: the frame covers the size in both directions.
    scale = max(size[0] / height, size[1] / width)
    scaled_height = max(size[0], round(height * scale))
    scaled_width = max(size[1], round(width * scale))
    top = round((scaled_height - size[0]) * crop[0])
    left = round((scaled_width - size[1]) * crop[1])
    return Placement(scaled_height, scaled_width, top, left, size[0], size[1])


def random_box(
    rng: np.random.Generator, height: int, width: int, size: tuple[int, int], tries: int = 10
) -> Box:
    """A random box of at least half the frame, stretched by at most 4/3 (Reducio's training).

    Its share of the frame's area is uniform in [0.5, 1], and the logarithm of the stretch uniform
    in [-log 4/3, log 4/3]. A box that does not fit into the frame is drawn again; after ``tries``
    draws it is the largest box of the wanted aspect ratio, in the middle.

    Args:
      rng: how many numbers are drawn from it varies.
      height, width: of the frame in pixels.
      size: wanted ``(height, width)``; the aspect ratio of a box that is not stretched.
    """
    aspect = size[1] / size[0]
    for _ in range(tries):
        area = rng.uniform(0.5, 1.0) * height * width
        ratio = aspect * math.exp(rng.uniform(-1.0, 1.0) * math.log(4 / 3))
        tall, wide = math.sqrt(area / ratio) / height, math.sqrt(area * ratio) / width
        if tall <= 1 and wide <= 1:
            return Box(rng.uniform() * (1 - tall), rng.uniform() * (1 - wide), tall, wide)
    tall = min(1.0, width / aspect / height)
    wide = min(1.0, height * aspect / width)
    return Box((1 - tall) / 2, (1 - wide) / 2, tall, wide)
