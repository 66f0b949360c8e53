"""Latent sets from anywhere: absurd headers, rows and statistics are refused by name."""

import json

import numpy as np
import pytest

from tests.fuzz.files import _make_set
from vidlatent.data.latent_set import HEADER, Shard, pack, read_header, unpack
from vidlatent.data.sources.latents import LatentSource
from vidlatent.errors import VidlatentError


def change(path, **fields):
    content = json.loads(path.read_text())
    content.update(fields)
    path.write_text(json.dumps(content))


SIZE = {"frames": 5, "height": 16, "width": 24, "windows": 3}
LATENT = {"dtype": "float16", "shape": [2, 2, 3, 3]}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mean", [0.0, float("nan"), 0.0]), ("mean", [0.0, 0.0]), ("mean", [1e9, 0.0, 0.0]),
        ("std", [-1.0, 1.0, 1.0]), ("std", [1.0, 1.0, float("inf")]), ("std", "x"), ("n", -1),
        ("windows", 1.5), ("clips", "3"), ("dtype", "int8"), ("fps", float("nan")), ("fps", -1),
        ("label_names", ["a", "a"]), ("label_names", [1]), ("tokenizer", None), ("source", []),
        ("shards", ["../part.array_record"]), ("shards", ["/etc/passwd"]), ("shards", []),
        ("shards", ["a\0b.array_record"]), ("shards", ["part.mp4"]), ("sizes", "x"), ("sizes", [1]),
        ("sizes", [{**SIZE, "arrays": {"latent": {**LATENT, "shape": [2**40]}}}]),
        ("sizes", [{**SIZE, "arrays": {"latent": {**LATENT, "shape": [-1, 3]}}}]),
        ("sizes", [{**SIZE, "arrays": {"latent": {**LATENT, "dtype": "object"}}}]),
        ("sizes", [{**SIZE, "arrays": {}}]), ("sizes", [{**SIZE, "frames": 0, "arrays": {}}]),
        ("bad", [["a"]]), ("bad", 3), ("rounding", {"max": "x"}), ("foreign", 1), ("spec", 3),
    ],
)  # fmt: skip
def test_headers_that_no_set_has_are_refused(tmp_path, field, value):
    _make_set(tmp_path)
    assert read_header(tmp_path).windows == 3
    change(tmp_path / HEADER, **{field: value})
    with pytest.raises(VidlatentError, match=r"header\.json .*encode the videos again"):
        read_header(tmp_path)


@pytest.mark.parametrize("factor", [1000.0, 1.01])
def test_statistics_that_are_not_those_of_the_shards_are_refused(tmp_path, factor):
    _make_set(tmp_path)
    assert len(LatentSource(str(tmp_path)).windows) == 3
    std = read_header(tmp_path).std
    change(tmp_path / HEADER, std=(std * factor).tolist())
    with pytest.raises(VidlatentError, match="a mean or std that is not that of its shards"):
        LatentSource(str(tmp_path))


@pytest.mark.parametrize(
    "row", [{"frames": -1}, {"fps": "x"}, {"clip": 3}, {"height": 1e9}, {"label": None}]
)
def test_rows_that_no_window_has_are_refused(tmp_path, row):
    _make_set(tmp_path)
    path = next(tmp_path.glob("part-*.json"))
    rows = json.loads(path.read_text())["windows"]
    change(path, windows=[{**rows[0], **row}, *rows[1:]])
    with pytest.raises(VidlatentError, match="rows beside .* are damaged"):
        Shard.load(str(path.with_suffix(".array_record")))


@pytest.mark.parametrize("offsets", [[-8, 8], [0, 2**60], [40, 8], ["a", "b"], [0]])
def test_arrays_outside_their_record_are_refused(tmp_path, offsets):
    window = read_window(tmp_path)
    record = pack({"latent": np.ones((2, 3), np.float16)}, window)
    length = int.from_bytes(record[:8], "little")
    table = json.loads(record[8 : 8 + length])
    table["latent"]["data_offsets"] = offsets
    head = json.dumps(table).encode()
    with pytest.raises(ValueError):
        unpack(len(head).to_bytes(8, "little") + head + record[8 + length :])


def read_window(folder):
    _make_set(folder)
    return LatentSource(str(folder)).windows[0]
