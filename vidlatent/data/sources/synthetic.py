"""``data.source = 'synthetic'``: clips that ``data/renderers`` draw, the same on every machine."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from vidlatent.data.options import DataOptions, SyntheticOptions
from vidlatent.data.renderers import paths, scenes, shapes
from vidlatent.data.sources.base import Entry
from vidlatent.errors import VidlatentError
from vidlatent.media.errors import Limits
from vidlatent.media.probe import ClipInfo
from vidlatent.media.transforms import CENTRE, place

__all__ = ["PathsSource", "ShapesSource", "SyntheticSource", "make"]


class SyntheticSource:
    """A camera over a textured plane with moving shapes (``renderers.scenes``).

    Clip ``i`` depends on ``(seed, i)`` alone.
    """

    where = "the synthetic renderer"
    cacheable = False

    def __init__(self, options: SyntheticOptions, seed: int):
        if options.clips < 1 or options.frames < 1:
            raise VidlatentError("data.synthetic needs at least one clip of one frame.")
        self.options, self.seed = options, seed

    def entries(self) -> list[Entry]:
        # What an index cache knows of these clips holds for this seed and these options alone.
        text = f"{self.seed} {self.options}"
        stamp = (int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big"),)
        names = [f"scene-{i:06d}" for i in range(self.options.clips)]
        return [Entry(name, name, stamp) for name in names]

    def probe(self, name: str, limits: Limits) -> ClipInfo:
        o = self.options
        limits.check_size(o.height, o.width)
        return ClipInfo(name, o.frames, o.fps, o.width, o.height, o.frames / o.fps, False)

    def verify(self, name: str, limits: Limits) -> None:
        pass  # what is drawn cannot be damaged

    def labels(self) -> tuple[str, ...]:
        return ()

    def describe(self, name: str) -> tuple[str, str]:
        del name
        return "", ""

    def scene(self, name: str) -> Any:  # each renderer has its own class
        """What a clip shows: camera and shapes with their motion."""
        index = int(name.rpartition("-")[2])
        return scenes.make_scene(self.seed, index, self.options.shapes)

    def read(self, info, start, count, fps, size, crop, limits):
        del crop, limits  # drawn at the size asked for: nothing to cut off
        # Seconds to frames of the nominal rate, in which renderers count time.
        step = info.fps / fps if fps else 1.0
        times = start * info.fps + step * np.arange(count)
        height, width = size or (info.height, info.width)
        return scenes.render(self.scene(info.path), times, height, width)


class PathsSource(SyntheticSource):
    """Textures and shapes that move on paths (``renderers.paths``), exact at any frame rate.

    Drawing is cheap, but reading from memory is cheaper still: a set that fits is kept at its
    nominal frame rate, and a lower rate that divides it takes every n-th frame.
    """

    where = "the renderer of paths"
    cacheable = True

    def scene(self, name: str) -> paths.PathScene:
        o, index = self.options, int(name.rpartition("-")[2])
        size = (o.height, o.width)
        return paths.make_path_scene(self.seed, index, size, o.shapes, o.speed, o.turns, o.frames)

    def read(self, info, start, count, fps, size, crop, limits):
        del limits
        step = info.fps / fps if fps else 1.0
        times = start * info.fps + step * np.arange(count)
        video = paths.render_paths(self.scene(info.path), times)
        return video[(slice(None), *self._find_crop(info, size, crop))]

    def read_all(self, info, size, limits):
        del limits
        # For its check alone: nothing is cut yet.
        self._find_crop(info, size, CENTRE)
        video = paths.render_paths(self.scene(info.path), np.arange(info.frames))
        return np.arange(info.frames) / info.fps, video

    @staticmethod
    def _find_crop(info, size, crop) -> tuple[slice, slice]:
        spot = place(info.height, info.width, size, crop)
        if (spot.height, spot.width) != (info.height, info.width):
            raise VidlatentError(
                f"data.buckets of {size[0]}x{size[1]} would scale the rendered paths, whose speed "
                "is in pixels: set data.synthetic.height and width so that one of them fits."
            )
        return spot.slices


class ShapesSource(SyntheticSource):
    """One moving shape with a label (``renderers.shapes``), which is the caption too."""

    where = "the renderer of shapes"

    def scene(self, name: str) -> shapes.ShapeScene:
        index = int(name.rpartition("-")[2])
        return shapes.make_shape_scene(self.seed, index, self.options.frames)

    def labels(self) -> tuple[str, ...]:
        return shapes.LABELS

    def describe(self, name: str) -> tuple[str, str]:
        return (self.scene(name).label,) * 2

    def read(self, info, start, count, fps, size, crop, limits):
        del crop, limits  # drawn at the size asked for: nothing to cut off
        step = info.fps / fps if fps else 1.0
        times = start * info.fps + step * np.arange(count)
        return shapes.render_shape(
            self.scene(info.path), times, *(size or (info.height, info.width))
        )


_RENDERERS = {"scenes": SyntheticSource, "paths": PathsSource, "shapes": ShapesSource}


def make(options: DataOptions, seed: int) -> SyntheticSource:
    """The renderer that ``data.synthetic.kind`` names, with its clips drawn from ``seed``."""
    return _RENDERERS[options.synthetic.kind](options.synthetic, seed)
