"""Damaged and hostile small files, weights and coded videos (``tests/fuzz/files.py``)."""

import io

import pytest

from tests.fuzz.files import fuzz, make_targets, run


@pytest.mark.parametrize("target", make_targets(), ids=lambda target: target.name)
def test_a_few_damaged_files(target, tmp_path):
    counts, found = fuzz(target, 0.4, 7, tmp_path)
    assert not found, found[0]
    assert counts["refused"] + counts["read"] >= 5


@pytest.mark.slow
def test_a_minute_of_damaged_files():
    out = io.StringIO()
    assert run(1.0, 20_261_130, out) == 0, out.getvalue()
