"""Requests: prompts from files and folders, seeds, file names, mistakes by line."""

import json

import pytest

from vidlatent.errors import VidlatentError
from vidlatent.sample.outputs import name_video
from vidlatent.sample.requests import make_requests, read_prompts


def test_lines_and_objects(tmp_path):
    lines = tmp_path / "a.txt"
    lines.write_text("\ufeffa cat\n\n  two dogs  \n", encoding="utf-8")
    assert read_prompts(str(lines)) == [{"prompt": "a cat"}, {"prompt": "two dogs"}]
    objects = tmp_path / "a.jsonl"
    rows = [{"prompt": "a cat", "seed": 7}, {"prompt": 3, "image": "cat.png"}]
    objects.write_text("\n".join(map(json.dumps, rows)))
    assert read_prompts(str(objects)) == rows
    found = make_requests(read_prompts(str(objects)), count=2, seed=40)
    assert [(r.prompt, r.seed, r.number, r.image) for r in found] == [
        ("a cat", 7, 0, ""),
        ("a cat", 8, 1, ""),
        ("3", 42, 0, "cat.png"),
        ("3", 43, 1, "cat.png"),
    ]


def test_vbench_folders(tmp_path):
    """A folder and a file of prompts each: ``<dimension>/<prompt>-<k>.mp4``, seeds by file."""
    (tmp_path / "color.txt").write_text("a red car\na blue car\n")
    (tmp_path / "temporal_flickering.txt").write_text("a still lake\n")
    found = make_requests(read_prompts(str(tmp_path)), count=5, seed=100)
    still = [r for r in found if r.folder == "temporal_flickering"]
    assert [r.seed for r in found if r.folder == "color"] == list(range(100, 110))
    assert [r.seed for r in still] == list(range(100, 125)) and still[-1].number == 24
    taken = set()
    names = [name_video(r.prompt, r.number, taken, vbench=True) for r in found[:6]]
    assert names == [*(f"a red car-{k}.mp4" for k in range(5)), "a blue car-0.mp4"]
    long = "Word " * 46
    assert name_video(long, 0, set(), vbench=True) == f"{long}-0.mp4"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"a\.jsonl:2 is not JSON"),
        ('"a cat"', r"a\.jsonl:2: write \{\"prompt\""),
        ('{"seed": 1}', r"a\.jsonl:2: write \{\"prompt\""),
        ('{"prompt": "a", "sed": 1}', "unknown key 'sed': did you mean 'seed'"),
        ('{"prompt": null}', r"a\.jsonl:2: prompt and image are texts"),
        ('{"prompt": "a", "image": 3}', "prompt and image are texts"),
        ('{"prompt": "a", "seed": "x"}', "seed 'x' is no whole number from 0 on"),
        ('{"prompt": "a", "seed": -1}', "seed -1 is no whole number"),
        ('{"prompt": "a", "seed": 1.5}', "seed 1.5 is no whole number"),
    ],
)
def test_mistakes_name_their_line(tmp_path, line, message):
    file = tmp_path / "a.jsonl"
    file.write_text('{"prompt": "a cat"}\n' + line + "\n")
    with pytest.raises(VidlatentError, match=message):
        read_prompts(str(file))


def test_files_that_hold_no_prompts(tmp_path):
    with pytest.raises(VidlatentError, match="there is no such file"):
        read_prompts("nowhere.txt")
    with pytest.raises(VidlatentError, match="holds no .txt or .jsonl file of prompts"):
        read_prompts(str(tmp_path))
    file = tmp_path / "a.txt"
    file.write_text(" \n")
    with pytest.raises(VidlatentError, match="is empty: write one prompt a line"):
        read_prompts(str(file))
    file.write_bytes("grün".encode("latin-1"))
    with pytest.raises(VidlatentError, match="is no UTF-8"):
        read_prompts(str(file))
