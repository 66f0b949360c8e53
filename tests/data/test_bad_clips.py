"""Unusable clips are named, counted and replaced, until there are too many."""

import os

import pytest

from vidlatent.data import make_loader
from vidlatent.data.bad_clips import BadClips
from vidlatent.data.index import BadClip
from vidlatent.data.sources.folder import FolderSource
from vidlatent.errors import VidlatentError
from vidlatent.media.errors import REASONS, ClipError

EXPECTED = {
    "broken_link.mp4": "missing",
    "corrupt.mp4": "corrupt",
    "cut_off.mp4": "truncated",
    "empty.mp4": "empty",
    "huge.png": "too_large",
    "no_index.mp4": "unreadable",
    "short.mp4": "too_short",
    "slow.mp4": "slow",
    "sound.mp4": "no_video",
    "text.mp4": "unreadable",
}
if os.geteuid():  # root may read everything
    EXPECTED["secret.mp4"] = "permission"


@pytest.fixture
def slow(monkeypatch):
    """Reading slow.mp4 takes longer than allowed, whatever the machine."""
    probe = FolderSource.probe

    def patched(self, name, limits):
        if name == "slow.mp4":
            raise ClipError("slow", "not done after 20 s")
        return probe(self, name, limits)

    monkeypatch.setattr(FolderSource, "probe", patched)


def folder_options(tools, path, **changes):
    defaults = dict(source="folder", path=path, max_pixels=500 * 500, validation_share=0.0)
    return tools.options(**defaults | changes)


@pytest.mark.parametrize("verify", ["auto", "header"])
@pytest.mark.parametrize("workers", [0, 2])
def test_ten_kinds_among_good_clips(tools, tmp_path, slow, caplog, verify, workers):
    options = folder_options(
        tools, tools.make_bad_folder(tmp_path), verify=verify, num_workers=workers, memory_mb=0
    )
    with make_loader(options, split="train", rule=tools.rule, seed=0) as loader:
        batches = [next(loader) for _ in range(40)]
        report = loader.report
    found = {bad.path: bad.reason for bad in report.clips}
    assert found == EXPECTED
    assert set(report.counts) == set(EXPECTED.values())
    for name, reason in EXPECTED.items():
        assert f"{name}: {reason}: " in report.table() and reason in caplog.text
    assert all(batch["mask"].all() for batch in batches)
    skipped = [bad for batch in batches for bad in batch["skipped"]]
    if verify == "auto":  # clips were decoded beforehand, so no bad one is left
        assert not skipped and report.failed == 0
    else:
        assert {bad[:2] for bad in skipped} == {("corrupt.mp4", "corrupt")}
        assert report.failed == len(skipped) and report.draws == 160


def test_replacements_depend_on_the_position_alone(tools, tmp_path, slow):
    options = folder_options(tools, tools.make_bad_folder(tmp_path), verify="header")

    def read(steps, start_step=0, **changes):
        arguments = dict(split="train", rule=tools.rule, seed=0, start_step=start_step)
        with make_loader(options | changes, **arguments) as loader:
            return [next(loader) for _ in range(steps)]

    straight = read(20)
    assert any(batch["skipped"] for batch in straight[8:])
    for other in (read(12, 8), read(20, num_workers=1)[8:], read(12, 8, memory_mb=0)):
        for one, two in zip(straight[8:], other, strict=True):
            assert (one["video"] == two["video"]).all() and one["skipped"] == two["skipped"]


def test_over_the_budget_the_run_stops_with_the_list(tools, tmp_path):
    for name in "abcdef":
        tools.write_clip(tmp_path / f"{name}.mp4", tools.noise(), gop_size=5)
        tools.damage(tmp_path / f"{name}.mp4")
    tools.write_clip(tmp_path / "good.mp4")
    options = folder_options(tools, str(tmp_path), verify="header", bad_clip_window=40)
    with make_loader(options, split="train", rule=tools.rule, seed=0) as loader:
        with pytest.raises(VidlatentError) as caught:
            for _ in range(40):
                next(loader)
    message = str(caught.value)
    assert "data.bad_clip_budget = 0.05" in message and "corrupt" in message
    assert ".mp4: corrupt: " in message and str(tmp_path) in message


def test_nothing_usable_names_the_folder_and_the_reasons(tools, tmp_path):
    (tmp_path / "a.mp4").touch()
    (tmp_path / "b.mp4").write_text("text")
    tools.write_clip(tmp_path / "c.mp4", tools.pictures(3))
    with pytest.raises(VidlatentError) as caught:
        make_loader(folder_options(tools, str(tmp_path)), split="train", rule=tools.rule, seed=0)
    for part in (str(tmp_path), "no usable clip", "a.mp4: empty", "b.mp4: unreadable", "c.mp4"):
        assert part in str(caught.value)


def test_files_that_vanish_during_the_run(tools, tmp_path):
    for number in range(6):
        tools.write_clip(tmp_path / f"{number}.mp4")
    options = folder_options(tools, str(tmp_path), memory_mb=0, prefetch=1, bad_clip_budget=1.0)
    with make_loader(options, split="train", rule=tools.rule, seed=0) as loader:
        next(loader)
        gone = loader.index[0].path
        os.remove(tmp_path / gone)
        for _ in range(12):
            next(loader)
        assert loader.report.counts == {"missing": 1}
        for clip in loader.index[1:]:
            os.remove(tmp_path / clip.path)
        with pytest.raises(VidlatentError, match="no usable clip left"):
            for _ in range(12):
                next(loader)


def test_validation_masks_what_it_cannot_read(tools, tmp_path):
    for number in range(6):
        tools.write_clip(tmp_path / f"{number}.mp4")
    options = folder_options(tools, str(tmp_path), memory_mb=0, validation_share=0.5)
    with make_loader(options, split="validation", rule=tools.rule, seed=0) as loader:
        whole = list(loader)
        os.remove(tmp_path / loader.index[0].path)
        hurt = list(loader)
        lost = loader.report.failed
    assert 0 < lost == sum(b["mask"].sum() for b in whole) - sum(b["mask"].sum() for b in hurt)


def test_the_budget_looks_at_the_last_window_only():
    report = BadClips("here", [BadClip("x", "empty", "0 bytes")], budget=0.1, window=100)
    for _ in range(30):
        report.record(10, [("a", "corrupt", "?")])
        report.check()  # 10 of 100 is not above the limit
    report.record(10, [("a", "corrupt", "?"), ("b", "slow", "?")])
    with pytest.raises(VidlatentError, match="11 of the last 100 draws from here"):
        report.check()
    assert report.counts == {"empty": 1, "slow": 1, "corrupt": 1}
    assert "(31 draws)" in report.table()


def test_reasons_are_a_fixed_set():
    with pytest.raises(ValueError):
        ClipError("because", "")
    assert all(text for text in REASONS.values())
