"""``benchmarks.long_video``: what it watches, draws and refuses; slow: all of it at toy size."""

import json
import sys

import numpy as np
import pytest

from benchmarks import long_video, long_video_report
from benchmarks.watch import MIB, measure_growth, measure_resident, read_place, watch
from tests.helpers.encode_cases import write_run
from tests.helpers.tiny_tokenizers import FSAE
from vidlatent import config as configs
from vidlatent.data.latent_set import Window
from vidlatent.errors import VidlatentError
from vidlatent.media.decode import iter_frames

TOY = "--size=64x48 --window=5 --shards=8 --minutes=0.6 --every=0.1".split()


def samples(sizes):
    return [(float(second), int(size * MIB), 0) for second, size in enumerate(sizes)]


def test_growth_is_that_of_medians_after_the_start():
    rng = np.random.default_rng(0)
    noisy = 1000 + rng.normal(size=90)
    noisy[5] = 5000  # one outlier moves the most, not the growth
    found = measure_growth(samples([10, 500, *noisy]), steady_s=2)
    assert abs(found["grown_mib"]) < 1 and found["first_third_mib"] == pytest.approx(1000, abs=1)
    assert found["most_mib"] == 5000 and found["seconds"] == 89
    rising = measure_growth(samples(np.arange(91)), steady_s=0)
    assert rising["grown_mib"] == pytest.approx(60, abs=1)
    assert (
        measure_growth(samples([1, 2, 3]), None) is None
        and measure_growth(samples([1, 2, 3]), 2) is None
    )


GREEDY = """
import subprocess, sys, time
held = bytearray(60 << 20)
if sys.argv[1] == "child":
    time.sleep(30)
subprocess.run([sys.executable, __file__, "child"])
"""


def test_children_count_and_are_killed_on_cue(tmp_path):
    program = tmp_path / "greedy.py"
    program.write_text(GREEDY)
    seen = []

    def both(pid):
        seen.append(measure_resident(pid))
        return 0.5

    command = [sys.executable, str(program), "parent"]
    found = watch(
        command,
        tmp_path / "log",
        "greedy",
        every=0.02,
        progress=both,
        cue=lambda: bool(seen) and seen[-1][1] > 120 * MIB,
        limit_s=20,
    )
    assert found.killed and found.status == -9 and found.progress == 0.5
    assert found.seconds < 20 and found.samples[0][1] < 120 * MIB < seen[-1][1] <= seen[-1][0]
    with pytest.raises(VidlatentError, match=r"^x ended with status 3: no room \(all in"):
        watch([sys.executable, "-c", "print('no room'); exit(3)"], tmp_path / "log", "x")


def test_place_in_a_file_that_is_read(tmp_path):
    import os

    file = tmp_path / "video"
    file.write_bytes(bytes(100))
    assert read_place(os.getpid(), file) == 0
    with open(file, "rb", buffering=0) as opened:
        opened.read(25)
        assert read_place(os.getpid(), file) == 0.25


def options_of(folder, *words):
    return long_video.parse_options([f"--folder={folder}", *TOY, *words])


def test_the_picture_moves_and_every_frame_is_in_the_file(tmp_path):
    options = options_of(tmp_path, "--minutes=0.3")
    drawn = list(long_video.draw_frames(48, 64, 400))
    # So small, it moves less than a step in some frames; it does not come back.
    assert len({frame.tobytes() for frame in drawn[::5]}) > 75
    assert drawn[0].shape == (72, 64) and drawn[0].std() > 10
    again = next(iter(long_video.draw_frames(48, 64, 1)))
    np.testing.assert_array_equal(again, drawn[0])
    found = long_video.make_video(options)
    info, restored = iter_frames(str(long_video.video_path(options)))
    assert info.frames == found["frames"] == sum(1 for _ in restored) == 432


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--size=wide", r"--size=wide: give width x height"),
        ("--size=65x48", "must be even"),
        ("--parts=video,encoding", "names 'encoding': choose of video, codec"),
        ("--minutes=0.1", "gives 28 windows of 5 frames for --shards=16"),
        ("--every=0", "use numbers above 0"),
        ("--parts=check", "needs encode first"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(tmp_path, capsys, words, message):
    status = long_video.main([f"--folder={tmp_path}", *TOY, "--shards=16", words])
    said = capsys.readouterr().err
    assert status == 2 and said.count("\n") == 1 and message in said


def test_another_videos_folder_is_refused(tmp_path, capsys):
    assert long_video.main([f"--folder={tmp_path}", *TOY, "--parts=report"]) == 0
    assert long_video.main([f"--folder={tmp_path}", *TOY, "--parts=report", "--fps=25"]) == 2
    assert "was begun with another --fps: choose another folder" in capsys.readouterr().err


class Source:
    """A set with given windows."""

    firsts = list(range(0, 860, 5))
    values = 1.0

    def __init__(self, path):
        self.windows = [Window("long.mp4", first, 0.0, 5, 48, 64, 24.0) for first in self.firsts]

    def read_arrays(self, name):
        return {"latent": np.full((2, 3), self.values)}


@pytest.mark.parametrize(
    ("firsts", "values", "message"),
    [
        (Source.firsts[:-1], 1.0, r"frames \[855\] are missing"),
        ([*Source.firsts, 40], 1.0, r"frames \[40\] are missing or there twice"),
        (Source.firsts, np.nan, "not finite"),
    ],
)
def test_a_set_that_is_not_right_is_found_out(tmp_path, monkeypatch, firsts, values, message):
    monkeypatch.setattr("vidlatent.data.sources.latents.LatentSource", Source)
    monkeypatch.setattr(Source, "firsts", firsts)
    monkeypatch.setattr(Source, "values", values)
    with pytest.raises(VidlatentError, match=message):
        long_video.check(options_of(tmp_path))


@pytest.mark.slow
def test_a_killed_set_is_made_whole_and_the_report_says_so(tmp_path, capsys):
    run = tmp_path / "run"
    write_run(run, configs.load("configs/fsae.py"), FSAE)
    words = [f"--folder={tmp_path / 'all'}", *TOY, f"--run={run}"]
    assert long_video.main(words) == 0, capsys.readouterr().err
    found = json.loads((tmp_path / "all" / "long_video.json").read_text())
    killed, *others = found["encode"]["runs"]
    assert killed["killed"] and killed["status"] == -9 and killed["new_shards"] >= 4
    assert sum(other["new_shards"] for other in others) == 8 - killed["new_shards"] > 0
    check = found["check"]
    assert check["windows"] == 172 and check["different_latents"] > 150
    assert check["unchanged_shards"] == killed["new_shards"]
    assert [f"{name}.array_record" for name in killed["left_half"]] == check["equal_shards"]
    assert found["reconstruct"]["frames"] == 864
    table = long_video_report.format_table(found)
    assert table in capsys.readouterr().out and "172 windows is there exactly once" in table
    assert (tmp_path / "all" / "long_video.png").stat().st_size > 10_000
    # Done is done: nothing runs again.
    before = (tmp_path / "all" / "encode.json").stat().st_mtime_ns
    assert long_video.main(words) == 0
    assert (tmp_path / "all" / "encode.json").stat().st_mtime_ns == before
