"""The command line: help, mistakes, where things go."""

import subprocess
import sys
from pathlib import Path

import pytest

from vidlatent.errors import VidlatentError
from vidlatent.main import resolve, split_overrides

ROOT = Path(__file__).parent.parent


def run(*args):
    return subprocess.run(
        [sys.executable, "-m", "vidlatent.main", *args],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_split_overrides():
    argv = ["prog", "--config=c.py", "--config.a.b=1=2", "--mode=eval", "--config.c", "x"]
    assert split_overrides(argv) == (
        ["prog", "--config=c.py", "--mode=eval"],
        {"a.b": "1=2", "c": "x"},
    )
    with pytest.raises(VidlatentError, match="needs a value"):
        split_overrides(["prog", "--config.a"])


def test_workdir_defaults_to_config_and_preset(tmp_path):
    assert resolve("fsae", "", {})[1] == Path("runs/fsae-demo")
    assert resolve("fsae:paper", "", {})[1] == Path("runs/fsae-paper")
    assert resolve("fsae", str(tmp_path), {})[1] == tmp_path
    with pytest.raises(VidlatentError, match="give --config"):
        resolve("", "", {})


def test_missing_accelerator_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    done = run("--config=configs/fsae.py", f"--workdir={tmp_path}")
    assert done.returncode == 2
    assert "JAX finds no device" in done.stderr and "Traceback" not in done.stderr


def test_help_shows_each_mode_with_an_example():
    text = run("--help").stdout
    for mode in ("train", "eval", "reconstruct"):
        assert mode in text
    assert text.count("python -m vidlatent.main") >= 4


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--config=configs/fsae.py", "--mode=trian"], "did you mean 'train'?"),
        (["--config=configs/fsae.py", "--config.optim.lrr=1"], "did you mean 'lr'?"),
        (["--config=configs/fsea.py"], "did you mean 'fsae'?"),
        (["--config=configs/fsae.py", "--config.kernels.attention=splahs"], "'splash'?"),
        (["--config=configs/fsae.py", "extra"], "unexpected argument 'extra'"),
        (["--mode=eval", "--workdir=nowhere"], "train first"),
        (["--config=configs/fsae.py", "--workdir=/proc/none"], "/proc/none"),
        (["--config=configs/fsae.py", "--config.data.buckets=((8, 64, 64, 4),)"], "5 or 9"),
    ],
)
def test_a_mistake_is_one_sentence_and_a_failing_exit(args, says, tmp_path):
    if not any(arg.startswith("--workdir") for arg in args):
        args = [*args, f"--workdir={tmp_path / 'run'}"]
    done = run(*args)
    assert done.returncode == 2
    error = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and says in error[0]
    assert "Traceback" not in done.stderr
