"""The main job as a person does it: train on a folder, score, restore a video."""

import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from vidlatent.media.decode import iter_frames

ROOT = Path(__file__).parent.parent.parent
# Kinds of bad clips that do not depend on the machine's speed or the user's rights.
REASONS = (
    "missing",
    "corrupt",
    "truncated",
    "empty",
    "too_large",
    "too_short",
    "no_video",
    "unreadable",
)


def run(*args):
    done = subprocess.run(
        [sys.executable, "-m", "vidlatent.main", *map(str, args)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


@pytest.fixture(scope="module")
def trained(tools, tmp_path_factory):
    """A workdir trained on a folder that mixes good clips with most kinds of bad ones."""
    folder = tools.make_bad_folder(tmp_path_factory.mktemp("clips"))
    workdir = tmp_path_factory.mktemp("run")
    out = run(
        f"--config={ROOT / 'tests' / 'tiny.py'}",
        f"--workdir={workdir}",
        "--config.data.source=folder",
        f"--config.data.path={folder}",
        "--config.data.buckets=((5, 16, 16, 2),)",  # none of single frames, for short clips
        "--config.data.max_pixels=250000",
        "--config.data.validation_share=0.3",
        "--config.train.steps=12",
        "--config.train.tensorboard=true",
    )
    return workdir, out


def test_folder_with_bad_clips_trains_to_the_end_and_names_them(trained):
    _, out = trained
    assert "eval/step_12/report.html" in out
    for reason in REASONS:
        assert f": {reason}: " in out, reason


def test_training_leaves_scores_pictures_and_curves(trained):
    workdir, _ = trained
    folder = workdir / "eval" / "step_12"
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["scores"]["clips"] == len(scores["by_clip"]) > 0
    assert {"psnr", "ssim", "psnr_constant_colour"} <= set(scores["scores"])
    page = (folder / "report.html").read_text()
    assert "data:image/png;base64," in page and "data:video/mp4;base64," in page
    assert Image.open(folder / "contact_sheet.png").width > 200
    info, frames = iter_frames(str(folder / "side_by_side_0.mp4"))
    assert len(list(frames)) == info.frames
    steps = [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").open()]
    assert steps[-1] == 12
    assert list((workdir / "tensorboard").glob("events.*"))


def test_eval_of_the_workdir_gives_the_scores_training_ended_with(trained, tmp_path):
    workdir, _ = trained
    run("--mode=eval", f"--workdir={workdir}", f"--output={tmp_path}")
    before = json.loads((workdir / "eval" / "step_12" / "scores.json").read_text())
    after = json.loads((tmp_path / "scores.json").read_text())
    assert after["scores"] == pytest.approx(before["scores"])
    assert [row["clip"] for row in after["by_clip"]] == [row["clip"] for row in before["by_clip"]]


def test_reconstruct_keeps_rate_length_and_size(trained, tools, tmp_path):
    workdir, _ = trained
    rate = Fraction(30000, 1001)
    source = tools.write_clip(tmp_path / "in.mp4", tools.noise(23, 50, 70), rate=rate)
    target = tmp_path / "out" / "restored.mp4"
    run("--mode=reconstruct", f"--workdir={workdir}", f"--input={source}", f"--output={target}")
    with av.open(str(target)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == rate
        assert sum(1 for _ in container.decode(stream)) == 23
        assert (stream.height, stream.width) == (50, 70)
    scores = json.loads((target.parent / "restored_scores.json").read_text())
    assert scores["frames"] == 23 and np.isfinite(scores["psnr"])
    assert scores["latent_shape"] == [7, 13, 18, 8]
    assert (target.parent / "restored_side_by_side.mp4").stat().st_size > 0
    assert Image.open(target.parent / "restored_contact_sheet.png").width > 200


def test_a_picture_is_a_video_of_one_frame(trained, tools, tmp_path):
    workdir, _ = trained
    source = tools.write_picture(tmp_path / "in.png", 33, 47)
    target = tmp_path / "restored.mp4"
    run("--mode=reconstruct", f"--workdir={workdir}", f"--input={source}", f"--output={target}")
    assert json.loads((tmp_path / "restored_scores.json").read_text())["frames"] == 1


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [("none.mp4", None, "none.mp4"), ("text.mp4", b"no video at all", "text.mp4")],
)
def test_reconstruct_of_nothing_leaves_nothing(trained, tmp_path, name, content, says):
    workdir, _ = trained
    if content is not None:
        (tmp_path / name).write_bytes(content)
    target = tmp_path / "restored.mp4"
    done = subprocess.run(
        [sys.executable, "-m", "vidlatent.main", "--mode=reconstruct", f"--workdir={workdir}"]
        + [f"--input={tmp_path / name}", f"--output={target}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert "error: " in done.stderr and says in done.stderr and "Traceback" not in done.stderr
    assert not target.exists()
