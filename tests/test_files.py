"""Small files: replaced in one step, and JSON without NaN."""

import errno
import os

import pytest

from vidlatent.errors import VidlatentError
from vidlatent.files import dump_json, parse_json, read_json, replace_file, write_json


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "scores.json"
    write_json(path, {"psnr": 30.5})
    with pytest.raises(OSError), replace_file(path) as file:
        file.write(b'{"psnr": ')
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert read_json(path, "write it again") == {"psnr": 30.5}
    assert os.listdir(tmp_path) == ["scores.json"]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_json_lacks_are_refused_by_their_keys(tmp_path, number):
    with pytest.raises(VidlatentError, match=r"^scores\.clips\.1\.psnr is not finite"):
        write_json(tmp_path / "scores.json", {"scores": {"clips": [{}, {"psnr": number}]}})
    assert not os.listdir(tmp_path)


def test_what_is_no_number_stays_the_programs_mistake():
    with pytest.raises(TypeError):
        dump_json({"a": object()})


@pytest.mark.parametrize(
    "data",
    [b"", b"\x00" * 40, b"[1]", b'{"a": NaN}', b'{"a": Infinity}', b'{"a": 1', b"\xff\xfe{}",
     b'{"a":' + b"[" * 100_000],
)  # fmt: skip
def test_damaged_files_give_one_sentence_with_the_remedy(tmp_path, data):
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(VidlatentError, match=r"a\.json is damaged \(.*\): encode again\."):
        read_json(tmp_path / "a.json", "encode again")


def test_parse_json_raises_value_errors_alone():
    for text in ("[" * 100_000, "NaN", "-Infinity", "{", b"\xff"):
        with pytest.raises(ValueError):
            parse_json(text)
    assert parse_json('{"a": [1, 2.5, null]}') == {"a": [1, 2.5, None]}
