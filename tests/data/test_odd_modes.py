"""Training, encoding and scoring of a folder of odd files, as a person runs them."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.helpers.odd_files import ODD, TRUE_TIMES
from vidlatent.data.sources.latents import LatentSource

ROOT = Path(__file__).parent.parent.parent


def run(*args):
    done = subprocess.run(
        [sys.executable, "-m", "vidlatent.main", *map(str, args)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


@pytest.mark.slow
def test_every_odd_file_in_every_mode(tools, tmp_path):
    folder, workdir, output = tmp_path / "clips", tmp_path / "run", tmp_path / "latents"
    folder.mkdir()
    for file in ODD.iterdir():
        if file.suffix not in (".txt", ".jsonl", ".md"):
            shutil.copy(file, folder)
    for number in range(3):
        tools.write_clip(folder / f"good{number}.mp4", tools.pictures(seed=number))
    keys = (
        "--config.data.source=folder",
        f"--config.data.path={folder}",
        "--config.data.max_pixels=1000000",
    )
    said = run(
        f"--config={ROOT / 'tests' / 'tiny.py'}",
        f"--workdir={workdir}",
        *keys,
        "--config.data.buckets=((5, 16, 16, 2), (1, 16, 16, 2))",
        "--config.train.steps=3",
    )
    for name, reason in (("damaged.avif", "corrupt"), ("f32.tiff", "unsupported")):
        assert f"{name}: {reason}" in said
    assert "wide.png: too_large" in said
    run("--mode=eval", f"--workdir={workdir}", f"--output={tmp_path / 'eval'}")
    scores = json.loads((tmp_path / "eval" / "scores.json").read_text())
    assert scores["scores"]["clips"] > 0
    said = run(
        "--mode=encode",
        f"--workdir={workdir}",
        f"--output={output}",
        "--config.encode.windows=all",
        "--config.data.buckets=((5, 16, 16, 2),)",
        *keys,
    )
    windows = Counter(window.clip for window in LatentSource(str(output)).windows)
    assert {name: windows[name] for name in TRUE_TIMES} == {
        name: (frames - 5) // 5 + 1 for name, (frames, _, _, _) in TRUE_TIMES.items()
    }
