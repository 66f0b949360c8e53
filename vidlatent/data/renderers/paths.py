"""A NumPy renderer of textures and shapes with a motion speed in pixels per frame.

The background is the sum of two panning textures of sine waves; shapes move over it and cover each
other. Shapes sway on bounded smooth paths or, with ``turns``, fly straight and change direction
abruptly, so that interpolation between frames cannot predict them. Everything is a continuous
function of position and time, so frames are exact at any frame rate. Scene ``i`` depends only on
``(seed, i)`` and the arguments. With a height of one pixel, videos are moving lines.

Time counts frames at the nominal rate. Lengths are in pixels, x to the right and y down.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

__all__ = ["PathScene", "Track", "make_path_scene", "render_paths"]

_WAVES = 3  # sine waves per texture
_TURN = np.float32(2 * np.pi)


@dataclasses.dataclass(frozen=True)
class Track:
    """Position of a shape's centre along one axis.

    Attributes:
      size: size of the picture along this axis in pixels; with 1 nothing moves.
      centre, reach, rate, phase: for a swaying shape,
        ``centre + reach * sin(rate * time + phase)``.
      times, places: corners of a piecewise straight path, reflected at the picture's borders; empty
        for a swaying shape.
    """

    size: int
    centre: float = 0.0
    reach: float = 0.0
    rate: float = 0.0
    phase: float = 0.0
    times: tuple[float, ...] = ()
    places: tuple[float, ...] = ()

    def at(self, time: np.ndarray) -> np.ndarray:
        """Position in pixels at each of ``time`` ``[T]``, float32 ``[T]``."""
        if self.size == 1:
            return np.zeros(len(time), np.float32)
        if not self.times:
            return np.float32(self.centre + self.reach * np.sin(self.rate * time + self.phase))
        # Reflected at both borders, a straight path becomes a triangle wave of period 2 * size.
        place = np.mod(np.interp(time, self.times, self.places), 2 * self.size)
        return np.float32(np.minimum(place, 2 * self.size - place))


@dataclasses.dataclass(frozen=True)
class PathScene:
    """Everything in a clip.

    Attributes:
      height, width: pixels.
      colour: mean RGB in [0, 1].
      waves: ``[n, 7]``: cycles per pixel in x and in y, cycles per frame, phase in cycles, and RGB
        amplitude.
      shapes: back to front; each is its tracks in x and y, radius, two colours ``[2, 3]``, and the
        wave that mixes them (cycles per pixel in x and y, phase in cycles).
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
    """Scene ``index`` of a data set; a pure function of its arguments.

    Args:
      seed: seed of the data set.
      index: number of the scene.
      size: (height, width) in pixels.
      shapes: number of shapes.
      speed: root mean square speed of textures and shapes along each axis, in pixels per frame.
      turns: mean number of abrupt turns per shape and frame; 0 gives smooth paths.
      frames: turns happen at times from 0 to ``frames``.
    """
    rng = np.random.default_rng([seed, index])
    height, width = size
    # Along an axis of one pixel nothing moves and no texture varies.
    moving = np.array([width > 1, height > 1])
    count = 2 * _WAVES
    direction = rng.uniform(0, 2 * np.pi, count)
    # Wavelengths of 6 to 32 pixels, uniform in their logarithm.
    cycles = 1.0 / np.exp(rng.uniform(np.log(6.0), np.log(32.0), count))
    # [waves, 2]: cycles per pixel in x and y; in a line along x alone.
    where = np.stack([np.cos(direction), np.sin(direction)], 1) if height > 1 else np.eye(2)[[0]]
    where = where * cycles[:, None] * moving
    pan = rng.normal(0, speed, (2, 2)) * moving  # one per texture, so they slide over each other
    # A wave of frequency f that moves by v per frame changes its phase by -f . v cycles.
    rate = -np.sum(where * np.repeat(pan, _WAVES, 0), 1, keepdims=True)
    # Columns of PathScene.waves, [waves, 2 + 1 + 1 + 3].
    waves = [where, rate, rng.uniform(0, 1, (count, 1)), rng.normal(0, 0.09, (count, 3))]
    extent = (width, height)
    drawn = []
    for _ in range(shapes):
        tracks = [_make_track(rng, n, speed, turns, frames) for n in extent]
        radius = float(rng.uniform(0.08, 0.18) * width)
        angle = rng.uniform(0, 2 * np.pi)
        own = rng.uniform(0.06, 0.16) * (np.array([np.cos(angle), np.sin(angle)]) * moving)
        # A direction across the line would leave the shape without a pattern.
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
        # Each straight piece between two turns has a velocity of its own.
        steps = np.diff(times) * rng.normal(0, speed, number + 1)
        places = rng.uniform(0, size) + np.concatenate([[0.0], np.cumsum(steps)])
        return Track(size, times=tuple(times.tolist()), places=tuple(places.tolist()))
    reach = rng.uniform(0.1, 0.35) * size
    # reach * sin(rate * t) has a root mean square speed of reach * rate / sqrt(2).
    rate = np.sqrt(2) * speed / reach * rng.uniform(0.6, 1.4)
    centre = rng.uniform(0.15, 0.85) * size
    return Track(size, *(float(v) for v in (centre, reach, rate, rng.uniform(0, 2 * np.pi))))


def render_paths(scene: PathScene, times: Sequence[float]) -> np.ndarray:
    """Frames at ``times`` (in frames, not necessarily whole) as uint8 ``[T, H, W, 3]``."""
    moments = np.asarray(times, np.float64)
    x = np.arange(scene.width, dtype=np.float32) + np.float32(0.5)
    y = (np.arange(scene.height, dtype=np.float32) + np.float32(0.5))[:, None]
    w = scene.waves
    # Reduce the phase modulo one cycle in float64 first, because times may be large.
    begin = np.mod(moments[:, None] * w[:, 2].astype(np.float64) + w[:, 3], 1).astype(np.float32)
    # Phase at each pixel, [H, W, waves]; with time [T, H, W, waves].
    place = x[..., None] * w[:, 0] + (y[..., None] * w[:, 1] if scene.height > 1 else 0)
    place = np.broadcast_to(place, (scene.height, scene.width, len(w)))
    values = np.sin(_TURN * (begin[:, None, None] + place))
    video = scene.colour + values @ w[:, 4:]
    for across, down, radius, colours, own in scene.shapes:
        dx = x - across.at(moments)[:, None, None]
        dy = y - down.at(moments)[:, None, None] if scene.height > 1 else np.float32(0)
        distance = np.abs(dx) if scene.height == 1 else np.sqrt(dx * dx + dy * dy)
        # 1 inside the shape, 0 outside, and a ramp of one pixel across the edge.
        cover = np.clip(np.float32(radius) - distance + np.float32(0.5), 0, 1)[..., None]
        mix = 0.5 + 0.5 * np.sin(_TURN * (own[0] * dx + own[1] * dy + own[2]))[..., None]
        video += cover * (colours[0] + mix * (colours[1] - colours[0]) - video)
    # astype cuts decimals off, so half a level is added to round.
    return np.clip(video * 255 + 0.5, 0, 255).astype(np.uint8)
