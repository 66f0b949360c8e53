"""What ``--mode=encode`` is going to write: which windows, in which shards, encoded by what.

The plan is a pure function of the clips, the tokenizer and ``config.encode``. It is stored in the
folder of the set, so that a run that resumes there writes the same set, or refuses.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vidlatent.checkpoint.layout import nested
from vidlatent.data.buckets import Bucket, assign_clips
from vidlatent.data.index import Clip
from vidlatent.data.latent_set import FORMAT, HEADER, PLAN, Window, read_json
from vidlatent.errors import VidlatentError
from vidlatent.files import dump_json, write_json
from vidlatent.registry import did_you_mean

__all__ = [
    "EncodeOptions",
    "EncodePlan",
    "hash_params",
    "plan_windows",
    "write_or_check_plan",
]

WINDOWS = ("one", "all")
DTYPES = ("float16", "bfloat16", "float32")
_SHARD_BYTES = 128 << 20  # a run that is resumed repeats at most one shard a process


@dataclasses.dataclass(frozen=True)
class EncodeOptions:
    """The keys of ``config.encode`` (``config/defaults/encode.py`` explains them), checked."""

    windows: str
    stride: int
    dtype: str
    draws: int
    chunks: tuple[int, ...]
    shards: int
    text: str
    text_network: str
    tokenizer: str
    image: str
    content: str
    content_draw: bool
    pictures: int
    process_index: int
    process_count: int

    @classmethod
    def of(cls, keys: Mapping[str, Any]) -> EncodeOptions:
        """From ``config.encode``.

        Raises:
          VidlatentError: a value is illegal; the message names its key.
        """
        options = cls(**keys)
        for key, known in (("windows", WINDOWS), ("dtype", DTYPES)):
            value = keys[key]
            if value not in known:
                hint = did_you_mean(value, known)
                raise VidlatentError(f"config.encode.{key} {value!r} is unknown: {hint}")
        for key in ("stride", "draws", "shards", "pictures"):
            if keys[key] < 0:
                raise VidlatentError(f"config.encode.{key}={keys[key]}: use 0 or more.")
        if options.process_count and not 0 <= options.process_index < options.process_count:
            raise VidlatentError(
                f"config.encode.process_index={options.process_index}: use 0 to "
                f"{options.process_count - 1}, one for each of config.encode.process_count."
            )
        return options

    def process(self, index: int, count: int) -> tuple[int, int]:
        """``(index, count)`` of this process: as the config says, else JAX's own, given here."""
        return (self.process_index, self.process_count) if self.process_count else (index, count)


# A window: number of its bucket, row of its clip, first frame in the source.
Place = tuple[int, int, int]


def plan_windows(
    clips: Sequence[Clip],
    buckets: Sequence[Bucket],
    fps: float,
    windows: str,
    stride: int,
    rule: str = "nearest",
    most: int = 0,
) -> list[Place]:
    """All windows of the set, one bucket after another.

    Args:
      clips: of the index.
      buckets: sizes of windows. A clip goes into one bucket of each length.
      fps: rate of the windows; 0: that of each clip.
      windows: ``'one'``: the middle of each clip; ``'all'``: one every ``stride`` frames from the
        beginning on.
      stride: frames at the rate of the windows; 0: the length of the longest bucket.
      rule: ``config.data.bucket_rule``.
      most: ``config.data.max_shapes``.
    """
    stride = stride or max(bucket.frames for bucket in buckets)
    places: list[Place] = []
    members = assign_clips(clips, buckets, fps, rule=rule, most=most)
    for number, (bucket, rows) in enumerate(zip(buckets, members, strict=True)):
        for row in rows:
            info = clips[row].info
            last = info.starts(bucket.frames, fps) - 1
            if windows == "one":
                places.append((number, row, round(last / 2)))
                continue
            # In frames of the source, which may have more of them a second.
            step = stride * (info.fps / fps if fps and info.fps else 1.0)
            # One more than fits before rounding; the next line drops it if it does not fit after.
            firsts = [round(step * k) for k in range(int(last / step) + 2)]
            places += [(number, row, first) for first in firsts if first <= last]
    return places


@dataclasses.dataclass(frozen=True)
class EncodePlan:
    """The windows of a set, divided evenly among its shards in their order."""

    clips: Sequence[Clip]
    buckets: Sequence[Bucket]
    places: Sequence[Place]
    fps: float
    shards: int

    def files(self) -> list[str]:
        return [
            f"part-{shard:05d}-of-{self.shards:05d}.array_record" for shard in range(self.shards)
        ]

    def shard(self, number: int) -> Sequence[Place]:
        """Windows of a shard."""
        total = len(self.places)
        # Whole numbers spread the remainder: no two shards differ by more than one window.
        return self.places[number * total // self.shards : (number + 1) * total // self.shards]

    def groups(self, number: int) -> list[tuple[int, list[tuple[int, int]]]]:
        """The windows of a shard, ``(number of a bucket, [(row, first frame), ...])`` in order."""
        groups: list[tuple[int, list[tuple[int, int]]]] = []
        for bucket, row, first in self.shard(number):
            # Windows of a bucket follow each other, so a group fills batches of one shape.
            if not groups or groups[-1][0] != bucket:
                groups.append((bucket, []))
            groups[-1][1].append((row, first))
        return groups

    def window(self, bucket: int, row: int, first: int) -> Window:
        clip, size = self.clips[row], self.buckets[bucket]
        return Window(
            clip=clip.path,
            first=first,
            start=first / clip.fps if clip.fps else 0.0,
            frames=size.frames,
            height=size.height,
            width=size.width,
            # A picture has no frame rate.
            fps=0.0 if size.frames == 1 else float(self.fps or clip.fps),
            label=clip.label,
            caption=clip.caption,
            group=clip.group,
            part=clip.part,
        )

    def digest(self) -> str:
        """Hex SHA-256 of all windows with their labels, captions and so on."""
        total = hashlib.sha256()
        for place in self.places:
            total.update(dump_json(dataclasses.asdict(self.window(*place))).encode())
        return total.hexdigest()


def hash_params(params: Any) -> str:
    """Hex SHA-256 of parameters: their names, dtypes, shapes and values."""
    total = hashlib.sha256()

    def add(tree: Mapping[str, Any], name: str) -> None:
        for key in sorted(tree):
            if isinstance(tree[key], Mapping):
                add(tree[key], f"{name}/{key}")
                continue
            leaf = np.ascontiguousarray(tree[key])
            total.update(f"{name}/{key} {leaf.dtype} {leaf.shape} ".encode())
            total.update(leaf.tobytes())

    add(nested(params), "")
    return total.hexdigest()


def choose_shard_count(asked: int, windows: int, window_bytes: int, processes: int) -> int:
    """Number of shards: ``asked``, or enough that shards are small and every process has some."""
    wanted = asked or max(processes, -(-windows * window_bytes // _SHARD_BYTES))
    return max(1, min(wanted, windows))


def write_or_check_plan(folder: Path, made_of: Mapping[str, Any], shards: int, asked: int) -> int:
    """Write the plan into the folder of the set, or check that the stored one is the same.

    Args:
      folder: of the set; made here, so that an encoding that is refused leaves no empty one.
      made_of: everything that the content depends on, by name.
      shards: of a new set.
      asked: number of shards that the user asked for; 0: any.

    Returns:
      The number of shards of the set.

    Raises:
      VidlatentError: the folder holds another set.
    """
    # Through JSON, so that it equals what is read back: tuples become lists.
    file, made_of = folder / PLAN, json.loads(dump_json(made_of))
    if not file.is_file():
        if (folder / HEADER).exists():
            raise VidlatentError(f"--output={folder} holds a {HEADER} already: choose another.")
        folder.mkdir(parents=True, exist_ok=True)
        write_json(file, {"format": FORMAT, "shards": shards, "made_of": made_of})
        return shards
    stored = read_json(os.fspath(file))
    before = stored.get("made_of", {})
    differs = [name for name in made_of if before.get(name) != made_of[name]]
    if asked and stored.get("shards") != asked:
        differs.append("config.encode.shards")
    if differs or stored.get("format") != FORMAT:
        raise VidlatentError(
            f"--output={folder} holds a set that was begun with other settings "
            f"({', '.join(differs) or 'format'}): choose another folder, or delete this one to "
            "start over."
        )
    return int(stored["shards"])
