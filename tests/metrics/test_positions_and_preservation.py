"""Places in the frame group, max margin, information preservation: hand-worked values."""

import jax
import numpy as np
import pytest

from vidlatent.errors import VidlatentError
from vidlatent.metrics import absolute_sums, by_group_position, max_margin


def test_frame_0_counts_nowhere_and_places_repeat_every_four_frames():
    values = np.arange(17.0)
    means, numbers = by_group_position(values, [1] * 17, first=1, group=4)
    # Frames 1, 5, 9, 13 average 7, and so on.
    assert means == [7.0, 8.0, 9.0, 10.0]
    assert numbers == [4, 4, 4, 4]
    assert max_margin(means) == 3.0
    values[0] = 1e9
    assert by_group_position(values, [1] * 17, first=1, group=4)[0] == means


def test_clips_of_several_lengths_weigh_by_their_frames():
    # Two clips of 5 frames and one of 9; sums over the clips that have the frame.
    sums, counts = [0, 3, 6, 9, 12, 10, 20, 30, 40], [3] * 5 + [1] * 4
    means, numbers = by_group_position(sums, counts, first=1, group=4)
    assert means == [13 / 4, 26 / 4, 39 / 4, 52 / 4] and numbers == [4] * 4


def test_fixed_windows_have_no_lone_first_frame():
    means, numbers = by_group_position(range(16), [1] * 16, first=16, group=4)
    assert means == [6.0, 7.0, 8.0, 9.0] and numbers == [4] * 4


def test_images_have_no_place():
    means, numbers = by_group_position([5.0], [8], first=1, group=4)
    assert np.isnan(means).all() and numbers == [0] * 4


def preservation(a, b):
    error, size = (np.asarray(v, np.float64).sum() for v in absolute_sums(a, b))
    return 1 - error / size


def test_preservation_by_hand():
    x = np.array([0.5, -1.0, 0.0, 0.5], np.float32).reshape(1, 1, 2, 2, 1)
    y = x + np.array([0.1, 0.2, -0.1, 0.0], np.float32).reshape(x.shape)
    error, size = absolute_sums(x, y)
    assert error.shape == size.shape == (1, 1)
    assert error[0, 0] == pytest.approx(0.4) and size[0, 0] == 2.0
    assert preservation(x, y) == pytest.approx(0.8)
    assert preservation(x, x) == 1.0 and preservation(x, -x) == -1.0


def test_preservation_is_one_ratio_of_sums():
    a = np.array([1.0, 0.1], np.float32).reshape(2, 1, 1, 1, 1)
    b = np.array([1.0, 0.0], np.float32).reshape(2, 1, 1, 1, 1)
    assert preservation(a, b) == pytest.approx(1 - 0.1 / 1.1), "not the mean of 1 and 0"


def test_preservation_of_stored_pixels_and_floats_agree():
    a, b = np.random.default_rng(0).integers(0, 256, (2, 2, 3, 8, 8, 3), np.uint8)
    signed = [v.astype(np.float32) / 127.5 - 1 for v in (a, b)]
    stored = jax.jit(absolute_sums)(a, b)
    np.testing.assert_allclose(stored, absolute_sums(*signed), rtol=1e-5)
    # Black against white is two apart, and black is one away from zero.
    black, white = np.zeros((1, 1, 2, 2, 3), np.uint8), np.full((1, 1, 2, 2, 3), 255, np.uint8)
    assert [float(v[0, 0]) for v in absolute_sums(black, white)] == [24.0, 12.0]


def test_preservation_errors():
    a = np.zeros((1, 1, 2, 2, 3), np.uint8)
    with pytest.raises(VidlatentError, match="one shape and dtype"):
        absolute_sums(a, a.astype(np.float32))
