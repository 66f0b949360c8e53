"""A NumPy renderer of small moving scenes whose motion is known exactly.

A panning and zooming camera looks at a textured plane, over which textured shapes move in straight
lines and spin. Everything is a continuous function of position and time, so a scene can be rendered
at any size and time. Scene ``i`` depends only on ``(seed, i)`` and the number of shapes.

Picture coordinates: y spans [-1, 1] from top to bottom, x spans [-aspect, aspect]. A picture point
p shows the plane's point ``centre(t) + p / zoom(t)``. Time counts frames.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

__all__ = ["Camera", "Scene", "Shape", "background_flow", "make_scene", "render"]

_KINDS = ("disc", "box", "star")


@dataclasses.dataclass(frozen=True)
class Camera:
    """Linear pan and exponential zoom.

    Attributes:
      start: plane point (x, y) at the picture's centre at time 0.
      pan: velocity (x, y) in plane units per frame.
      zoom: magnification at time 0.
      zoom_rate: the magnification grows by ``exp(zoom_rate)`` per frame.
    """

    start: tuple[float, float]
    pan: tuple[float, float]
    zoom: float
    zoom_rate: float

    def at(self, time: float) -> tuple[np.ndarray, float]:
        """(centre [2], zoom) at a time in frames."""
        centre = np.asarray(self.start) + time * np.asarray(self.pan)
        return centre, self.zoom * float(np.exp(self.zoom_rate * time))


@dataclasses.dataclass(frozen=True)
class Shape:
    """One shape on the plane.

    Attributes:
      kind: disc, box or star.
      start: centre (x, y) at time 0, in plane units.
      velocity: plane units per frame (x, y).
      radius: in plane units.
      angle: rotation at time 0, in radians.
      spin: radians per frame.
      colours: the two RGB colours of its stripes, in [0, 1].
      stripes: periods of the stripes across its diameter.
    """

    kind: str
    start: tuple[float, float]
    velocity: tuple[float, float]
    radius: float
    angle: float
    spin: float
    colours: tuple[tuple[float, float, float], tuple[float, float, float]]
    stripes: float

    def centre(self, time: float) -> np.ndarray:
        """Plane point [2] of the shape's centre."""
        return np.asarray(self.start) + time * np.asarray(self.velocity)


@dataclasses.dataclass(frozen=True)
class Scene:
    """Everything in a clip.

    Attributes:
      camera: the camera.
      shapes: back to front.
      colour: mean RGB of the plane, in [0, 1].
      waves: the plane's texture, a sum of sine waves added to ``colour``.
    """

    camera: Camera
    shapes: tuple[Shape, ...]
    colour: np.ndarray
    waves: np.ndarray  # [waves, 6]: fx, fy, phase, amplitude r, g, b


def make_scene(seed: int, index: int, shapes: int = 5) -> Scene:
    """Scene ``index`` of a data set, with one to ``shapes`` shapes (0: none); a pure function."""
    rng = np.random.default_rng([seed, index])

    def uniform(low, high, size=None):
        drawn = rng.uniform(low, high, size)
        return float(drawn) if size is None else tuple(float(v) for v in drawn)

    # The order of the draws is part of every scene: another order would be another data set.
    camera = Camera(
        uniform(-0.3, 0.3, 2), uniform(-0.03, 0.03, 2), uniform(0.8, 1.3), uniform(-0.012, 0.012)
    )
    # Amplitudes fall with frequency, roughly like the spectrum of natural images.
    octaves = np.repeat([0.35, 0.8, 1.8, 4.0], 3)
    direction = rng.uniform(0, 2 * np.pi, octaves.size)
    frequency = octaves * rng.uniform(0.7, 1.4, octaves.size)
    amplitude = rng.normal(0, 0.12, (octaves.size, 3)) * (0.35 / octaves[:, None]) ** 0.45
    waves = np.stack(
        [frequency * np.cos(direction), frequency * np.sin(direction), rng.uniform(0, 1, 12)], 1
    )
    things = []
    for _ in range(int(rng.integers(1, shapes + 1)) if shapes else 0):
        things.append(
            Shape(
                _KINDS[int(rng.integers(len(_KINDS)))],
                uniform(-0.9, 0.9, 2),
                uniform(-0.06, 0.06, 2),
                uniform(0.18, 0.45),
                uniform(0, 2 * np.pi),
                uniform(-0.12, 0.12),
                (uniform(0, 1, 3), uniform(0, 1, 3)),
                uniform(1.0, 3.5),
            )
        )
    colour = rng.uniform(0.25, 0.75, 3)
    return Scene(camera, tuple(things), colour, np.concatenate([waves, amplitude], 1))


def _make_grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Picture coordinates of the pixel centres: x [1, W], y [H, 1]."""
    y = (np.arange(height, dtype=np.float32) + 0.5) * 2 / height - 1
    x = ((np.arange(width, dtype=np.float32) + 0.5) * 2 - width) / height
    return x[None], y[:, None]


def render(scene: Scene, times: Sequence[float], height: int, width: int) -> np.ndarray:
    """Frames at ``times`` (in frames, not necessarily whole) as uint8 [T, height, width, 3]."""
    x, y = _make_grid(height, width)
    video = np.empty((len(times), height, width, 3), np.uint8)
    for number, time in enumerate(times):
        centre, zoom = scene.camera.at(time)
        plane_x = (centre[0] + x / zoom).astype(np.float32)
        plane_y = (centre[1] + y / zoom).astype(np.float32)
        frame = _paint_plane(scene, plane_x, plane_y)
        pixel = 2 / height / zoom  # one pixel's side on the plane
        for shape in scene.shapes:
            _paint(frame, shape, time, plane_x, plane_y, pixel)
        video[number] = np.clip(frame * 255 + 0.5, 0, 255)
    return video


def _paint_plane(scene: Scene, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The plane's colour [H, W, 3] at coordinates ``x`` [1, W] and ``y`` [H, 1].

    ``sin(a + b) = sin a cos b + cos a sin b`` turns the sum over waves into one matrix product.
    """
    turn = np.float32(2 * np.pi)
    fx, fy, phase = (scene.waves[:, k].astype(np.float32) for k in range(3))
    # The phase goes into one of the two terms only, since they are added.
    across = turn * (x.T * fx + phase)  # [W, waves]
    down = turn * (y * fy)  # [H, waves]
    rows = np.concatenate([np.cos(down), np.sin(down)], 1)  # [H, 2 waves]
    columns = np.concatenate([np.sin(across), np.cos(across)], 1)  # [W, 2 waves]
    amplitude = np.tile(scene.waves[:, 3:].astype(np.float32), (2, 1))  # [2 waves, 3]
    # [W, 2 waves, 3] -> [2 waves, W * 3]
    weighted = (columns[:, :, None] * amplitude).transpose(1, 0, 2).reshape(rows.shape[1], -1)
    # [H, 2 waves] @ [2 waves, W * 3] -> [H, W * 3]
    flat = rows @ weighted
    return flat.reshape(len(y), x.shape[1], 3) + scene.colour.astype(np.float32)


def _paint(frame, shape: Shape, time: float, x, y, pixel: float) -> None:
    """Draw one shape over ``frame`` [H, W, 3] in place, with an edge one pixel wide.

    ``pixel`` is the side of a pixel in plane units.
    """
    centre = shape.centre(time)
    # Only the rectangle that the shape can touch is painted. No kind reaches beyond its radius
    # (corners of a box lie at 0.7 * sqrt(2) of it); the rest is for the soft edge.
    reach = shape.radius * 1.05 + pixel
    columns = np.flatnonzero(np.abs(x[0] - centre[0]) < reach)
    rows = np.flatnonzero(np.abs(y[:, 0] - centre[1]) < reach)
    if not columns.size or not rows.size:
        return
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    dx = x[:, box[1]] - np.float32(centre[0])
    dy = y[box[0]] - np.float32(centre[1])
    angle = shape.angle + shape.spin * time
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    u, v = cos * dx + sin * dy, cos * dy - sin * dx  # the shape's own axes
    inside = _compute_depth(shape, u, v)
    cover = np.clip(inside / np.float32(pixel) + 0.5, 0, 1)[..., None]
    first, second = (np.asarray(colour, np.float32) for colour in shape.colours)
    # `stripes` periods over the diameter, 2 * radius.
    mix = (0.5 + 0.5 * np.sin(u * np.float32(2 * np.pi * shape.stripes / shape.radius / 2)))[
        ..., None
    ]
    frame[box] += cover * (first + mix * (second - first) - frame[box])


def _compute_depth(shape: Shape, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Distance to the edge in plane units, positive inside (approximate for the star)."""
    if shape.kind == "box":
        return np.float32(shape.radius * 0.7) - np.maximum(np.abs(u), np.abs(v))
    distance = np.sqrt(u * u + v * v)
    if shape.kind == "disc":
        return np.float32(shape.radius) - distance
    # Five points at the full radius, with dents at 0.56 of it between them.
    wobble = 0.78 + 0.22 * np.cos(5 * np.arctan2(v, u))
    return np.float32(shape.radius) * wobble.astype(np.float32) - distance


def background_flow(scene: Scene, time: float, height: int, width: int) -> np.ndarray:
    """Optical flow of the plane from ``time`` to ``time + 1``: float32 [H, W, 2], pixels (x, y).

    It is exact for pixels that no shape covers at either time.
    """
    x, y = _make_grid(height, width)
    centre, zoom = scene.camera.at(time)
    next_centre, next_zoom = scene.camera.at(time + 1)
    ratio = next_zoom / zoom
    # What is seen at p now is seen at (centre - next_centre) * next_zoom + p * ratio next.
    moved_x = (centre[0] - next_centre[0]) * next_zoom + x * ratio
    moved_y = (centre[1] - next_centre[1]) * next_zoom + y * ratio
    flow = np.empty((height, width, 2), np.float32)
    # One unit of the picture is half its height.
    flow[..., 0] = (moved_x - x) * height / 2
    flow[..., 1] = (moved_y - y) * height / 2
    return flow
