"""Pictures of a tokenizer's report: slices over time, differences, small videos enlarged."""

import numpy as np

from vidlatent.config import load
from vidlatent.evaluate.tokenizer import ClipPair
from vidlatent.evaluate.tokenizer_report import (
    _describe_tokenizer,
    draw_time_slices,
    write_side_by_side,
)
from vidlatent.media.probe import probe
from vidlatent.report.meanings import find_meaning


def make_pair(frames=5, height=16, width=16):
    rng = np.random.default_rng(0)
    clip = rng.integers(0, 256, (frames, height, width, 3), np.uint8)
    return ClipPair("a.mp4 at 0.0 s", clip, clip[::-1].copy(), 8.0)


def test_a_slice_is_the_middle_row_over_time():
    pair = make_pair()
    picture = draw_time_slices([pair, make_pair(3, 8, 8)])
    times = 512 // 33
    first = picture[: 5 * times : times, : 33 * times : times]
    np.testing.assert_array_equal(first[:, :16], pair.original[:, 8])
    np.testing.assert_array_equal(first[:, 16], 255)
    np.testing.assert_array_equal(first[:, 17:], pair.reconstruction[:, 8])


def test_small_videos_are_enlarged(tmp_path):
    write_side_by_side(tmp_path / "a.mp4", make_pair())
    assert probe(str(tmp_path / "a.mp4")).width >= 2 * 256


def test_the_head_tells_compression_parameters_and_data():
    said = _describe_tokenizer(load("fsae"))
    # 4 x 4 x 4 pixels of 3 values to 16: 12 to 1.
    assert said.startswith("4x4x4 pixels to 16 numbers: one latent value for 12 RGB values")
    assert "0.467 million parameters" in said and said.endswith("data: the source samples")


def test_scores_have_units_and_a_direction():
    assert find_meaning("val/psnr").unit == "dB" and find_meaning("psnr").better == "higher"
    assert find_meaning("psnr_constant_colour").better == ""  # a reference, not a score
    assert find_meaning("lpips_vgg").better == "lower"
    assert find_meaning("grad_norm") == type(find_meaning("psnr"))()
