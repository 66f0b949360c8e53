"""What ``--mode=encode`` is going to write: which windows, in which shards, encoded by what.

The plan is a pure function of the clips, the tokenizer and ``config.encode``. It is stored in the
folder of the set, so that a run that resumes there writes the same set, or refuses.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vidlatent.data.buckets import Bucket, assign_clips
from vidlatent.data.frame_rate import FrameRate
from vidlatent.data.index import Clip
from vidlatent.data.latent_set import FORMAT, HEADER, PLAN, Window
from vidlatent.errors import VidlatentError
from vidlatent.files import dump_json, read_json, write_json
from vidlatent.registry import did_you_mean

__all__ = [
    "EncodeOptions",
    "EncodePlan",
    "plan_windows",
    "write_or_check_plan",
]

WINDOWS = ("one", "all", "random")
FLIPS = ("none", "random", "both")
DTYPES = ("float16", "bfloat16", "float32")
_MOST_SHARDS = 1 << 20
_SHARD_BYTES = 128 << 20  # a run that is resumed repeats at most one shard a process


@dataclasses.dataclass(frozen=True)
class EncodeOptions:
    """The keys of ``config.encode`` (``config/defaults/encode.py`` explains them), checked."""

    windows: str
    windows_per_clip: int
    stride: int
    flip: str
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
    low: int
    measure_batches: int
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
        for key, known in (("windows", WINDOWS), ("flip", FLIPS), ("dtype", DTYPES)):
            value = keys[key]
            if value not in known:
                hint = did_you_mean(value, known)
                raise VidlatentError(f"config.encode.{key} {value!r} is unknown: {hint}")
        for key in ("stride", "draws", "shards", "pictures"):
            if keys[key] < 0:
                raise VidlatentError(f"config.encode.{key}={keys[key]}: use 0 or more.")
        if keys["low"] not in (0, 2):
            raise VidlatentError(
                f"config.encode.low={keys['low']}: use 2 to store half sizes, too, or 0."
            )
        if keys["windows_per_clip"] < 1:
            raise VidlatentError(
                f"config.encode.windows_per_clip={keys['windows_per_clip']}: use 1 or more."
            )
        if options.process_count and not 0 <= options.process_index < options.process_count:
            raise VidlatentError(
                f"config.encode.process_index={options.process_index}: use 0 to "
                f"{options.process_count - 1}, one for each of config.encode.process_count."
            )
        return options

    def process(self, index: int, count: int) -> tuple[int, int]:
        """``(index, count)`` of this process: as the config says, else JAX's own, given here."""
        return (self.process_index, self.process_count) if self.process_count else (index, count)


class Place(NamedTuple):
    """A window of the set.

    Attributes:
      bucket: its number.
      row: of its clip.
      first: its first frame in the source.
      flip: mirrored left to right.
    """

    bucket: int
    row: int
    first: int
    flip: bool = False


def plan_windows(
    clips: Sequence[Clip],
    buckets: Sequence[Bucket],
    rate: FrameRate,
    options: EncodeOptions,
    seed: int = 0,
    rule: str = "nearest",
    most: int = 0,
) -> list[Place]:
    """All windows of the set, one bucket after another.

    Args:
      clips: of the index.
      buckets: sizes of windows. A clip goes into one bucket of each length.
      rate: that windows take frames at.
      options: ``windows``, ``windows_per_clip``, ``stride`` and ``flip``.
      seed: of random windows and flips. Those of a clip depend only on it, the clip's name and the
        bucket's size, so that a set with more clips has the same windows of the others.
      rule: ``config.data.bucket_rule``.
      most: ``config.data.max_shapes``.
    """
    stride = options.stride or max(bucket.frames for bucket in buckets)
    places: list[Place] = []
    members = assign_clips(clips, buckets, rate, rule=rule, most=most)
    for number, (bucket, rows) in enumerate(zip(buckets, members, strict=True)):
        size = bucket.frames, bucket.height, bucket.width
        for row in rows:
            info = clips[row].info
            # crc32 is the same in all processes and runs; Python salts its own hash of a string.
            rng = np.random.default_rng([seed, zlib.crc32(clips[row].path.encode()), *size])
            starts, own = rate.count_starts(info, bucket.frames), rate.of(info)
            # In frames of the source, which may have more of them a second.
            step = stride * (info.fps / own if own and info.fps else 1.0)
            firsts = _choose_firsts(options, starts, step, rng)
            for first, drawn in zip(firsts, rng.random(len(firsts)) < 0.5, strict=True):
                # The unmirrored window first: both halves of a pair are in one shard, mostly.
                flips = {"none": (False,), "random": (bool(drawn),), "both": (False, True)}
                places += [Place(number, row, first, flip) for flip in flips[options.flip]]
    return places


def _choose_firsts(
    options: EncodeOptions, starts: int, step: float, rng: np.random.Generator
) -> list[int]:
    """First frames of a clip's windows in the source, of which ``starts`` are possible."""
    if options.windows == "one":
        return [round((starts - 1) / 2)]
    if options.windows == "random":
        # No window twice: a clip with fewer starts than windows gives one at each start.
        count = min(options.windows_per_clip, starts)
        return sorted(int(first) for first in rng.choice(starts, count, replace=False))
    # One more than fits before rounding; it is dropped if it does not fit after.
    firsts = [round(step * k) for k in range(int((starts - 1) / step) + 2)]
    return [first for first in firsts if first < starts]


@dataclasses.dataclass(frozen=True)
class EncodePlan:
    """The windows of a set, divided evenly among its shards in their order."""

    clips: Sequence[Clip]
    buckets: Sequence[Bucket]
    places: Sequence[Place]
    rate: FrameRate
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

    def groups(self, number: int) -> list[tuple[int, list[Place]]]:
        """The windows of a shard in order, ``(number of a bucket, [place, ...])``."""
        groups: list[tuple[int, list[Place]]] = []
        for place in self.shard(number):
            # Windows of a bucket follow each other, so a group fills batches of one shape.
            if not groups or groups[-1][0] != place.bucket:
                groups.append((place.bucket, []))
            groups[-1][1].append(place)
        return groups

    def window(self, place: Place) -> Window:
        clip, size, first = self.clips[place.row], self.buckets[place.bucket], place.first
        return Window(
            clip=clip.path,
            first=first,
            start=first / clip.fps if clip.fps else 0.0,
            frames=size.frames,
            height=size.height,
            width=size.width,
            # A picture has no frame rate.
            fps=0.0 if size.frames == 1 else float(self.rate.of(clip.info) or clip.fps),
            label=clip.label,
            caption=clip.caption,
            group=clip.group,
            part=clip.part,
            flip=place.flip,
        )

    def digest(self) -> str:
        """Hex SHA-256 of all windows with their labels, captions and so on."""
        total = hashlib.sha256()
        for place in self.places:
            fields = dataclasses.asdict(self.window(place))
            if not place.flip:  # left out, so that sets begun before the field existed resume
                del fields["flip"]
            total.update(dump_json(fields).encode())
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
    stored = read_json(file, "delete the folder and encode again")
    before, count = stored.get("made_of"), stored.get("shards")
    if not isinstance(before, dict) or type(count) is not int or not 0 < count <= _MOST_SHARDS:
        raise VidlatentError(f"{file} is damaged: delete the folder and encode again.")
    # What older versions did not know has no say in their sets, as '' has none.
    differs = [name for name in made_of if before.get(name, "") != made_of[name]]
    if asked and stored.get("shards") != asked:
        differs.append("config.encode.shards")
    if differs or stored.get("format") != FORMAT:
        raise VidlatentError(
            f"--output={folder} holds a set that was begun with other settings "
            f"({', '.join(differs) or 'format'}): choose another folder, or delete this one to "
            "start over."
        )
    return count
