"""Second differences next to borders and elsewhere."""

import itertools

import numpy as np
import pytest

from vidlatent.metrics.flicker import BorderDifferences, FrameDifferences
from vidlatent.models.tokenizers.chunks import compute_fade


def ramp(frames):
    """Brightness that rises by 2 levels a frame."""
    return np.broadcast_to(
        (20 + 2 * np.arange(frames))[:, None, None, None], (frames, 6, 5, 3)
    ).astype(np.uint8)


def hard(step):
    return ((start - 1, start + 1) for start in itertools.count(step, step))


def test_a_jump_is_two_second_differences_and_smooth_motion_is_none():
    video = ramp(24)
    video[8:16] += 12  # a chunk that came out too bright
    for cuts in ([24], [1, 5, 6, 12]):  # in pieces of any length
        meter = FrameDifferences(hard(8))
        for piece in np.split(video, np.cumsum(cuts)):
            meter.add(piece)
        assert meter.means() == {"near": 12.0, "far": 0.0}


def test_a_border_that_the_video_does_not_reach_is_none():
    for frames, near in ((8, {"far"}), (9, {"near", "far"})):
        meter = FrameDifferences(hard(8))
        meter.add(ramp(frames))
        assert meter.means().keys() == near


def test_blending_lowers_the_seam():
    """The same jump as a ramp over four shared frames: its two kinks are a fifth of it each."""
    flat = np.full((24, 4, 4, 3), 50.0)
    flat[12:] += 20
    blended = np.array(flat)
    blended[8:12] = 50 + 20 * compute_fade(4)[:, None, None, None]
    means = []
    for video, borders in ((flat, [(11, 13)]), (blended, [(7, 13)])):
        meter = FrameDifferences(borders)
        meter.add(video.astype(np.uint8))
        means.append(meter.means())
    assert means[0] == {"near": 20.0, "far": 0.0}
    assert means[1]["near"] == pytest.approx(2 * 4 / 6) and means[1]["far"] == 0.0


def test_seams_in_space():
    frames = np.broadcast_to(np.arange(12)[None, :, None, None], (2, 12, 10, 3)).astype(np.uint8)
    seam = frames.copy()
    seam[:, 8:] += 5
    for video, near in ((frames, 0.0), (seam, 5.0)):
        meter = BorderDifferences([8], [])
        meter.add(video)
        assert meter.means() == {"near": near, "far": 0.0}
    # Columns do not see a step between rows.
    meter = BorderDifferences([], [4, 8])
    meter.add(seam)
    assert meter.means() == {"near": 0.0, "far": 0.0}
    assert BorderDifferences([], []).means() == {}
