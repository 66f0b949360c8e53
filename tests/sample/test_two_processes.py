"""Two processes draw together, take turns in decoding, and leave what one process leaves."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.generator_runs import generator_run, tiny, tokenizer_run

ROOT = Path(__file__).parents[2]


def sample(workdir, output, processes):
    several = ["launch.local", f"--processes={processes}", "--"]
    module = several if processes > 1 else ["vidlatent.main"]
    flags = [f"--workdir={workdir}", f"--output={output}", "--config.sample.count=3"]
    done = subprocess.run(
        [sys.executable, "-m", *module, "--mode=sample", *flags],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.slow
def test_two_processes_write_what_one_writes(tmp_path):
    tokenizer = tokenizer_run(tmp_path / "tokenizer")
    run = generator_run(tiny(tokenizer), tmp_path / "generator", ("left", "right"))
    for processes in (1, 2):
        sample(run, tmp_path / str(processes), processes)
    one, two = tmp_path / "1", tmp_path / "2"
    names = sorted(file.name for file in one.iterdir())
    assert names == sorted(file.name for file in two.iterdir())
    videos = [name for name in names if name.endswith(".mp4")]
    assert len(videos) == 6  # three of each class: the processes take turns
    for name in videos:
        assert (one / name).read_bytes() == (two / name).read_bytes()
    told = [json.loads((folder / "samples.json").read_text()) for folder in (one, two)]
    assert told[0]["videos"] == told[1]["videos"]
    sheets = [np.asarray(Image.open(folder / "contact_sheet.png")) for folder in (one, two)]
    np.testing.assert_array_equal(*sheets)
