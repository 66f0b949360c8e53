"""The example package of docs/extending.md, written to a folder, works in fresh processes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```python\n# (\S+\.py)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SMALL = (
    "--config.data.source=synthetic --config.data.synthetic.clips=6 "
    "--config.data.buckets=((5,16,16,2),) --config.data.validation_clips=2 "
    "--config.train.steps=2 --config.checkpoint.every=2 --config.eval.every=0 "
    "--config.eval.pictures=1 --config.train.tensorboard=false"
).split()
SERVE = """
import numpy as np, vidlatent
codec = vidlatent.load_codec("run")
video = np.random.default_rng(0).integers(0, 255, (7, 20, 24, 3), np.uint8)
coded = codec.encode(video)
assert coded.latent.shape == (7, 5, 6, 16), coded.latent.shape
assert codec.decode(coded).shape == video.shape
"""
REGISTERED = """
from vidlatent import config
assert config.load("fsae_edges.py").loss.edges == 0.5
from my_latents import metrics, samplers, sources
from vidlatent.data.sources import SOURCES
from vidlatent.diffusion import make_sampler, make_schedule
plan = make_sampler(make_schedule({"name": "flow"}), {"name": "timid", "steps": 4, "share": 0.1})
assert plan.nfe == 4
import numpy as np
from vidlatent.metrics import make_metrics
(metric,) = make_metrics(["contrast"], {})
video = np.random.default_rng(0).integers(0, 255, (2, 3, 8, 8, 3), np.uint8)
assert np.allclose(metric.measure({}, video, video), 1.0)
source = SOURCES.get("glob")(type("Options", (), {"path": "*.py"}), 0)
assert [entry.name for entry in source.entries()] == [
    "fsae_edges.py", "patches.py", "rendered.py", "try_causal.py"
]
assert config.load("rendered.py").data.source == "synthetic"
import try_causal
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The page's files, and a run of two steps."""
    here = tmp_path_factory.mktemp("project")
    blocks = BLOCK.findall((ROOT / "docs" / "extending.md").read_text())
    for name, code in blocks:
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_text(code)
    assert (here / "patches.py").is_file() and (here / "my_latents" / "tokenizer.py").is_file()
    run(here, "-m", "vidlatent.main", "--config=patches.py", "--workdir=run", *SMALL)
    return here


def run(here, *command):
    """A command in a process of its own, in the folder; what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, *command], cwd=here, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_trained_run_is_scored_from_its_workdir_alone(folder):
    assert "psnr" in run(folder, "-m", "vidlatent.main", "--mode=eval", "--workdir=run")


def test_codec_from_the_workdir_alone_and_what_else_is_registered(folder):
    run(folder, "-c", SERVE + REGISTERED)
