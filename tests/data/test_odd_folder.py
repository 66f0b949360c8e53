"""One odd file among good ones never ends a run: it is read rightly or left out with a reason."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.odd_files import ODD
from vidlatent.data.index import build_index
from vidlatent.data.loader import make_loader
from vidlatent.data.sources.folder import FolderSource, ListSource
from vidlatent.data.text.captions import read_text
from vidlatent.errors import VidlatentError
from vidlatent.media.errors import ClipError, Limits
from vidlatent.media.probe import ClipInfo

LEFT_OUT = {
    "damaged.avif": "corrupt",
    "f32.tiff": "unsupported",
    "wide.png": "too_large",
    "latin_\\xe9.mp4": "unreadable",
    "list.m3u8": "unsupported",
    "list.ffconcat": "unsupported",
    "no_codec.mp4": "unsupported",
    "thin.mp4": "too_large",
    "utf16.mp4": "caption",
    "nul.mp4": "caption",
}


@pytest.fixture(scope="module")
def folder(tools, tmp_path_factory):
    path = tmp_path_factory.mktemp("odd")
    for file in ODD.iterdir():
        if file.suffix not in (".txt", ".jsonl", ".md"):
            shutil.copy(file, path / file.name)
    for number in range(3):
        good = tools.write_clip(path / f"good{number}.mp4", tools.pictures(seed=number))
    shutil.copy(good, os.fsencode(path) + b"/latin_\xe9.mp4")
    (path / "list.m3u8").write_text("#EXTM3U\n#EXTINF:1,\njump.ts\n#EXTINF:1,\n../x.ts\n")
    (path / "list.ffconcat").write_text("ffconcat version 1.0\nfile good0.mp4\n")
    content = Path(good).read_bytes()
    (path / "no_codec.mp4").write_bytes(content.replace(b"avc1", b"zzzz"))
    tools.write_clip(path / "thin.mp4", np.zeros((12, 2, 8000, 3), np.uint8))
    for name, text in (("utf16", "a ball".encode("utf-16")), ("nul", b"a \0 ball")):
        shutil.copy(good, path / f"{name}.mp4")
        (path / f"{name}.txt").write_bytes(text)
    shutil.copy(good, path / "good2:x.mp4")
    (path / "good2:x.txt").write_bytes(b"\xef\xbb\xbfa red ball\r\n")
    return path


@pytest.mark.parametrize("memory", [0, 512])
def test_all_odd_files_beside_good_ones(tools, folder, memory):
    options = tools.options(
        source="folder",
        path=str(folder),
        buckets=((5, 256, 256, 4), (1, 256, 256, 2)),
        validation_share=0.0,
        memory_mb=memory,
        max_pixels=1 << 20,
        verify="decode" if memory else "header",
    )
    loader = make_loader(options, split="train", rule=tools.rule, seed=0)
    found = {clip.path: clip.reason for clip in loader.report.clips}
    assert found == LEFT_OUT
    names = {
        os.fsencode(file.name).decode("utf-8", "backslashreplace") for file in folder.iterdir()
    }
    index = build_index(FolderSource(str(folder)), Limits(), "header")
    kept = {clip.path: clip for clip in index.clips if clip.path not in LEFT_OUT}
    assert set(kept) == {name for name in names if not name.endswith(".txt")} - set(LEFT_OUT)
    assert kept["good2:x.mp4"].caption == "a red ball"
    assert kept["jump.ts"].frames == 65 and kept["recorder_nodd.webm"].frames == 60
    for batch, _ in zip(loader, range(3 if memory else 12), strict=False):
        assert batch["mask"].all()
    assert loader.report.failed == 0


def test_reasons_are_kept_in_the_index_cache(folder, tmp_path):
    cache = str(tmp_path / "clips.json")
    source = FolderSource(str(folder))
    first = build_index(source, Limits(), "header", cache)
    again = build_index(source, Limits(), "header", cache)
    assert (first.clips, first.bad) == (again.clips, again.bad)
    assert kept_info(first, "jump.ts").track.counted
    # A damaged cache is as good as none.
    rows = json.loads(Path(cache).read_text())
    rows["clips"]["jump.ts"]["info"].pop("frames")
    rows["clips"]["two.mkv"] = ["no", "row"]
    rows["clips"]["vfr.mp4"]["stamp"] = None
    Path(cache).write_text(json.dumps(rows))
    assert build_index(source, Limits(), "header", cache).clips == first.clips


def kept_info(index, name) -> ClipInfo:
    return next(clip.info for clip in index.clips if clip.path == name)


def test_any_exception_of_a_source_is_a_reason(tools, folder, monkeypatch):
    def fail(self, name, limits):
        if name == "good1.mp4":
            raise MemoryError
        if name == "good0.mp4":
            raise RuntimeError("odd")
        return ClipInfo(name, 40, 25.0, 64, 48, 1.6, False)

    monkeypatch.setattr(FolderSource, "probe", fail)
    index = build_index(FolderSource(str(folder)), Limits(), "header")
    found = {bad.path: (bad.reason, bad.detail) for bad in index.bad}
    assert found["good1.mp4"][0] == "too_large"
    assert found["good0.mp4"] == ("unreadable", "RuntimeError: odd")


def test_playlists_open_nothing_outside_the_folder(folder):
    with pytest.raises(ClipError, match="a list of other files"):
        FolderSource(str(folder)).probe("list.m3u8", Limits())


def test_lists_have_marks_and_refuse_what_is_no_name(tmp_path, tools):
    tools.write_clip(tmp_path / "base.mp4")
    shutil.copy(ODD / "list_bom.txt", tmp_path / "list.txt")
    shutil.copy(ODD / "captions_bom.jsonl", tmp_path / "list.jsonl")
    for name in ("list.txt", "list.jsonl"):
        source = ListSource(str(tmp_path / name))
        assert [entry.name for entry in source.entries()] == ["base.mp4"]
    assert source.describe("base.mp4") == ("", "x")
    for row in (
        '{"file": "a\\u0000b"}',
        '{"file": "\\ud800"}',
        '{"file": "a", "caption": "\\ud800"}',
    ):
        (tmp_path / "bad.jsonl").write_text(row)
        with pytest.raises(VidlatentError, match="line 1"):
            ListSource(str(tmp_path / "bad.jsonl")).entries()
    for content, said in (
        ("a.mp4\n".encode("utf-16"), "UTF-16"),
        (b"a\0b.mp4\n", "NUL"),
        (b"caf\xe9.mp4\n", "no UTF-8"),
    ):
        (tmp_path / "bad.txt").write_bytes(content)
        with pytest.raises(VidlatentError, match=said):
            ListSource(str(tmp_path / "bad.txt")).entries()


def test_text_is_cut_between_characters(tmp_path):
    (tmp_path / "a.txt").write_text("ä" * 50, encoding="utf-8")
    assert read_text(str(tmp_path / "a.txt"), 7) == "ä" * 7
    assert read_text(str(ODD / "caption_bom.txt")).strip() == "a red ball"
