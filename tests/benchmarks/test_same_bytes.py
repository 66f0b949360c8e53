"""The comparison at equal bytes: what is chosen is the best that fits, and comes back whole."""

from fractions import Fraction

import numpy as np
import pytest

from benchmarks.same_bytes import CODECS, decode, encode, fit, score, write_table
from tests.helpers.clips import pictures

FRAMES = pictures(6, 63, 65)


@pytest.mark.parametrize("encoder", CODECS)
def test_the_best_that_fits_is_taken(encoder):
    rate = Fraction(25)
    better, worse = (encode(FRAMES, encoder, crf, rate) for crf in (20, 50))
    assert len(worse) < len(better)
    crf, data = fit(FRAMES, encoder, len(better), rate)
    assert crf <= 20 and len(data) <= len(better)
    assert len(encode(FRAMES, encoder, max(crf - 1, 1), rate)) > len(better) or crf <= 1
    restored = decode(data, FRAMES.shape[1:3])
    assert restored.shape == FRAMES.shape
    assert score(FRAMES, restored)["psnr"] > score(FRAMES, decode(worse, (63, 65)))["psnr"]
    assert fit(FRAMES, encoder, 1, rate)[0] == CODECS[encoder][3]


def test_the_table_says_bytes_bits_and_scores():
    row = {"codec": "H.264", "how": "crf 1", "bytes": 1234, "bits_a_pixel": 0.5}
    row |= {name: float(np.float32(0.25)) for name in ("psnr", "ssim")}
    assert "| H.264 | crf 1 | 1,234 | 0.500 | 0.25 | 0.2500 |" in write_table([row])
