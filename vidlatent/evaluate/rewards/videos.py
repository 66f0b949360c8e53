"""The videos of a folder as rewards see them: at their own length, size and frame rate.

Each process reads its share of every batch, and all processes have equally many batches.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vidlatent.data.index import Clip
from vidlatent.data.loader import Loader, make_index, make_loader
from vidlatent.data.stream import Listed
from vidlatent.errors import VidlatentError
from vidlatent.evaluate.compare.draw import CONTACT_SHEET
from vidlatent.spec import FrameRule

__all__ = ["JudgedVideos"]

_ANY = FrameRule(1, 1)


class JudgedVideos:
    """The videos of ``config.data``, in groups of one shape and one frame rate.

    Args:
      data: ``config.data`` as a dict; buckets, frame rate and interval do not matter.
      mesh: of the devices that score them.
      seed: of the run.
      frames: first frames of each that count; 0: all.
      most: videos to score, spread evenly over all; 0: all.
      share: videos that each set of devices works on at a time.

    Attributes:
      where: folder or source.
      clips: the videos that are scored.

    Raises:
      VidlatentError: there is no video.
    """

    def __init__(
        self, data: Mapping[str, Any], mesh: Mesh, *, seed: int, frames: int, most: int, share: int
    ):
        self._data, self._seed, self._frames = _as_they_are(data), seed, frames
        self._batch = share * math.prod(mesh.shape[axis] for axis in ("data", "fsdp"))
        index = make_index(self._data, seed=seed)
        usable = [clip for clip in index.clips if clip.path != CONTACT_SHEET]
        if not usable:
            why = "; ".join(f"{bad.path}: {bad.reason}" for bad in index.bad[:3])
            raise VidlatentError(f"{index.where} holds no video to score{why and f' ({why})'}.")
        count = min(most or len(usable), len(usable))
        chosen = tuple(usable[i * len(usable) // count] for i in range(count))
        self._index = dataclasses.replace(index, clips=chosen)
        self.where, self.clips = index.where, chosen
        self._bad = [(bad.path, bad.reason, bad.detail) for bad in index.bad]

    def prompt_of(self, clip: Clip) -> str:
        """The caption of a video or, without one, the name of its class."""
        return clip.caption or clip.label

    def count_frames(self, clip: Clip) -> int:
        """Frames of a video that are scored."""
        return min(self._frames or clip.frames, clip.frames)

    def batches(self) -> Iterator[tuple[float, dict[str, Any]]]:
        """(frames a second, this process's rows of a batch); the rate is that of the whole batch.

        Rows hold ``video`` uint8 ``[b, T, H, W, 3]``, ``mask``, ``clip`` (place in ``clips``) and
        ``prompt``, a list of texts.
        """
        groups = self._group(range(len(self.clips)))
        with self._open(groups, jax.process_index(), jax.process_count()) as loader:
            for (*_, fps), rows in groups.items():
                for _ in range(-(-len(rows) // self._batch)):
                    yield fps, self._with_prompts(next(loader))
            self._bad += [bad for bad in _list_bad(loader) if bad not in self._bad]

    def read(self, rows: Iterable[int], most: int) -> dict[str, np.ndarray]:
        """Path -> at most so many frames uint8 ``[n, H, W, 3]``, evenly spread; this process alone.

        Args:
          rows: places in ``clips``; one that cannot be read any more is left out.
          most: frames of each.
        """
        found = {}
        with self._open(self._group(rows), 0, 1) as loader:
            for batch in loader:
                for place in np.flatnonzero(batch["mask"]):
                    video = batch["video"][place]
                    picks = np.linspace(0, len(video) - 1, min(most, len(video))).round()
                    path = self.clips[int(batch["clip"][place])].path
                    found[path] = video[picks.astype(int)]
        return found

    def list_bad(self, scored: set[str]) -> list[tuple[str, str, str]]:
        """(path, reason, detail) of the videos that could not be scored, on any process."""
        bad = {row[0]: row for row in self._bad if row[0] != CONTACT_SHEET}
        for clip in self.clips:
            if clip.path not in scored:
                missing = (clip.path, "unreadable", "another process could not decode it")
                bad.setdefault(clip.path, missing)
        return [bad[path] for path in sorted(bad)]

    def _group(self, rows: Iterable[int]) -> dict[tuple[int, int, int, float], list[int]]:
        """(frames, height, width, frames a second) -> the videos that are so."""
        groups: dict[tuple[int, int, int, float], list[int]] = {}
        for row in rows:
            clip = self.clips[row]
            groups.setdefault((self.count_frames(clip), *clip.size, clip.fps), []).append(row)
        return groups

    def _open(
        self, groups: Mapping[tuple[int, int, int, float], list[int]], process: int, count: int
    ) -> Loader:
        shapes = list(dict.fromkeys(key[:3] for key in groups))
        # From the first frame of each video.
        listed = [
            (shapes.index(key[:3]), [(row, 0) for row in rows]) for key, rows in groups.items()
        ]
        return make_loader(
            self._data | {"buckets": tuple((*shape, self._batch) for shape in shapes)},
            split="whole",
            rule=_ANY,
            seed=self._seed,
            index=self._index,
            windows=Listed(listed),
            process_index=process,
            process_count=count,
        )

    def _with_prompts(self, batch: dict[str, Any]) -> dict[str, Any]:
        # What stands in for a video that is missing has a prompt that every reward accepts.
        clips = [self.clips[max(row, 0)] for row in batch["clip"]]
        prompts = [self.prompt_of(clip) for clip in clips]
        return batch | {"prompt": prompts}


def _list_bad(loader: Loader) -> list[tuple[str, str, str]]:
    return [(bad.path, bad.reason, bad.detail) for bad in loader.report.clips]


def _as_they_are(data: Mapping[str, Any]) -> dict[str, Any]:
    """``data`` without what would change a video."""
    data = dict(data)
    if data["path"] and data["source"] != "tfds":
        data["source"] = "folder"  # a path given for scoring is one of videos
    data |= {"bucket_weights": (), "length_weights": (), "max_shapes": 0}
    return data | {"fps": 0.0, "frame_interval": 1, "flip": False, "bad_clip_budget": 1.0}
