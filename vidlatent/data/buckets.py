"""Buckets: a few fixed (frames, height, width) shapes, each with its batch size.

Each shape is one compiled program, so there should be few. For each number of frames a clip joins
the bucket whose aspect ratio is nearest to its own, so that cropping loses little (FSVideo 2.2.1
trains on mixed resolutions; the resolutions it states are averages over such buckets). If several
buckets have exactly that ratio, they are sizes to train on side by side: a training clip joins all
of them that do not enlarge it.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence

from absl import logging

from vidlatent.data.index import Clip
from vidlatent.errors import VidlatentError
from vidlatent.spec import FrameRule

__all__ = ["Bucket", "assign_clips", "parse_buckets", "weigh_buckets"]


@dataclasses.dataclass(frozen=True)
class Bucket:
    """One batch shape: ``frames x height x width``, ``batch`` clips over all processes."""

    frames: int
    height: int
    width: int
    batch: int

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"


def parse_buckets(
    rows: Sequence[Sequence[int]], rule: FrameRule, process_count: int
) -> tuple[Bucket, ...]:
    """``data.buckets`` as objects.

    Raises:
      VidlatentError: a row that is not four positive integers, an illegal number of frames, or a
        batch that the processes cannot share equally.
    """
    if not rows:
        raise VidlatentError("data.buckets is empty: give (frames, height, width, batch) rows.")
    buckets = []
    for row in rows:
        if len(row) != 4 or any(int(v) != v or v < 1 for v in row):
            raise VidlatentError(
                f"data.buckets has {tuple(row)}: each row is (frames, height, width, batch)."
            )
        bucket = Bucket(*(int(value) for value in row))
        if not rule.legal(bucket.frames):
            low, high = rule.nearest(bucket.frames)
            near = f"{low}" if low == high else f"{low} or {high}"
            raise VidlatentError(
                f"data.buckets has {tuple(row)}: {bucket.frames} frames do not fit {rule}, "
                f"take {near}."
            )
        if bucket.batch % process_count:
            raise VidlatentError(
                f"data.buckets has {tuple(row)}: a batch of {bucket.batch} does not divide among "
                f"{process_count} processes."
            )
        buckets.append(bucket)
    return tuple(buckets)


def assign_clips(
    clips: Sequence[Clip],
    buckets: Sequence[Bucket],
    fps: float,
    *,
    every_size: bool = False,
    rule: str = "nearest",
) -> list[list[int]]:
    """For each bucket the rows of the clips that fill it.

    A clip joins one bucket for each number of frames that it is long enough for. Pictures join
    buckets of one frame only: a repeated picture would teach the model that nothing moves.

    Args:
      clips, buckets: to be matched.
      fps: frame rate of the windows; 0 keeps each clip's own.
      every_size: for training: a clip also joins the buckets with the same number of frames and
        exactly the same aspect ratio (17x256x256 and 17x512x512) that do not enlarge it.
      rule: ``'nearest'`` aspect ratio, or ``'inward'``: the next one towards the square.
    """
    choose = _choose_inward if rule == "inward" else _choose_nearest
    members: list[list[int]] = [[] for _ in buckets]
    lengths = sorted({bucket.frames for bucket in buckets})
    for row, clip in enumerate(clips):
        for frames in lengths:
            if clip.info.starts(frames, fps) < 1:
                continue
            same = [i for i, bucket in enumerate(buckets) if bucket.frames == frames]
            nearest = choose(clip, same, buckets)
            joined = _join_sizes(clip, nearest, same, buckets) if every_size else [nearest]
            for number in joined:
                members[number].append(row)
    return members


def _join_sizes(
    clip: Clip, nearest: int, choices: Sequence[int], buckets: Sequence[Bucket]
) -> list[int]:
    """The nearest bucket and those of its aspect ratio that do not enlarge the clip."""
    shape = buckets[nearest]
    # Ratios are compared as products of integers, which is exact.
    return [
        i
        for i in choices
        if i == nearest
        or (
            buckets[i].height * shape.width == shape.height * buckets[i].width
            and not _is_enlarged(clip, buckets[i])
        )
    ]


def _is_enlarged(clip: Clip, bucket: Bucket) -> bool:
    return bucket.height > clip.info.height or bucket.width > clip.info.width


def _choose_nearest(clip: Clip, choices: Sequence[int], buckets: Sequence[Bucket]) -> int:
    """Nearest aspect ratio; among equal ones the largest that does not enlarge the clip."""
    # In logarithms a bucket twice as wide and one twice as tall are equally far away.
    ratio = math.log(clip.info.width / clip.info.height)

    def key(index: int):
        bucket = buckets[index]
        distance = abs(math.log(bucket.width / bucket.height) - ratio)
        enlarged = _is_enlarged(clip, bucket)
        area = bucket.height * bucket.width
        # Rounded, so that ratios that differ by float error alone count as equal. Then the largest
        # of the buckets that do not enlarge the clip, or else the smallest.
        return round(distance, 6), enlarged, area if enlarged else -area, index

    return min(choices, key=key)


def _choose_inward(clip: Clip, choices: Sequence[int], buckets: Sequence[Bucket]) -> int:
    """The bucket nearest in aspect ratio on the side of the square, as in Reducio's released code.

    Ratios of height to width are compared in hundredths. A wide clip gets the smallest ratio that
    is not below its own, a tall clip the largest that is not above; if there is none, the nearest.
    """
    # The clip's ratio is rounded too, so that a clip of a bucket's own shape goes there.
    ratio = round(clip.info.height / clip.info.width, 2)
    keys = {i: round(buckets[i].height / buckets[i].width, 2) for i in choices}
    known = {key for key in keys.values() if (key >= ratio if ratio <= 1 else key <= ratio)}
    if not known:
        return _choose_nearest(clip, choices, buckets)
    best = min(known) if ratio <= 1 else max(known)
    return _choose_nearest(clip, [i for i in choices if keys[i] == best], buckets)


def weigh_buckets(
    buckets: Sequence[Bucket], members: Sequence[Sequence[int]], weights: Sequence[float]
) -> list[float]:
    """Share of the training steps that each bucket gets, 0 for one without clips.

    ``DataOptions.bucket_weights`` says how the shares are made.

    Raises:
      VidlatentError: weights of the wrong number or sign, or a number of frames for which no
        bucket has a clip.
    """
    if weights and len(weights) != len(buckets):
        raise VidlatentError(
            f"data.bucket_weights has {len(weights)} entries for {len(buckets)} buckets: "
            "give one each, or none."
        )
    if any(weight < 0 for weight in weights):
        raise VidlatentError("data.bucket_weights has a negative entry.")
    # A length that no clip has is refused, an aspect ratio that no clip has is only left out.
    filled: Counter[int] = Counter()
    for bucket, rows in zip(buckets, members, strict=True):
        filled[bucket.frames] += len(rows)
    for frames, count in sorted(filled.items()):
        if not count:
            raise VidlatentError(
                f"data.buckets asks for {frames} frames, but no clip is that long at data.fps: "
                "lower data.fps, shorten the bucket or remove it."
            )
    for bucket, rows in zip(buckets, members, strict=True):
        if not rows:
            logging.warning(
                "no clip has the aspect ratio, or is of the size, of bucket %s: it is left out",
                bucket,
            )
    if weights:
        shares = [w if rows else 0.0 for w, rows in zip(weights, members, strict=True)]
    else:
        # Steps that one pass over a bucket's clips takes.
        work = [len(rows) / b.batch for b, rows in zip(buckets, members, strict=True)]
        total: Counter[int] = Counter()
        for bucket, amount in zip(buckets, work, strict=True):
            total[bucket.frames] += amount
        # They sum to 1 over the buckets of each length, so that every length gets the same share.
        shares = [a / total[b.frames] for b, a in zip(buckets, work, strict=True)]
    if not sum(shares):
        raise VidlatentError("data.bucket_weights leaves no bucket that has clips.")
    return [share / sum(shares) for share in shares]
