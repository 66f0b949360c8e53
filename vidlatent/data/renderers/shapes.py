"""A NumPy renderer of one labelled moving shape, and a reader of such labels.

A flat shape crosses a plain dark picture at constant speed. Its label describes the whole clip,
such as "red square moving left". Clip ``i`` depends only on ``(seed, i)`` and the clip's length,
and can be rendered at any size and time. ``read_label`` finds the label of any such video with the
same geometry; it measures how often a generator follows its condition.

Time counts frames. The shape never touches the picture's border.
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
    """The label of a clip, in words."""
    return f"{colour} {shape} moving {direction}"


_KINDS = tuple(itertools.product(COLOURS, SHAPES, DIRECTIONS))
LABELS = tuple(label_of(*kind) for kind in _KINDS)

# Shapes of radius 1 all have the area of the unit circle. These are half the square's side, the
# distance from the triangle's centre to its edges, and that to its corners, twice as far.
_HALF_SIDE = np.sqrt(np.pi) / 2
_EDGE = np.sqrt(np.pi / np.sqrt(27))
_REACH = 2 * _EDGE


@dataclasses.dataclass(frozen=True)
class ShapeScene:
    """Everything in a clip.

    Attributes:
      colour, shape, direction: what its label says.
      paint, ground: RGB of the shape and of the picture behind it, in [0, 255].
      radius: radius of the circle of the same area, as a fraction of the picture's shorter side.
      start: centre (x, y) at time 0, as fractions of the range in which the shape stays inside.
      speed: fraction of that range per frame, along ``direction``.
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
        """Centre (x, y) in pixels."""
        reach = self.radius * min(height, width) * _REACH + 1.5  # soft edges add a pixel
        way = DIRECTIONS[self.direction]
        x, y = (at + time * self.speed * step for at, step in zip(self.start, way, strict=True))
        return reach + x * (width - 2 * reach), reach + y * (height - 2 * reach)


def make_shape_scene(seed: int, index: int, frames: int) -> ShapeScene:
    """Clip ``index`` of a data set, ``frames`` long; a pure function.

    Clips are labelled in blocks of ``len(LABELS)``, each of which has every label once.
    """
    block, place = divmod(index, len(_KINDS))
    # The last number keeps this stream apart from the one below, where block and index may agree.
    kind = np.random.default_rng([seed, block, 1]).permutation(len(_KINDS))[place]
    colour, shape, direction = _KINDS[kind]
    rng = np.random.default_rng([seed, index, 2])
    bright = rng.uniform(0.85, 1.0)
    travel = rng.uniform(0.6, 1.0)
    ahead = rng.uniform(0, 1 - travel)  # distance of the start from the border behind it
    across = rng.uniform(0, 1)
    x, y = DIRECTIONS[direction]
    # Coordinates grow to the right and downwards, `ahead` grows along the motion.
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
    """Frames at ``times`` (in frames, not necessarily whole) as uint8 [T, height, width, 3]."""
    centres = np.array([scene.centre(time, height, width) for time in times]).reshape(-1, 2)
    radius = scene.radius * min(height, width)
    cover = _compute_cover(scene.shape, centres, radius, height, width)[..., None]
    paint, ground = np.float32(scene.paint), np.float32(scene.ground)
    # uint8 cuts decimals off, so half a level is added to round.
    return np.uint8(ground + cover * (paint - ground) + np.float32(0.5))


def _compute_cover(
    shape: str, centres: np.ndarray, radius: float, height: int, width: int
) -> np.ndarray:
    """Share of each pixel that a shape covers at ``centres`` [T, 2]: [T, H, W] in [0, 1]."""
    x = np.arange(width, dtype=np.float32) + np.float32(0.5) - np.float32(centres)[:, :1]
    y = np.arange(height, dtype=np.float32) + np.float32(0.5) - np.float32(centres)[:, 1:]
    # Offsets from the centre, [T, W] and [T, H] -> [T, 1, W] and [T, H, 1].
    x, y, r = x[:, None, :], y[:, :, None], np.float32(radius)
    if shape == "circle":
        inside = r - np.sqrt(x * x + y * y)
    elif shape == "square":
        inside = r * np.float32(_HALF_SIDE) - np.maximum(np.abs(x), np.abs(y))
    else:  # standing on its base
        # Distances along the normals of the three sides; the two slopes mirror each other.
        slope = np.float32(np.sqrt(0.75)) * np.abs(x) - np.float32(0.5) * y
        inside = r * np.float32(_EDGE) - np.maximum(y + 0 * x, slope)
    return np.clip(inside + np.float32(0.5), 0, 1)


# Chosen for these clips: faint noise is not taken for a shape, nor jitter for a motion.
_LEAST_CONTRAST = 24.0  # least difference of the shape from the background, of 255 levels
_LEAST_WAY = 0.5  # least motion over the clip, in pixels


def read_label(video: np.ndarray) -> tuple[str, str, str]:
    """(colour, shape, direction) of a video uint8 [T, H, W, 3].

    The background is the median pixel; pixels that differ from it are the shape. The colour is the
    nearest hue. For the shape, frames are aligned at their centroids and averaged, and the outline
    that correlates best is taken, out of sharp and blurred ones of about the measured area. The
    direction is that of the straight line fitted to the centroids.

    Returns:
      Names of ``COLOURS``, ``SHAPES`` and ``DIRECTIONS``; '' for what cannot be told, such as all
      three of an empty picture or the direction of a shape that stands still.

    Raises:
      VidlatentError: not ``[T, H, W, 3]``.
    """
    sizes = check_shape(video, "T H W C", C=3)
    pixels = np.asarray(video, np.float32)
    above = pixels - np.median(pixels, axis=(0, 1, 2))
    apart = np.abs(above).max(axis=-1)
    # Not the maximum: a single noisy pixel must not set the scale.
    most = np.quantile(apart, 0.99)
    if most < _LEAST_CONTRAST:
        return "", "", ""
    # Pixels well inside the shape, whose colour is not mixed with the background's.
    core = apart > 0.7 * most
    cover = _sharpen(apart / most)
    area = cover.sum(axis=(1, 2))
    seen = np.flatnonzero(area > 0)
    cover, area = cover[seen], area[seen]
    # Centroids in pixels: [T, H, W] -> [T]
    x = (cover.sum(axis=1) @ (np.arange(sizes["W"]) + 0.5)) / area
    y = (cover.sum(axis=2) @ (np.arange(sizes["H"]) + 0.5)) / area
    centres = np.stack([x, y], axis=1)
    # Project on the shape's colour instead of taking absolute values, so that noise averages out.
    paint = above[core].mean(axis=0)
    # The radius is that of a circle of the median area.
    mean = _average_centred(above[seen] @ paint, centres, float(np.sqrt(np.median(area) / np.pi)))
    shape = max(SHAPES, key=lambda name: float(np.max(_draw_outlines(name) @ mean.ravel())))
    return _find_nearest_hue(pixels[core].mean(axis=0)), shape, _find_direction(seen, centres)


# Outlines are compared on a grid that extends ``_SIDE`` points to each side of the centre, with
# ``_RADIUS`` points per radius of the shape.
_SIDE, _RADIUS = 12, 6
_SIZES = (0.85, 1.0, 1.15)  # radii of outlines, relative to the measured one
_BLURS = (0, 1, 2, 4, 8, 16)  # how often rows and columns are filtered by [1, 2, 1] / 4


def _average_centred(values: np.ndarray, centres: np.ndarray, radius: float) -> np.ndarray:
    """Mean over frames of ``values`` [T, H, W], aligned at ``centres`` [T, 2].

    Values are interpolated linearly between pixels and are zero outside of the picture.

    Returns:
      ``[G, G]`` with ``G = 2 * _SIDE + 1``.
    """
    # - 0.5, because pixel k has its centre at k + 0.5.
    steps = np.arange(-_SIDE, _SIDE + 1) * (radius / _RADIUS) - 0.5

    def shares(at: np.ndarray, size: int) -> np.ndarray:
        # [T, G, size]: share of each pixel in each grid point, by linear interpolation.
        apart = (at[:, None] + steps)[..., None] - np.arange(size)
        return np.clip(1 - np.abs(apart), 0, None)

    _, height, width = values.shape
    rows, columns = shares(centres[:, 1], height), shares(centres[:, 0], width)
    # [T, G, H] @ [T, H, W] @ [T, W, G] -> [T, G, G]
    return (rows @ values @ columns.swapaxes(1, 2)).mean(axis=0)


@functools.cache
def _draw_outlines(shape: str) -> np.ndarray:
    """A shape in all sizes and blurs, as ``_average_centred`` would see it: ``[N, G * G]``.

    Rows have Euclidean norm 1, so that products with them are correlations.
    """
    edge = 2 * _SIDE  # far enough that blurring does not reach the border
    inner = slice(edge - _SIDE, edge + _SIDE + 1)
    centre = np.full((1, 2), edge + 0.5)
    found = []
    for size in _SIZES:
        cover = _compute_cover(shape, centre, size * _RADIUS, 2 * edge + 1, 2 * edge + 1)[0]
        for passes in range(max(_BLURS) + 1):
            if passes in _BLURS:
                found.append(cover[inner, inner].ravel() / np.linalg.norm(cover[inner, inner]))
            for _ in range(2):
                # Filter along the first axis and transpose: twice makes rows and columns.
                around = np.pad(cover, ((1, 1), (0, 0)))
                cover = ((around[:-2] + around[2:]) / 4 + cover / 2).T
    return np.stack(found)


def _sharpen(cover: np.ndarray) -> np.ndarray:
    """Coverage with a steeper edge, which removes faint noise around a decoded shape."""
    return np.clip((cover - 0.2) / 0.6, 0, 1)


def _find_nearest_hue(colour: np.ndarray) -> str:
    def hue(rgb) -> float:
        return colorsys.rgb_to_hsv(*(float(level) / 255 for level in rgb))[0]

    found = hue(colour)
    # Hues lie on a circle of circumference 1.
    return min(COLOURS, key=lambda name: abs((hue(COLOURS[name]) - found + 0.5) % 1 - 0.5))


def _find_direction(times: np.ndarray, centres: np.ndarray) -> str:
    """Main direction of centroids [T, 2] at frame numbers [T]; '' if they hardly move."""
    apart = times - times.mean()
    if not apart.any():
        return ""
    # Slope of the least-squares line through the centroids, times the length of the clip.
    moved = apart @ centres / (apart @ apart) * (times[-1] - times[0])
    if np.abs(moved).max() < _LEAST_WAY:
        return ""
    return max(DIRECTIONS, key=lambda name: float(np.dot(DIRECTIONS[name], moved)))
