"""Coded videos from anywhere: what none can hold is refused, and memory is taken only then."""

import dataclasses
import json
import tracemalloc
import zipfile

import numpy as np
import pytest

from vidlatent.codec.coded import Coded
from vidlatent.errors import VidlatentError
from vidlatent.spec import FrameRule, LatentSpec

SPEC = LatentSpec("toy", 3, 4, 8, 8, FrameRule(1, 4))
LATENT = np.ones((2, 2, 3, 3), np.float32)
SOUND = {"spec": SPEC.to_json(), "frames": 5, "size": [13, 20], "chunks": None}


def write(path, fields=(), **arrays):
    with open(path, "wb") as file:
        text = json.dumps({**SOUND, **dict(fields)})
        np.savez(file, **{"latent": LATENT, "about": text, **arrays})
    return path


def test_what_was_saved_is_read(tmp_path):
    content = np.full((1, 13, 20, 3), 7, np.uint8)
    coded = Coded(LATENT, SPEC, 5, (13, 20), content, chunks=(5, 1), times=(0, 0.1, 0.3, 0.4, 1))
    coded.save(tmp_path / "a.npz")
    again = Coded.load(tmp_path / "a.npz")
    for field in dataclasses.fields(Coded):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(coded, field.name))


@pytest.mark.parametrize(
    "fields",
    [
        {"frames": -5}, {"frames": 0}, {"frames": 10**12}, {"frames": "x"}, {"frames": True},
        {"frames": 9}, {"size": [10**9, 10**9]}, {"size": []}, {"size": [13]}, {"size": [0, 20]},
        {"size": [13, 40]}, {"size": "ab"}, {"chunks": [5]}, {"chunks": [4, 0]}, {"chunks": "x"},
        {"chunks": [5, 9]}, {"spec": None}, {"spec": {}}, {"encoder": 3}, {"times": [1, 2]},
        {"times": [0, 1, 2, 3, 1e99]}, {"spec": {**SPEC.to_json(), "channels": 4}},
        {"spec": {**SPEC.to_json(), "t": -1}}, {"spec": {**SPEC.to_json(), "rule": [1, 4]}},
        {"spec": {**SPEC.to_json(), "scale": 0}}, {"spec": {**SPEC.to_json(), "foreign": 0}},
    ],
)  # fmt: skip
def test_what_no_coded_video_says_is_refused(tmp_path, fields):
    with pytest.raises(VidlatentError, match=r"a\.npz holds no coded video.*encode the video"):
        Coded.load(write(tmp_path / "a.npz", fields))


@pytest.mark.parametrize(
    "arrays",
    [
        {"latent": np.ones((2, 3), np.int8)}, {"latent": np.ones((2, 2, 3, 3), np.int32)},
        {"latent": LATENT * np.nan}, {"latent": LATENT * np.inf}, {"latent": LATENT[:0]},
        {"latent": LATENT[:, :1]}, {"content": np.ones((1, 13, 20, 3), np.float32)},
        {"content": np.ones((1, 9, 20, 3), np.uint8)}, {"content": np.ones(4, np.uint8)},
        {"about": np.ones(3)}, {"about": "no JSON"}, {"about": "[" * 100_000},
        {"about": '{"frames": NaN}'},
    ],
)  # fmt: skip
def test_arrays_that_no_coded_video_has_are_refused(tmp_path, arrays):
    with pytest.raises(VidlatentError, match=r"a\.npz holds no coded video"):
        Coded.load(write(tmp_path / "a.npz", **arrays))


def test_files_that_are_something_else(tmp_path):
    path = write(tmp_path / "a.npz")
    data = path.read_bytes()
    objects = tmp_path / "objects.npz"
    np.savez(objects, latent=np.array([{}], object), about="{}")
    for content in (b"", b"junk", data[:100], data[: len(data) // 2], objects.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(VidlatentError, match=r"a\.npz is damaged or no \.npz file"):
            Coded.load(path)
    np.save(tmp_path / "a.npy", LATENT)
    with pytest.raises(VidlatentError, match="damaged or no"):
        Coded.load(tmp_path / "a.npy")
    with pytest.raises(VidlatentError, match="there is no file"):
        Coded.load(tmp_path / "none.npz")
    flipped = bytearray(data)
    flipped[data.index(LATENT.tobytes()[:16]) + 40] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(VidlatentError, match="CRC"):
        Coded.load(path)


@pytest.mark.parametrize("how", ["compressed", "header"])
def test_a_small_file_takes_little_memory(tmp_path, how):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("latent.npy", "w") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": (1 << 28, 1)}
            np.lib.format.write_array_header_1_0(file, header)
            for _ in range(96 if how == "compressed" else 1):
                file.write(bytes(1 << 20))
    assert path.stat().st_size < 200_000
    tracemalloc.start()
    try:
        with pytest.raises(VidlatentError, match="unpack to|in 1048"):
            Coded.load(path)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
