"""The Grain graph: an order of clips, a draw for each position, decoded windows, batches.

Seeds. Each bucket has a seed of its own, because streams with the same seed would draw the same at
every position. Random numbers are attached to positions before the positions are divided among
processes: process ``p`` of ``n`` reads positions p, p+n, ... of one global stream. So all
processes together read the same windows for any ``n``, and no window twice.

Errors. An exception inside a Grain map ends the stream for good, so ``ClipError`` is caught where
a window is read. The position then gets another draw, which depends on the same random number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import NamedTuple

import grain
import numpy as np

from vidlatent.data.buckets import Bucket, assign_clips
from vidlatent.data.clip_cache import ClipCache
from vidlatent.data.frame_rate import FrameRate
from vidlatent.data.index import Clip
from vidlatent.data.sources import Source
from vidlatent.data.sources.latents import LatentSource
from vidlatent.data.sources.pairs import PairSource
from vidlatent.files import dump_json
from vidlatent.media.decode import cut_window
from vidlatent.media.errors import ClipError, Limits, named_errors
from vidlatent.media.transforms import CENTRE, random_box

__all__ = [
    "LatentReading",
    "Listed",
    "OneEach",
    "PairReading",
    "Reading",
    "train_stream",
    "validation_stream",
    "validation_windows",
    "whole_windows",
]

_ATTEMPTS = 16  # draws at a position before it is left empty


@dataclasses.dataclass(frozen=True)
class Reading:
    """How windows are read: the same for every bucket."""

    source: Source
    clips: tuple[Clip, ...]
    rate: FrameRate
    crop: str
    flip: bool
    limits: Limits
    cache: ClipCache | None = None  # for data sets small enough to be kept decoded
    bucket_rule: str = "nearest"

    def members(self, buckets: Sequence[Bucket], every_size: bool = False) -> list[list[int]]:
        """For each bucket the rows of the clips that fill it; see ``assign_clips``."""
        return assign_clips(
            self.clips, buckets, self.rate, every_size=every_size, rule=self.bucket_rule
        )

    def start_of(self, row: int, frame: int) -> float:
        """Seconds at which a source frame is shown."""
        clip = self.clips[row]
        return frame / clip.fps if clip.fps else 0.0

    def arrays(
        self, row: int, start: float, bucket: Bucket, crop, mirrored: bool = False
    ) -> dict[str, np.ndarray]:
        """A clip's window: ``video`` uint8 [T, H, W, 3] of a bucket; raises ``ClipError``."""
        video = self._read_window(row, start, bucket, crop)
        return {"video": video[:, :, ::-1] if mirrored else video}

    def blank(self, bucket: Bucket) -> dict[str, np.ndarray]:
        """Zeros in place of a window that there is not."""
        return {"video": np.zeros((bucket.frames, bucket.height, bucket.width, 3), np.uint8)}

    def _read_window(self, row: int, start: float, bucket: Bucket, crop) -> np.ndarray:
        info = self.clips[row].info
        size = (bucket.height, bucket.width)
        fps = self.rate.of(info)
        # Whatever goes wrong in a source's storage or in a file is a reason to draw another clip.
        with named_errors("unreadable"):
            if self.cache is not None:
                clip = self.cache.get(
                    (row, size), lambda: self.source.read_all(info, size, self.limits)
                )
                if clip is not None:
                    return cut_window(info, clip, start, bucket.frames, fps, size, crop)
            return self.source.read(info, start, bucket.frames, fps, size, crop, self.limits)


@dataclasses.dataclass(frozen=True)
class LatentReading(Reading):
    """How windows of a latent data set are read: they are whole clips, each of a fixed size."""

    source: LatentSource

    def members(self, buckets, every_size=False):
        del every_size  # a stored clip has one size
        rows_of: dict[tuple[int, int, int], list[int]] = {}
        for row, clip in enumerate(self.clips):
            rows_of.setdefault((clip.frames, *clip.size), []).append(row)
        return [rows_of.get((bucket.frames, bucket.height, bucket.width), []) for bucket in buckets]

    def start_of(self, row, frame):
        del frame
        return self.source.window(self.clips[row].path).start

    def arrays(self, row, start, bucket, crop, mirrored=False):
        del start, bucket, crop, mirrored
        try:
            return self.source.read_arrays(self.clips[row].path)
        except OSError as error:
            raise ClipError("unreadable", str(error)[:160]) from error

    def blank(self, bucket):
        return self.source.blank((bucket.frames, bucket.height, bucket.width))


@dataclasses.dataclass(frozen=True)
class PairReading(Reading):
    """How pairs of videos are read: the same window of both, beside what was judged."""

    source: PairSource

    def arrays(self, row, start, bucket, crop, mirrored=False):
        info = self.clips[row].info
        window = start, bucket.frames, self.rate.of(info), (bucket.height, bucket.width), crop
        with named_errors("unreadable"):
            found = self.source.read_pair(info, *window, self.limits)
        sides = ("video", "other")
        return found | ({name: found[name][:, :, ::-1] for name in sides} if mirrored else {})

    def blank(self, bucket):
        video = super().blank(bucket)["video"]
        judged = np.zeros(len(self.source.scores), np.int32)
        return {"video": video, "other": video, "judged": judged}


class _DrawNumber:
    """Attach a random number to a position."""

    def __call__(self, row, rng: np.random.Generator):
        return int(row), int(rng.integers(2**63))


@dataclasses.dataclass(frozen=True)
class _TrainWindow:
    """(row, random number) -> element; if the clip cannot be read, another of the bucket is."""

    reading: Reading
    bucket: Bucket
    rows: tuple[int, ...]

    def __call__(self, drawn: tuple[int, int]) -> dict:
        row, number = drawn
        skipped = []
        for attempt in range(_ATTEMPTS):
            # Each attempt has numbers of its own, but all follow from the position: a run that is
            # repeated or resumed tries the same clips.
            rng = np.random.default_rng([number, attempt])
            if attempt:
                row = self.rows[int(rng.integers(len(self.rows)))]
            info = self.reading.clips[row].info
            choices = self.reading.rate.count_starts(info, self.bucket.frames)
            start = self.reading.start_of(row, int(rng.integers(choices)))
            # Crop and mirroring are drawn whatever the options say, so that switching one of them
            # leaves the other draws as they were.
            drawn_crop = (float(rng.random()), float(rng.random()))
            crop = drawn_crop if self.reading.crop == "random" else CENTRE
            mirrored = bool(rng.random() < 0.5) and self.reading.flip
            # Last, because the number of draws in it varies.
            if self.reading.crop == "resized":
                size = (self.bucket.height, self.bucket.width)
                crop = random_box(rng, info.height, info.width, size)
            try:
                arrays = self.reading.arrays(row, start, self.bucket, crop, mirrored)
            except ClipError as error:
                skipped.append((row, error.reason, error.detail))
                continue
            return _make_element(arrays, row, start, skipped)
        return _make_padding(self.reading, self.bucket, skipped)


@dataclasses.dataclass(frozen=True)
class _ValidationWindow:
    """(row, source frame) -> element; row -1 gives padding, and so does a clip that fails."""

    reading: Reading
    bucket: Bucket

    def __call__(self, window: tuple[int, int]) -> dict:
        row, frame = window
        if row < 0:
            return _make_padding(self.reading, self.bucket, [])
        start = self.reading.start_of(row, frame)
        try:
            arrays = self.reading.arrays(row, start, self.bucket, CENTRE)
        except ClipError as error:
            return _make_padding(self.reading, self.bucket, [(row, error.reason, error.detail)])
        return _make_element(arrays, row, start, [])


def _make_element(arrays: dict[str, np.ndarray], row: int, start: float, skipped: list) -> dict:
    return {"arrays": arrays, "mask": 1.0, "clip": row, "start": start, "skipped": skipped}


def _make_padding(reading: Reading, bucket: Bucket, skipped: list) -> dict:
    return _make_element(reading.blank(bucket), -1, 0.0, skipped) | {"mask": 0.0}


def _stack_batch(elements: Sequence[dict]) -> dict:
    """Elements -> batch; ``skipped`` as text, which workers hand on unchanged."""
    arrays = [element["arrays"] for element in elements]
    return {
        **{name: np.stack([found[name] for found in arrays]) for name in arrays[0]},
        "mask": np.array([element["mask"] for element in elements], np.float32),
        "clip": np.array([element["clip"] for element in elements], np.int32),
        "start": np.array([element["start"] for element in elements], np.float32),
        "skipped": dump_json([bad for element in elements for bad in element["skipped"]]),
    }


def _derive_seed(seed: int, bucket: int) -> int:
    # A sum would not do: bucket 1 of seed 0 would be bucket 0 of seed 1.
    return int(np.random.SeedSequence([seed, bucket]).generate_state(1)[0])


def train_stream(
    reading: Reading,
    buckets: Sequence[Bucket],
    members: Sequence[Sequence[int]],
    shares: Sequence[float],
    seed: int,
    process_index: int,
    process_count: int,
) -> grain.MapDataset:
    """Endless stream of this process's batches; element ``s`` belongs to step ``s``."""
    streams, weights = [], []
    for number, (bucket, rows, share) in enumerate(zip(buckets, members, shares, strict=True)):
        if not share:
            continue
        drawn = (
            grain.MapDataset.source(np.asarray(rows, np.int64))
            .seed(_derive_seed(seed, number))
            .shuffle()
            .repeat()
            .random_map(_DrawNumber())
        )
        # Shared out before decoding: no process decodes what another one trains on.
        mine = drawn[process_index::process_count]
        window = _TrainWindow(reading, bucket, tuple(rows))
        streams.append(
            mine.map(window).batch(
                bucket.batch // process_count, drop_remainder=True, batch_fn=_stack_batch
            )
        )
        weights.append(share)
    # Buckets are mixed batch by batch, because all clips of a batch have one shape.
    return grain.MapDataset.mix(streams, weights) if len(streams) > 1 else streams[0]


def validation_windows(
    reading: Reading, buckets: Sequence[Bucket], members: Sequence[Sequence[int]], cap: int
) -> list[list[tuple[int, int]]]:
    """For each bucket (row, first source frame) of its windows, at most ``cap`` a clip length.

    With few clips each gives several windows, evenly spread and not overlapping. With more clips
    than ``cap`` an even selection of them gives one window each, from the middle.
    """
    windows: list[list[tuple[int, int]]] = [[] for _ in buckets]
    for frames in sorted({bucket.frames for bucket in buckets}):
        owners = sorted(
            (row, number)
            for number, bucket in enumerate(buckets)
            if bucket.frames == frames
            for row in members[number]
        )
        # More clips than windows are wanted: an even selection of them.
        if len(owners) > cap:
            owners = [owners[i * len(owners) // cap] for i in range(cap)]
        for row, number in owners:
            info = reading.clips[row].info
            # So many windows fit into the clip without sharing a frame.
            fitting = max(1, reading.rate.count_frames(info) // frames)
            count = min(fitting, max(1, cap // len(owners)))
            last = reading.rate.count_starts(info, frames) - 1
            for i in range(count):
                place = 0.5 if count == 1 else i / (count - 1)
                windows[number].append((row, round(place * last)))
    return windows


class OneEach(NamedTuple):
    """Which window of a clip stands for it.

    Attributes:
      place: where in the clip it lies: 0 at the beginning, 0.5 in the middle, 1 at the end.
      rows: rows of the clips that are wanted; None for all.
    """

    place: float = 0.5
    rows: Collection[int] | None = None


class Listed(NamedTuple):
    """Chosen windows in groups; no batch mixes two groups.

    Attributes:
      groups: of each the number of its bucket and its windows, (row, first source frame).
    """

    groups: Sequence[tuple[int, Sequence[tuple[int, int]]]]


def whole_windows(
    buckets: Sequence[Bucket],
    members: Sequence[Sequence[int]],
    reading: Reading,
    wanted: OneEach,
) -> list[list[tuple[int, int]]]:
    """For each bucket (row, first source frame); each clip once, in the longest bucket it fills."""
    windows: list[list[tuple[int, int]]] = [[] for _ in buckets]
    longest: dict[int, int] = {}
    # Longer buckets come later and overwrite the shorter ones.
    for number in sorted(range(len(buckets)), key=lambda number: buckets[number].frames):
        longest |= dict.fromkeys(members[number], number)
    for row, number in sorted(longest.items()):
        if wanted.rows is None or row in wanted.rows:
            last = reading.rate.count_starts(reading.clips[row].info, buckets[number].frames) - 1
            windows[number].append((row, round(wanted.place * last)))
    return windows


def validation_stream(
    reading: Reading,
    buckets: Sequence[Bucket],
    windows: Sequence[Sequence[tuple[int, int]]],
    process_index: int,
    process_count: int,
) -> grain.MapDataset | None:
    """This process's batches of all windows, each once, padded to whole batches.

    None if there is no window.
    """
    streams = []
    for bucket, mine in zip(buckets, windows, strict=True):
        if not mine:
            continue
        # Another batch size would be another program to compile, and uneven shares of processes.
        padding = -len(mine) % bucket.batch
        padded = [*mine, *[(-1, 0)] * padding]
        streams.append(
            grain.MapDataset.source(padded)[process_index::process_count]
            .map(_ValidationWindow(reading, bucket))
            # Nothing is dropped, since the padding above filled the last batch.
            .batch(bucket.batch // process_count, drop_remainder=True, batch_fn=_stack_batch)
        )
    if not streams:
        return None
    return streams[0] if len(streams) == 1 else grain.MapDataset.concatenate(streams)
