"""CLIP's token numbers: by hand for a small list of merges, and as published for the whole one.

``VIDLATENT_CLIP_MERGES`` names bpe_simple_vocab_16e6.txt.gz; it comes with open_clip_torch.
"""

import gzip
import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest

from vidlatent.data.text.clip import (
    _open_merges,
    hashing_clip_tokenizer,
    load_clip_tokenizer,
)
from vidlatent.errors import VidlatentError

MERGES = "#version: 0.2\nl o\nlo w</w>\ne r</w>\nlo w\n"
# 256 bytes, then 256 that end a word; "!" is the first printable byte.
LOW_END, ER_END, LOW, START, END = 513, 514, 515, 516, 517


def letter(character, ends=False):
    return ord(character) - ord("!") + 256 * ends


@pytest.fixture(params=["merges.txt", "merges.txt.gz", "tokenizer.json"])
def file(request, tmp_path):
    path = tmp_path / request.param
    if path.suffix == ".json":
        (tmp_path / "merges.txt").write_text(MERGES)
        _open_merges(tmp_path / "merges.txt").save(str(path))
    else:
        with (gzip.open if path.suffix == ".gz" else open)(path, "wt") as merges:
            merges.write(MERGES)
    return path


def test_words_become_byte_pairs(file):
    tokenizer = load_clip_tokenizer(file, length=12)
    tokens = tokenizer(["LOW  lower,er!", "", "é"])
    assert tokens.dtype == np.int32
    # The comma and the exclamation mark are words; runs of blanks are none.
    words = [LOW_END, LOW, ER_END, letter(",", True), ER_END, letter("!", True)]
    assert tokens[0].tolist() == [START, *words, *5 * [END]][:12]
    assert tokens[1].tolist() == [START, *11 * [END]]
    # Two bytes of UTF-8, 195 and 169, the second of which ends the word.
    bytes_of = [*range(33, 127), *range(161, 173), *range(174, 256)]
    assert tokens[2, 1:3].tolist() == [bytes_of.index(195), 256 + bytes_of.index(169)]


def test_long_texts_keep_their_end_and_short_ones_are_padded(file):
    tokenizer = load_clip_tokenizer(file, padding=0, length=5)
    tokens = tokenizer(["low low low low low", "low"])
    assert tokens.tolist() == [[START, *3 * [LOW_END], END], [START, LOW_END, END, 0, 0]]


def test_hashed_words_have_the_same_marks():
    tokenizer = hashing_clip_tokenizer(vocab=64, length=6)
    tokens = tokenizer(["a red dot", "A Red dot!", "one two three four five six"])
    assert (tokens[:, 0] == 62).all() and tokens[0, 4] == 63 and tokens[2, -1] == 63
    np.testing.assert_array_equal(tokens[0], tokens[1])
    assert 0 < tokens[0, 1:4].min() and tokens[0, 1:4].max() < 62


def test_wrong_files_are_said(tmp_path):
    with pytest.raises(VidlatentError, match="no tokenizer at an empty path: CLIP's texts need"):
        load_clip_tokenizer("")
    with pytest.raises(VidlatentError, match="no tokenizer at .*gone.txt.gz: CLIP's texts need"):
        load_clip_tokenizer(tmp_path / "gone.txt.gz")
    for content in ("#version\nthree words here\n", "#version\none\n"):
        (tmp_path / "bad.txt").write_text(content)
        with pytest.raises(VidlatentError, match="bad.txt is no list of merges"):
            load_clip_tokenizer(tmp_path / "bad.txt")
    (tmp_path / "bad.txt.gz").write_bytes(b"no gzip")
    with pytest.raises(VidlatentError, match="bad.txt.gz is no list of merges"):
        load_clip_tokenizer(tmp_path / "bad.txt.gz")
    other = {"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(other))
    with pytest.raises(VidlatentError, match=r"has no <\|startoftext\|> or <\|endoftext\|>"):
        load_clip_tokenizer(tmp_path)


def published_merges():
    if path := os.environ.get("VIDLATENT_CLIP_MERGES", ""):
        return path
    found = importlib.util.find_spec("open_clip")
    if found is None or found.origin is None:
        pytest.skip("no list of merges: VIDLATENT_CLIP_MERGES names it, open_clip_torch brings it")
    return Path(found.origin).with_name("bpe_simple_vocab_16e6.txt.gz")


def test_published_numbers():
    root = Path(os.environ.get("VIDLATENT_REFERENCE", Path(__file__).parents[1] / "reference"))
    case = root / "mps" / "clip_token_ids.json"
    if not case.is_file():
        pytest.skip(f"no case {case}")
    expected = json.loads(case.read_text())
    tokenizer = load_clip_tokenizer(published_merges(), length=expected["context"])
    assert (tokenizer.start, tokenizer.end) == (expected["sot"], expected["eot"])
    rows = [*expected["conditions"].values(), *expected["prompts"]]
    for row, tokens in zip(rows, tokenizer([row["text"] for row in rows]), strict=True):
        count = len(row["ids"])
        assert tokens[:count].tolist() == row["ids"] and (tokens[count:] == tokenizer.end).all()
