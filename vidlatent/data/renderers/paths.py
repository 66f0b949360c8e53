"""A renderer of textures and shapes whose motion is set in pixels a frame, in numpy.

Two panning textures of sine waves lie under shapes that cover each other. Shapes sway on bounded
smooth paths or, with ``turns``, fly straight and change direction abruptly, which no interpolation
can foresee. Everything is a continuous function of place and time, so any frame rate is exact;
scene ``i`` depends on ``(seed, i)`` and the size alone. A height of one pixel gives moving lines.

Time counts frames of the nominal rate; lengths are pixels, x to the right and y down.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

__all__ = ["PathScene", "Track", "make_path_scene", "render_paths"]

_WAVES = 3  # of each texture
_TURN = np.float32(2 * np.pi)


@dataclasses.dataclass(frozen=True)
class Track:
    """Where a shape's centre is along one axis.

    Attributes:
      times, places: corners of a path of straight pieces, reflected at the picture's borders;
        empty for a shape that sways.
      centre, reach, rate, phase: ``centre + reach * sin(rate * time + phase)``.
      size: of the picture along this axis; 1: nothing moves.
    """

    size: int
    centre: float = 0.0
    reach: float = 0.0
    rate: float = 0.0
    phase: float = 0.0
    times: tuple[float, ...] = ()
    places: tuple[float, ...] = ()

    def at(self, time: np.ndarray) -> np.ndarray:
        """Place at each time, float32."""
        if self.size == 1:
            return np.zeros(len(time), np.float32)
        if not self.times:
            return np.float32(self.centre + self.reach * np.sin(self.rate * time + self.phase))
        place = np.mod(np.interp(time, self.times, self.places), 2 * self.size)
        return np.float32(np.minimum(place, 2 * self.size - place))


@dataclasses.dataclass(frozen=True)
class PathScene:
    """Everything in a clip.

    Attributes:
      height, width: pixels.
      colour: mean RGB in [0, 1].
      waves: ``[n, 7]``: cycles a pixel in x and y and a frame, phase in cycles, RGB amplitude.
      shapes: of each, back to front: tracks in x and y, radius, two colours, and its own wave
        (cycles a pixel in x and y, phase).
    """

    height: int
    width: int
    colour: np.ndarray
    waves: np.ndarray
    shapes: tuple[tuple[Track, Track, float, np.ndarray, np.ndarray], ...]


def make_path_scene(
    seed: int,
    index: int,
    size: tuple[int, int],
    shapes: int,
    speed: float,
    turns: float = 0.0,
    frames: int = 0,
) -> PathScene:
    """Scene ``index`` of a data set; a pure function.

    Args:
      size: (height, width) in pixels.
      shapes: number of shapes.
      speed: root mean square speed of textures and shapes along each axis, pixels a frame.
      turns: abrupt changes of direction of each shape, a frame on average; 0: smooth paths.
      frames: times up to here have turns.
    """
    rng = np.random.default_rng([seed, index])
    height, width = size
    moving = np.array([width > 1, height > 1])
    count = 2 * _WAVES
    direction = rng.uniform(0, 2 * np.pi, count)
    cycles = 1.0 / np.exp(rng.uniform(np.log(6.0), np.log(32.0), count))
    where = np.stack([np.cos(direction), np.sin(direction)], 1) if height > 1 else np.eye(2)[[0]]
    where = where * cycles[:, None] * moving
    pan = rng.normal(0, speed, (2, 2)) * moving  # of each texture: they slide over each other
    rate = -np.sum(where * np.repeat(pan, _WAVES, 0), 1, keepdims=True)
    waves = [where, rate, rng.uniform(0, 1, (count, 1)), rng.normal(0, 0.09, (count, 3))]
    extent = (width, height)
    drawn = []
    for _ in range(shapes):
        tracks = [_make_track(rng, n, speed, turns, frames) for n in extent]
        radius = float(rng.uniform(0.08, 0.18) * width)
        angle = rng.uniform(0, 2 * np.pi)
        own = rng.uniform(0.06, 0.16) * (np.array([np.cos(angle), np.sin(angle)]) * moving)
        if height == 1:
            own[0] = rng.uniform(0.06, 0.16)
        colours = rng.uniform(0, 1, (2, 3)).astype(np.float32)
        drawn.append((*tracks, radius, colours, np.array([*own, rng.uniform(0, 1)], np.float32)))
    colour = rng.uniform(0.3, 0.7, 3).astype(np.float32)
    return PathScene(
        height, width, colour, np.concatenate(waves, 1).astype(np.float32), tuple(drawn)
    )


def _make_track(
    rng: np.random.Generator, size: int, speed: float, turns: float, frames: int
) -> Track:
    if turns:
        number = rng.poisson(turns * frames) if size > 1 else 0
        times = np.concatenate([[0.0], np.sort(rng.uniform(0, frames, number)), [frames]])
        steps = np.diff(times) * rng.normal(0, speed, number + 1)
        places = rng.uniform(0, size) + np.concatenate([[0.0], np.cumsum(steps)])
        return Track(size, times=tuple(times.tolist()), places=tuple(places.tolist()))
    reach = rng.uniform(0.1, 0.35) * size
    rate = np.sqrt(2) * speed / reach * rng.uniform(0.6, 1.4)
    centre = rng.uniform(0.15, 0.85) * size
    return Track(size, *(float(v) for v in (centre, reach, rate, rng.uniform(0, 2 * np.pi))))


def render_paths(scene: PathScene, times: Sequence[float]) -> np.ndarray:
    """Frames at ``times`` (in frames, any real numbers) as uint8 ``[T, height, width, 3]``."""
    moments = np.asarray(times, np.float64)
    x = np.arange(scene.width, dtype=np.float32) + np.float32(0.5)
    y = (np.arange(scene.height, dtype=np.float32) + np.float32(0.5))[:, None]
    w = scene.waves
    # The angle is reduced in double precision before the sine: times may be large.
    begin = np.mod(moments[:, None] * w[:, 2].astype(np.float64) + w[:, 3], 1).astype(np.float32)
    place = x[..., None] * w[:, 0] + (y[..., None] * w[:, 1] if scene.height > 1 else 0)
    place = np.broadcast_to(place, (scene.height, scene.width, len(w)))
    values = np.sin(_TURN * (begin[:, None, None] + place))
    video = scene.colour + values @ w[:, 4:]
    for across, down, radius, colours, own in scene.shapes:
        dx = x - across.at(moments)[:, None, None]
        dy = y - down.at(moments)[:, None, None] if scene.height > 1 else np.float32(0)
        distance = np.abs(dx) if scene.height == 1 else np.sqrt(dx * dx + dy * dy)
        cover = np.clip(np.float32(radius) - distance + np.float32(0.5), 0, 1)[..., None]
        mix = 0.5 + 0.5 * np.sin(_TURN * (own[0] * dx + own[1] * dy + own[2]))[..., None]
        video += cover * (colours[0] + mix * (colours[1] - colours[0]) - video)
    return np.clip(video * 255 + 0.5, 0, 255).astype(np.uint8)
