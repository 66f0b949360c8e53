"""XManager's launcher, in an environment of its own: XManager needs another protobuf."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
# XManager's mocks in the place of its experiment: what would be launched, as text.
MOCK = """
import sys
from absl import flags
import launch.xm as launcher
from launch.sweep import expand
from xmanager import xm, xm_mock

words = sys.argv[1:]
launcher._define_overrides(words)
flags.FLAGS(["launch/xm.py", *words])
points = launcher._check()
with xm_mock.MockExperiment() as experiment:
    launcher._package = lambda _: (xm_mock.MockExecutable(), xm_mock.MockExecutor())
    launcher.launch(experiment, flags.FLAGS.config, flags.FLAGS.workdir, points)
for job in experiment.launched_jobs:
    print(job.args.to_list())
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """Python with XManager and this package."""
    folder = tmp_path_factory.mktemp("xm")
    uv = Path(sys.executable).with_name("uv")
    python = folder / "env" / "bin" / "python"
    for command in (
        [uv, "venv", "--quiet", "--python", sys.executable, folder / "env"],
        [uv, "pip", "install", "--quiet", "--python", python, "xmanager>=0.8,<0.9", ROOT],
        [uv, "pip", "uninstall", "--quiet", "--python", python, "vidlatent"],
    ):
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr[-2000:]
    return python


def run(python, *words, **more):
    """A command in an environment in which the package is the one beside this test."""
    told = {**os.environ, "PYTHONPATH": str(ROOT), **more}
    return subprocess.run(
        [str(python), *words], cwd=ROOT, env=told, capture_output=True, text=True, timeout=600
    )


@pytest.mark.slow
def test_a_sweep_is_one_job_for_each_combination(python):
    done = run(
        python,
        *("-c", MOCK, "--config=configs/fsae.py", "--workdir=gs://bucket/seeds"),
        *("--config.seed=0,1", "--config.optim.lr=1e-4", "--executor=vertex"),
        *("--topology=a100:8", "--image=gcr.io/project/image"),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == [
        str(
            [
                "--config=configs/fsae.py",
                f"--workdir=gs://bucket/seeds/seed={seed}",
                "--config.optim.lr=1e-4",
                f"--config.seed={seed}",
            ]
        )
        for seed in (0, 1)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "give --config"),
        (("--config=configs/fsae.py",), "--workdir"),
        (("--config=configs/fsae.py", "--workdir=a", "--config.optim.rate=1"), "no key 'rate'"),
        (
            ("--config=configs/fsae.py", "--workdir=a", "--executor=vertex", "--topology=v5p:8"),
            "launch/gke.py",
        ),
        (
            ("--config=configs/fsae.py", "--workdir=a", "--executor=vertex", "--topology=cpu:8"),
            "--image",
        ),
    ],
)
def test_mistakes_are_said(python, words, said, tmp_path):
    xmanager = python.with_name("xmanager")
    done = run(python, str(xmanager), "launch", "launch/xm.py", "--", *words, HOME=str(tmp_path))
    assert done.returncode == 1
    assert said in done.stderr.strip().splitlines()[-1]


@pytest.mark.slow
def test_two_seeds_are_launched_on_this_machine(python, tmp_path):
    xmanager = python.with_name("xmanager")
    done = run(
        python,
        *(str(xmanager), "launch", "launch/xm.py", "--", "--config=configs/fsae.py"),
        *(f"--workdir={tmp_path}/runs", "--config.seed=0,1", "--config.train.steps=1"),
        *("--config.data.source=synthetic", "--config.data.buckets=((5,32,32,2),)"),
        "--config.data.synthetic.clips=8",
        HOME=str(tmp_path),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for seed in (0, 1):
        assert (tmp_path / "runs" / f"seed={seed}" / "checkpoints" / "1").is_dir()
