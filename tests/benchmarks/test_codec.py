"""``benchmarks.codec``: ways of one case take turns, and each says how far it is from the first."""

import pytest

from benchmarks.codec import WAYS, Case, codec_keys, format_row, measure
from vidlatent.spec import FrameRule


def test_a_run_takes_the_pieces_of_a_stream_two_at_a_time():
    case = Case("configs/ivvae.py", "17x96x96", {"space": "strips"})
    keys = {way: codec_keys(case, way, 37, FrameRule(1, 4)) for way in WAYS}
    assert keys["whole"]["groups"] == 10 and keys["stream"]["groups"] == 1
    assert keys["scan"] == keys["stream"] | {"scan_groups": 2}
    assert keys["tile"] == keys["stream"] | {"space": "strips"}


def test_a_row_that_failed_says_why_and_nothing_else():
    assert format_row({"case": "a", "way": "shard", "skipped": "one device"}) == {
        "case": "a",
        "way": "shard",
        "off: latent, levels": "skipped: one device",
    }


@pytest.mark.slow
def test_whole_and_scan_of_the_smallest_demo():
    whole, scan = measure("fsae-demo", ["whole", "scan"], "13x32x32", 2)
    assert whole["latent_off"] == whole["pixels_off"] == 0
    assert scan["latent_off"] < 1e-5 and scan["pixels_off"] <= 1
    for row in (whole, scan):
        assert row["frames"] == 13 and row["decode"]["runs"] == 2
        assert row["encode_frames_per_s"] > 0 and row["decode_tflop"] > 0
        assert "decode MiB" in format_row(row)
