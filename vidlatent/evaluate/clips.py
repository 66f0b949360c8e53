"""The clips of a folder that are scored: one window of each, as the loader reads them.

Every process reads its share of each batch, and all processes have equally many batches.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from vidlatent.data.loader import Loader, make_index, make_loader
from vidlatent.data.stream import OneEach
from vidlatent.spec import FrameRule

__all__ = ["ScoredClips"]


class ScoredClips:
    """The clips of ``config.data``, each a window as a protocol wants it.

    Args:
      data: ``config.data`` as a dict.
      mesh: of the devices that score them.
      seed: of the run.
      frames: window lengths; of each clip the longest that it fills is taken.
      rule: lengths that are allowed.
      size: height and width.
      place: where in a clip its window lies: 0 for the first frames, 0.5 for the middle ones.
      fps: frame rate of the windows; 0: each file's own.
      resize: as ``config.data.resize``.
      interval: every so manyth frame is taken.
      most: clips to score, spread evenly over all; 0: all.
      share: clips that each set of devices works on at a time.

    Attributes:
      where: folder or source.
      rows: name of each usable clip -> its number.
      wanted: numbers of those to score.
      captions: of the usable clips, by number, or the names of their classes; '' for none.

    Raises:
      VidlatentError: there is no clip that fills a window.
    """

    def __init__(
        self,
        data: Mapping[str, Any],
        mesh: Mesh,
        *,
        seed: int,
        frames: tuple[int, ...],
        rule: FrameRule,
        size: tuple[int, int],
        place: float,
        fps: float,
        resize: str,
        interval: int = 1,
        most: int = 0,
        share: int = 1,
    ):
        data = dict(data)
        if data["path"] and data["source"] != "tfds":
            data["source"] = "folder"  # a path given for scoring is one of videos
        # By default one clip for each set of devices that works on a clip together: at published
        # sizes it fills their memory.
        batch = share * math.prod(mesh.shape[axis] for axis in ("data", "fsdp"))
        data["buckets"] = tuple((count, *size, batch) for count in frames)
        # The config's own weights belong to the buckets that were replaced above.
        data["bucket_weights"] = data["length_weights"] = ()
        data["fps"], data["resize"], data["frame_interval"] = fps, resize, interval
        self._make = functools.partial(
            make_loader,
            data,
            split="whole",
            rule=rule,
            seed=seed,
            index=make_index(data, seed=seed),
        )
        self._place = place
        # Only to learn which clips fill a window: nothing is decoded.
        with self.open(None) as loader:
            self.where = loader.report.where
            self.rows = {clip.path: row for row, clip in enumerate(loader.index)}
            self.captions = [clip.caption or clip.label for clip in loader.index]
        count = len(self.rows)
        chosen = min(most or count, count)
        # Evenly spread over all clips.
        self.wanted = sorted({i * count // chosen for i in range(chosen)})

    def open(self, rows: Collection[int] | None, *, alone: bool = False) -> Loader:
        """The loader of some clips, or of all; ``alone``: this process reads every one of them."""
        index, count = (0, 1) if alone else (jax.process_index(), jax.process_count())
        windows = OneEach(self._place, rows)
        return self._make(windows=windows, process_index=index, process_count=count)

    def list_bad(self, loader: Loader, scored: Collection[str]) -> list[tuple[str, str, str]]:
        """(path, reason, detail) of the clips that could not be scored, on any process."""
        bad = {bad.path: (bad.path, bad.reason, bad.detail) for bad in loader.report.clips}
        wanted = set(self.wanted)
        for path, row in self.rows.items():
            if row in wanted and path not in scored:
                bad.setdefault(path, (path, "unreadable", "another process could not decode it"))
        return [bad[path] for path in sorted(bad)]
