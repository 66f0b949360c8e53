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

from vidlatent.data.frame_rate import FrameRate
from vidlatent.data.index import Clip
from vidlatent.errors import VidlatentError
from vidlatent.spec import FrameRule

__all__ = ["Bucket", "assign_clips", "keep_shapes", "parse_buckets", "weigh_buckets"]


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
    rate: FrameRate,
    *,
    every_size: bool = False,
    rule: str = "nearest",
    most: int = 0,
) -> list[list[int]]:
    """For each bucket the rows of the clips that fill it.

    A clip joins one bucket for each number of frames that it is long enough for. Pictures join
    buckets of one frame only: a repeated picture would teach the model that nothing moves.

    Args:
      clips, buckets: to be matched.
      rate: that windows take frames at.
      every_size: for training: a clip also joins the buckets with the same number of frames and
        exactly the same aspect ratio (17x256x256 and 17x512x512) that do not enlarge it.
      rule: ``'nearest'`` aspect ratio, or ``'inward'``: the next one towards the square.
      most: buckets that get clips, at most (``keep_shapes``); 0: any number.
    """
    choose = _choose_inward if rule == "inward" else _choose_nearest
    members: list[list[int]] = [[] for _ in buckets]
    lengths = sorted({bucket.frames for bucket in buckets})
    for row, clip in enumerate(clips):
        for frames in lengths:
            if rate.count_starts(clip.info, frames) < 1:
                continue
            same = [i for i, bucket in enumerate(buckets) if bucket.frames == frames]
            nearest = choose(clip, same, buckets)
            joined = _join_sizes(clip, nearest, same, buckets) if every_size else [nearest]
            for number in joined:
                members[number].append(row)
    if not most or len(buckets) <= most:
        return members
    kept = keep_shapes(buckets, members, most)
    few = assign_clips(clips, kept, rate, every_size=every_size, rule=rule)
    filled = dict(zip(kept, few, strict=True))
    return [filled.get(bucket, []) for bucket in buckets]


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


def keep_shapes(
    buckets: Sequence[Bucket], members: Sequence[Sequence[int]], most: int
) -> tuple[Bucket, ...]:
    """The buckets to train on if at most ``most`` shapes may be compiled, in their order.

    Of each number of frames the bucket with most clips stays, and then those with most clips of
    all; of equal ones the first.

    Args:
      buckets: all that the config lists.
      members: rows of the clips in each of them.
      most: ``data.max_shapes``, 1 or more.

    Raises:
      VidlatentError: there are more numbers of frames than ``most``.
    """
    order = sorted(range(len(buckets)), key=lambda number: (-len(members[number]), number))
    leading: dict[int, int] = {}
    for number in order:
        leading.setdefault(buckets[number].frames, number)
    if len(leading) > most:
        raise VidlatentError(
            f"data.max_shapes = {most} is less than the {len(leading)} numbers of frames in "
            "data.buckets, each of which keeps a shape: allow as many, or remove a length."
        )
    others = [number for number in order if members[number] and number not in leading.values()]
    kept = [*leading.values(), *others][:most]
    return tuple(buckets[number] for number in sorted(kept))


def weigh_buckets(
    buckets: Sequence[Bucket],
    members: Sequence[Sequence[int]],
    weights: Sequence[float] = (),
    length_weights: Sequence[tuple[int, float]] = (),
) -> list[float]:
    """Share of the training steps that each bucket gets, 0 for one without clips.

    ``DataOptions.length_weights`` says how the shares are made; ``weights`` are its
    ``bucket_weights``.

    Raises:
      VidlatentError: weights of the wrong number or sign, or a number of frames that has no share
        or no clip.
    """
    _check_weights(buckets, weights, length_weights)
    # A length that no clip has is refused, an aspect ratio that no clip has is only left out.
    filled: Counter[int] = Counter()
    for bucket, rows in zip(buckets, members, strict=True):
        filled[bucket.frames] += len(rows)
    for frames, count in sorted(filled.items()):
        if not count:
            raise VidlatentError(
                f"data.buckets asks for {frames} frames, but no clip is that long at data.fps "
                "and data.frame_interval: lower these, shorten the bucket or remove it."
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
        # They sum to 1 over the buckets of each length, which then gets its own share.
        of_length = dict(length_weights) or dict.fromkeys(total, 1.0)
        shares = [
            of_length[b.frames] * a / total[b.frames] for b, a in zip(buckets, work, strict=True)
        ]
    if not sum(shares):
        key = "bucket_weights" if weights else "length_weights"
        raise VidlatentError(f"data.{key} leaves no bucket that has clips.")
    return [share / sum(shares) for share in shares]


def _check_weights(
    buckets: Sequence[Bucket],
    weights: Sequence[float],
    length_weights: Sequence[tuple[int, float]],
) -> None:
    if weights and len(weights) != len(buckets):
        raise VidlatentError(
            f"data.bucket_weights has {len(weights)} entries for {len(buckets)} buckets: "
            "give one each, or none."
        )
    for key, values in (
        ("bucket_weights", weights),
        ("length_weights", [weight for _, weight in length_weights]),
    ):
        if any(weight < 0 for weight in values):
            raise VidlatentError(f"data.{key} has a negative entry.")
    known = dict(length_weights)
    lacking = sorted({bucket.frames for bucket in buckets} - set(known)) if known else []
    if lacking and not weights:
        raise VidlatentError(
            f"data.length_weights has no share for the {lacking[0]} frames of data.buckets: give "
            "a (frames, share) for each length, or () for equal shares."
        )
