"""A renderer of one labelled shape: its colour, its form and where it goes, in numpy.

A flat shape crosses a plain dark picture at constant speed; its label says all there is to see,
such as "red square moving left". Clip ``i`` depends on ``(seed, i)`` and the clip's length alone
and is drawn at any size and time. The same geometry reads the label off any video (``read_label``),
which tells how often a generator does as it is told.

Time counts frames; the shape never touches the picture's border.
"""

from __future__ import annotations

import colorsys
import dataclasses
import functools
import itertools
from collections.abc import Sequence

import numpy as np

from vidlatent.spec import check_shape

__all__ = ["COLOURS", "DIRECTIONS", "LABELS", "SHAPES", "ShapeScene", "make_shape_scene"]
__all__ += ["label_of", "read_label", "render_shape"]

COLOURS = {
    "red": (225, 40, 40),
    "green": (40, 190, 70),
    "blue": (50, 90, 235),
    "yellow": (235, 205, 40),
}
SHAPES = ("circle", "square", "triangle")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}  # x, y; y is down


def label_of(colour: str, shape: str, direction: str) -> str:
    """The words for a clip."""
    return f"{colour} {shape} moving {direction}"


_KINDS = tuple(itertools.product(COLOURS, SHAPES, DIRECTIONS))
LABELS = tuple(label_of(*kind) for kind in _KINDS)

# Shapes of one radius have the area of the circle: half the square's side, and the distance from
# the triangle's centre to its edges. Its corners lie twice as far away.
_HALF_SIDE = np.sqrt(np.pi) / 2
_EDGE = np.sqrt(np.pi / np.sqrt(27))
_REACH = 2 * _EDGE


@dataclasses.dataclass(frozen=True)
class ShapeScene:
    """Everything in a clip.

    Attributes:
      colour, shape, direction: what its label says.
      paint, ground: RGB of the shape and of the picture behind it, in [0, 255].
      radius: of the circle with the shape's area, as a share of the picture's shorter side.
      start: place of the centre at time 0 (x, y), as shares of the room that it has.
      speed: shares of that room a frame, along ``direction``.
    """

    colour: str
    shape: str
    direction: str
    paint: tuple[float, float, float]
    ground: tuple[float, float, float]
    radius: float
    start: tuple[float, float]
    speed: float

    @property
    def label(self) -> str:
        return label_of(self.colour, self.shape, self.direction)

    def centre(self, time: float, height: int, width: int) -> tuple[float, float]:
        """(x, y) in pixels."""
        reach = self.radius * min(height, width) * _REACH + 1.5  # soft corners reach a pixel on
        way = DIRECTIONS[self.direction]
        x, y = (at + time * self.speed * step for at, step in zip(self.start, way, strict=True))
        return reach + x * (width - 2 * reach), reach + y * (height - 2 * reach)


def make_shape_scene(seed: int, index: int, frames: int) -> ShapeScene:
    """Clip ``index`` of a data set, ``frames`` long; a pure function.

    Each run of ``len(LABELS)`` clips has every label once.
    """
    block, place = divmod(index, len(_KINDS))
    kind = np.random.default_rng([seed, block, 1]).permutation(len(_KINDS))[place]
    colour, shape, direction = _KINDS[kind]
    rng = np.random.default_rng([seed, index, 2])
    bright = rng.uniform(0.85, 1.0)
    travel = rng.uniform(0.6, 1.0)
    ahead = rng.uniform(0, 1 - travel)  # room left at the end of the way
    across = rng.uniform(0, 1)
    x, y = DIRECTIONS[direction]
    along = ahead if x + y > 0 else 1 - ahead
    return ShapeScene(
        colour,
        shape,
        direction,
        tuple(float(bright * level) for level in COLOURS[colour]),
        (float(rng.uniform(10, 40)),) * 3,
        float(rng.uniform(0.13, 0.18)),
        (along, across) if x else (across, along),
        float(travel / max(1, frames - 1)),
    )


def render_shape(scene: ShapeScene, times: Sequence[float], height: int, width: int) -> np.ndarray:
    """Frames at ``times`` (in frames, any real numbers) as uint8 [T, height, width, 3]."""
    centres = np.array([scene.centre(time, height, width) for time in times]).reshape(-1, 2)
    radius = scene.radius * min(height, width)
    cover = _compute_cover(scene.shape, centres, radius, height, width)[..., None]
    paint, ground = np.float32(scene.paint), np.float32(scene.ground)
    return np.uint8(ground + cover * (paint - ground) + np.float32(0.5))


def _compute_cover(
    shape: str, centres: np.ndarray, radius: float, height: int, width: int
) -> np.ndarray:
    """How much of each pixel a shape covers at ``centres`` [T, 2]: [T, H, W], edges one pixel."""
    x = np.arange(width, dtype=np.float32) + np.float32(0.5) - np.float32(centres)[:, :1]
    y = np.arange(height, dtype=np.float32) + np.float32(0.5) - np.float32(centres)[:, 1:]
    x, y, r = x[:, None, :], y[:, :, None], np.float32(radius)
    if shape == "circle":
        inside = r - np.sqrt(x * x + y * y)
    elif shape == "square":
        inside = r * np.float32(_HALF_SIDE) - np.maximum(np.abs(x), np.abs(y))
    else:  # standing on its base
        slope = np.float32(np.sqrt(0.75)) * np.abs(x) - np.float32(0.5) * y
        inside = r * np.float32(_EDGE) - np.maximum(y + 0 * x, slope)
    return np.clip(inside + np.float32(0.5), 0, 1)


_LEAST_CONTRAST = 24.0  # levels that the shape differs from the ground by, at least
_LEAST_WAY = 0.5  # pixels that it moves over the clip, at least


def read_label(video: np.ndarray) -> tuple[str, str, str]:
    """(colour, shape, direction) of a video uint8 [T, H, W, 3].

    The ground is the median pixel; what differs from it is the shape. Colour: the nearest hue.
    Shape: the frames are laid over each other by their centroids, and the outline, sharp or blurred
    and of about the measured area, that correlates best with their mean is taken. Direction: the
    straight line through the centroids.

    Returns:
      Names of ``COLOURS``, ``SHAPES`` and ``DIRECTIONS``; '' for what cannot be told, such as
      everything in an empty picture or the direction of one that stands still.

    Raises:
      VidlatentError: not ``[T, H, W, 3]``.
    """
    sizes = check_shape(video, "T H W C", C=3)
    pixels = np.asarray(video, np.float32)
    above = pixels - np.median(pixels, axis=(0, 1, 2))
    apart = np.abs(above).max(axis=-1)
    most = np.quantile(apart, 0.99)
    if most < _LEAST_CONTRAST:
        return "", "", ""
    core = apart > 0.7 * most
    cover = _sharpen(apart / most)
    area = cover.sum(axis=(1, 2))
    seen = np.flatnonzero(area > 0)
    cover, area = cover[seen], area[seen]
    x = (cover.sum(axis=1) @ (np.arange(sizes["W"]) + 0.5)) / area
    y = (cover.sum(axis=2) @ (np.arange(sizes["H"]) + 0.5)) / area
    centres = np.stack([x, y], axis=1)
    # Along the shape's own colour, noise around it has mean 0.
    paint = above[core].mean(axis=0)
    mean = _average_centred(above[seen] @ paint, centres, float(np.sqrt(np.median(area) / np.pi)))
    shape = max(SHAPES, key=lambda name: float(np.max(_draw_outlines(name) @ mean.ravel())))
    return _find_nearest_hue(pixels[core].mean(axis=0)), shape, _find_direction(seen, centres)


# Places on each side of a centre at which a shape is looked at, and how many make its radius.
_SIDE, _RADIUS = 12, 6
_SIZES = (0.85, 1.0, 1.15)  # of outlines, against the measured radius
_BLURS = (0, 1, 2, 4, 8, 16)  # times that [1, 2, 1] / 4 goes over rows and columns


def _average_centred(values: np.ndarray, centres: np.ndarray, radius: float) -> np.ndarray:
    """Mean over frames of ``values`` [T, H, W] around ``centres`` [T, 2], zero beyond the picture.

    Returns:
      ``[G, G]``, ``_RADIUS`` places a radius; straight lines between pixels.
    """
    steps = np.arange(-_SIDE, _SIDE + 1) * (radius / _RADIUS) - 0.5

    def shares(at: np.ndarray, size: int) -> np.ndarray:
        apart = (at[:, None] + steps)[..., None] - np.arange(size)
        return np.clip(1 - np.abs(apart), 0, None)

    _, height, width = values.shape
    rows, columns = shares(centres[:, 1], height), shares(centres[:, 0], width)
    return (rows @ values @ columns.swapaxes(1, 2)).mean(axis=0)


@functools.cache
def _draw_outlines(shape: str) -> np.ndarray:
    """A shape in all sizes and blurs, as ``_average_centred`` would see it: ``[N, G * G]``.

    Rows have Euclidean norm 1, so that products with them are correlations.
    """
    edge = 2 * _SIDE  # blurs do not meet the border
    inner = slice(edge - _SIDE, edge + _SIDE + 1)
    centre = np.full((1, 2), edge + 0.5)
    found = []
    for size in _SIZES:
        cover = _compute_cover(shape, centre, size * _RADIUS, 2 * edge + 1, 2 * edge + 1)[0]
        for passes in range(max(_BLURS) + 1):
            if passes in _BLURS:
                found.append(cover[inner, inner].ravel() / np.linalg.norm(cover[inner, inner]))
            for _ in range(2):
                around = np.pad(cover, ((1, 1), (0, 0)))
                cover = ((around[:-2] + around[2:]) / 4 + cover / 2).T
    return np.stack(found)


def _sharpen(cover: np.ndarray) -> np.ndarray:
    """Coverage with a steeper edge: faint noise around a decoded shape does not count."""
    return np.clip((cover - 0.2) / 0.6, 0, 1)


def _find_nearest_hue(colour: np.ndarray) -> str:
    def hue(rgb) -> float:
        return colorsys.rgb_to_hsv(*(float(level) / 255 for level in rgb))[0]

    found = hue(colour)
    # Hues lie on a circle of circumference 1.
    return min(COLOURS, key=lambda name: abs((hue(COLOURS[name]) - found + 0.5) % 1 - 0.5))


def _find_direction(times: np.ndarray, centres: np.ndarray) -> str:
    """Main direction of centroids [T, 2] at frame numbers [T]; '' if they stay where they are."""
    apart = times - times.mean()
    if not apart.any():
        return ""
    moved = apart @ centres / (apart @ apart) * (times[-1] - times[0])
    if np.abs(moved).max() < _LEAST_WAY:
        return ""
    return max(DIRECTIONS, key=lambda name: float(np.dot(DIRECTIONS[name], moved)))
