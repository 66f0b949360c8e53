"""Buckets: which clips they get, and how steps are shared between them."""

import numpy as np
import pytest

from vidlatent.config import load
from vidlatent.data.buckets import (
    Bucket,
    assign_clips,
    keep_shapes,
    parse_buckets,
    weigh_buckets,
)
from vidlatent.data.frame_rate import FrameRate
from vidlatent.data.index import Clip
from vidlatent.errors import VidlatentError
from vidlatent.media.probe import ClipInfo
from vidlatent.media.transforms import Box, place, random_box
from vidlatent.spec import FrameRule

RULE = FrameRule(1, 4)


def clip(height, width, frames=40, fps=25.0):
    is_image = frames == 1
    info = ClipInfo("x", frames, 0.0 if is_image else fps, width, height, frames / fps, is_image)
    return Clip(info, "x")


@pytest.mark.parametrize(
    "rows, processes, message",
    [
        ((), 1, "data.buckets is empty"),
        (((9, 64, 64),), 1, "frames, height, width, batch"),
        (((9, 64, 64, 0),), 1, "frames, height, width, batch"),
        (((8, 64, 64, 4),), 1, "take 5 or 9"),
        (((9, 64, 64, 6),), 4, "does not divide among 4 processes"),
    ],
)
def test_wrong_buckets_are_named(rows, processes, message):
    with pytest.raises(VidlatentError, match=message):
        parse_buckets(rows, RULE, processes)


def test_clips_go_to_the_nearest_aspect_ratio_of_each_length():
    rows = ((17, 64, 64, 4), (17, 48, 96, 4), (17, 96, 48, 4), (1, 64, 64, 8), (1, 48, 96, 8))
    buckets = parse_buckets(rows, RULE, 1)
    clips = [
        clip(720, 1280),  # wide
        clip(1280, 720),  # tall; its single frames are nearest to the square
        clip(500, 520),  # nearly square
        clip(480, 640, 10),  # too short for 17 frames
        clip(300, 600, 1),  # a wide picture
    ]
    assert assign_clips(clips, buckets, FrameRate()) == [[2], [0], [1], [1, 2, 3], [0, 4]]
    # At 5 frames a second, 40 frames become 8, too few for 17.
    assert assign_clips(clips, buckets, FrameRate(5.0))[:3] == [[], [], []]


def test_of_equal_shapes_the_largest_that_needs_no_enlarging():
    buckets = [Bucket(1, size, size, 1) for size in (64, 128, 256)]
    clips = [clip(40, 40), clip(130, 130), clip(600, 600)]
    assert assign_clips(clips, buckets, FrameRate()) == [[0], [1], [2]]


def test_training_clips_join_every_size_of_their_aspect_that_does_not_enlarge_them():
    squares = [Bucket(1, size, size, 1) for size in (64, 128, 256)]
    clips = [clip(40, 40), clip(130, 130), clip(600, 600), clip(100, 200)]
    assert assign_clips(clips, squares, FrameRate(), every_size=True) == [[0, 1, 2, 3], [1, 2], [2]]
    # Close aspect ratios (1.29 and 1.25) and other frame counts are not sizes of one bucket.
    rows = ((17, 448, 576, 4), (17, 512, 640, 4), (17, 96, 128, 4), (5, 224, 288, 4))
    buckets = parse_buckets((*rows, (17, 224, 288, 8)), RULE, 1)
    clips = [clip(1000, 1286), clip(1000, 1250), clip(300, 390)]
    assert assign_clips(clips, buckets, FrameRate()) == [[0], [1], [], [0, 1, 2], [2]]
    assert assign_clips(clips, buckets, FrameRate(), every_size=True) == [
        [0],
        [1],
        [],
        [0, 1, 2],
        [0, 2],
    ]
    # By default each clip is seen as often in one size as in the other.
    sizes = [Bucket(17, 64, 64, 8), Bucket(17, 128, 128, 2)]
    members = assign_clips([clip(200, 200)] * 6, sizes, FrameRate(), every_size=True)
    steps = weigh_buckets(sizes, members, ())
    np.testing.assert_allclose([8 * steps[0], 2 * steps[1]], 1.6)


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (1080, 1920, (768, 1344)),  # 0.5625: key 0.57, although 0.52 is not much further
        (720, 1280, (768, 1344)),
        (768, 1344, (768, 1344)),
        (530, 1000, (768, 1344)),
        (520, 1000, (704, 1344)),
        (100, 1000, (512, 2048)),
        (995, 1000, (1024, 1024)),
        (1000, 1000, (1024, 1024)),
        (1000, 970, (1024, 1024)),
        (1920, 1080, (1344, 768)),  # 1.78: 1.75
        (1990, 1000, (1344, 768)),  # no turned 704x1344
        (2000, 1000, (1408, 704)),
        (3620, 1000, (1856, 512)),  # 3.625, as 3.62
        (5000, 1000, (2048, 512)),
    ],
)
def test_inward_ratios_are_those_of_the_released_table(height, width, size):
    config = load("reducio_dit:paper,stage=3")
    assert config.data.bucket_rule == "inward" and len(config.data.buckets) == 40
    buckets = [Bucket(*row) for row in config.data.buckets]
    (found,) = [
        bucket
        for bucket, rows in zip(
            buckets,
            assign_clips([clip(height, width)], buckets, FrameRate(), rule="inward"),
            strict=True,
        )
        if rows
    ]
    assert (found.height, found.width) == size
    # The crop removes pixels along the longer side only.
    spot = place(height, width, size)
    longer = (spot.width, size[1]) if width >= height else (spot.height, size[0])
    assert longer[0] >= longer[1]


def test_where_no_ratio_lies_inward_the_nearest_is_taken():
    buckets = [Bucket(1, 32, 64, 1), Bucket(1, 16, 64, 1)]
    clips = [clip(100, 110, 1), clip(30, 100, 1), clip(110, 100, 1)]
    assert assign_clips(clips, buckets, FrameRate(), rule="inward") == [[0, 1, 2], []]
    sizes = [Bucket(1, 32, 32, 1), Bucket(1, 64, 64, 1)]
    assert assign_clips([clip(60, 61, 1), clip(64, 70, 1)], sizes, FrameRate(), rule="inward") == [
        [0],
        [1],
    ]


def test_shares():
    buckets = [Bucket(17, 64, 64, 4), Bucket(17, 48, 96, 4), Bucket(1, 64, 64, 8)]
    members = [[0, 1, 2], [3], [0, 1, 2, 3, 4]]
    assert weigh_buckets(buckets, members, ()) == [0.375, 0.125, 0.5]  # pictures and videos 1:1
    assert weigh_buckets(buckets, members, (1, 1, 2)) == [0.25, 0.25, 0.5]
    assert weigh_buckets(buckets, [[0], [], [0]], (1, 1, 2)) == [1 / 3, 0, 2 / 3]
    with pytest.raises(VidlatentError, match="2 entries for 3 buckets"):
        weigh_buckets(buckets, members, (1, 2))
    with pytest.raises(VidlatentError, match="negative"):
        weigh_buckets(buckets, members, (1, 2, -1))
    with pytest.raises(VidlatentError, match="asks for 17 frames, but no clip is that long"):
        weigh_buckets(buckets, [[], [], [0]], ())
    with pytest.raises(VidlatentError, match="leaves no bucket"):
        weigh_buckets(buckets, [[0], [], [0]], (0, 1, 0))


def test_shares_of_lengths():
    buckets = [Bucket(17, 64, 64, 4), Bucket(17, 48, 96, 4), Bucket(1, 64, 64, 8)]
    members, shares = [[0, 1, 2], [3], [0, 1, 2, 3, 4]], ((17, 0.8), (1, 0.2), (33, 5.0))
    np.testing.assert_allclose(weigh_buckets(buckets, members, (), shares), [0.6, 0.2, 0.2])
    assert weigh_buckets(buckets, members, (1, 1, 2), shares) == [0.25, 0.25, 0.5]
    with pytest.raises(VidlatentError, match="length_weights has no share for the 1 frames"):
        weigh_buckets(buckets, members, (), ((17, 1.0),))
    with pytest.raises(VidlatentError, match="length_weights has a negative"):
        weigh_buckets(buckets, members, (), ((17, 1.0), (1, -1.0)))
    with pytest.raises(VidlatentError, match="length_weights leaves no bucket"):
        weigh_buckets(buckets, members, (), ((17, 0.0), (1, 0.0)))


MIXED = (  # presets with clips of several shapes, and a shape that most clips have
    ("fsae:paper", (192, 320)),
    ("fsae:paper,stage=2", (448, 576)),
    ("fsae:paper,stage=3", (192, 320)),
    ("fsae:paper,stage=vf", (192, 320)),
    ("fsae:standard", (192, 320)),
    ("fsvideo_dit:paper,stage=image", (192, 320)),
    ("fsvideo_dit:paper,stage=video", (192, 320)),
    ("fsvideo_dit:paper,stage=target", (384, 704)),
    ("fsvideo_dit:paper,stage=sft", (384, 704)),
    ("reducio_dit:paper,stage=3", (768, 1344)),
    ("promag_dit:paper,stage=1", (192, 320)),
    ("promag_dit:paper,stage=2", (192, 320)),
)


@pytest.mark.parametrize(("preset", "size"), MIXED)
def test_clips_decide_among_the_shapes_of_a_length(preset, size):
    """9,000 of 9,400 clips in one shape get that share of the steps of every length."""
    data = load(preset).data
    buckets = [Bucket(*row) for row in data.buckets]
    members = [[] for _ in buckets]
    row = 0
    for frames in sorted({bucket.frames for bucket in buckets}):
        same = [i for i, bucket in enumerate(buckets) if bucket.frames == frames]
        usual = next((i for i in same if (buckets[i].height, buckets[i].width) == size), same[0])
        rare = [i for i in same if i != usual]
        members[usual] = list(range(9000))
        for row in range(400 if rare else 0):
            members[rare[row % len(rare)]].append(9000 + row)
    shares = weigh_buckets(buckets, members, data.bucket_weights, data.length_weights)
    lengths = dict(data.length_weights) or dict.fromkeys({b.frames for b in buckets}, 1.0)
    for frames, wanted in lengths.items():
        mine = [
            (s, len(m))
            for b, s, m in zip(buckets, shares, members, strict=True)
            if b.frames == frames
        ]
        total = sum(share for share, _ in mine)
        assert total == pytest.approx(wanted / sum(lengths.values()))
        largest, clips = max(mine)
        assert clips == 9000
        if len(mine) > 1:
            assert largest / total == pytest.approx(9000 / 9400)


def test_shapes_that_stay_when_few_may_be_compiled():
    sizes = [(17, 64, 64), (17, 48, 96), (17, 96, 48), (1, 64, 64), (1, 48, 96)]
    buckets = [Bucket(*size, 1) for size in sizes]
    members = [[0], [1, 2, 3], [], [4] * 2, [5] * 9]
    kept = [keep_shapes(buckets, members, most) for most in (2, 3, 9)]
    assert [[buckets.index(bucket) for bucket in some] for some in kept] == [
        [1, 4],  # the fullest of each length
        [1, 3, 4],
        [0, 1, 3, 4],  # none without clips
    ]
    with pytest.raises(VidlatentError, match="max_shapes = 1 is less than the 2 numbers of frames"):
        keep_shapes(buckets, members, 1)
    wide, tall = clip(48, 96), clip(96, 48)
    assert assign_clips([wide, tall, wide], buckets[1:3], FrameRate(), most=1) == [[0, 1, 2], []]


@pytest.mark.parametrize("source", [(48, 64), (720, 1280), (31, 17), (64, 64)])
@pytest.mark.parametrize("size", [(32, 32), (96, 48), (47, 200)])
@pytest.mark.parametrize("crop", [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)])
def test_placement_covers_the_bucket(source, size, crop):
    spot = place(*source, size, crop)
    assert spot.height >= size[0] and spot.width >= size[1]
    assert min(spot.height - size[0], spot.width - size[1]) == 0
    assert 0 <= spot.top <= spot.height - size[0] and 0 <= spot.left <= spot.width - size[1]
    assert abs(spot.width / spot.height * source[0] / source[1] - 1) < 0.05


@pytest.mark.parametrize("source", [(48, 64), (720, 1280), (320, 100)])
def test_random_parts_of_a_frame(source):
    """Reducio's training: half to all of the area, stretched by at most 4/3."""
    rng, size = np.random.default_rng(0), (32, 32)
    boxes = [random_box(rng, *source, size) for _ in range(300)]
    spots = [place(*source, size, box) for box in boxes]
    for spot in spots:
        assert (spot.crop_height, spot.crop_width) == size
        assert 0 <= spot.top <= spot.height - 32 and 0 <= spot.left <= spot.width - 32
    areas = np.array([box.height * box.width for box in boxes])
    tall = source[0] * np.array([box.height for box in boxes])
    stretches = source[1] * np.array([box.width for box in boxes]) / tall
    assert 3 / 4 <= stretches.min() and stretches.max() <= 4 / 3
    if source == (320, 100):  # no place fits, so crop at the centre
        assert set(boxes) == {Box(0.34375, 0.0, 0.3125, 1.0)}
        return
    assert 0.5 <= areas.min() and areas.max() <= 1 and np.ptp(areas) > 0.05
    assert np.ptp([box.left for box in boxes]) > 0.05
