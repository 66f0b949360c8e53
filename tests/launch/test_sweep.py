"""Sweeps: what is run, in which folders, and what a mistake is answered with."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from launch import sweep
from launch.sweep import expand, main, split_values
from vidlatent.errors import VidlatentError

CONFIG = "--config=configs/fsae.py"


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1", ["1"]),
        ("1, 2,3", ["1", "2", "3"]),
        ("((5,32,32,2),)", ["((5,32,32,2),)"]),
        ("(1,2),(3,)", ["(1,2)", "(3,)"]),
        ("'a,b',c", ["'a,b'", "c"]),
        ("{'x': 1, 'y': 2}", ["{'x': 1, 'y': 2}"]),
    ],
)
def test_commas_inside_brackets_part_nothing(text, values):
    assert split_values(text) == values


@pytest.mark.parametrize("text", ["(1,2", "'a", "1,,2", "1,", "1)"])
def test_half_values_are_refused(text):
    with pytest.raises(VidlatentError, match="without its partner|empty value"):
        split_values(text)


def test_all_combinations_have_folders_of_their_own():
    points = expand({"seed": "0,1", "optim.lr": "1e-4,3e-4", "train.steps": "5"})
    assert [point.name for point in points] == [
        "seed=0,optim.lr=1e-4",
        "seed=0,optim.lr=3e-4",
        "seed=1,optim.lr=1e-4",
        "seed=1,optim.lr=3e-4",
    ]
    assert points[1].flags() == [
        "--config.seed=0",
        "--config.optim.lr=3e-4",
        "--config.train.steps=5",
    ]
    assert [point.name for point in expand({"seed": "3"})] == [""]


def test_folders_are_never_shared():
    with pytest.raises(VidlatentError, match="twice"):
        expand({"seed": "1,1"})
    with pytest.raises(VidlatentError, match="same folder"):
        expand({"data.path": "a/b,a:b"})
    long = "x" * 200
    with pytest.raises(VidlatentError, match="same folder"):
        expand({"data.path": f"{long}1,{long}2"})


def test_a_mistake_is_said_before_the_first_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sweep.subprocess, "run", lambda *_, **__: pytest.fail("a run began"))
    status = main([CONFIG, f"--workdir={tmp_path}", "--config.optim.lr=1e-4,-1"])
    assert status == 2
    assert "optim.lr" in capsys.readouterr().err


def test_commands_are_printed(tmp_path, capsys):
    flags = [CONFIG, f"--workdir={tmp_path}", "--config.seed=0,1", "--dry-run", "--processes=2"]
    assert main(flags) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"-m launch.local --processes=2 -- {CONFIG} --workdir={tmp_path}/seed={n} --config.seed={n}"
        for n in (0, 1)
    ]


def _pretend(scores, statuses):
    """Stands for the runs: each writes a score, and ends with its status."""
    left = iter(zip(scores, statuses, strict=True))

    def run(command, env):
        del env
        workdir = next(w for w in command if w.startswith("--workdir=")).partition("=")[2]
        score, status = next(left)
        from etils import epath

        from vidlatent.checkpoint.scores import write_scores

        for step, value in enumerate(score, 1):
            folder = Path(workdir, "checkpoints", str(step))
            folder.mkdir(parents=True)
            write_scores(epath.Path(folder), {"psnr": value})
        return subprocess.CompletedProcess(command, status)

    return run


def test_the_best_score_of_each_run_is_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sweep.subprocess, "run", _pretend([[20.0, 19.0], [18.0], []], [0, 0, 3]))
    flags = [CONFIG, f"--workdir={tmp_path}", "--config.seed=0,1,2"]
    assert main([*flags, "--config.checkpoint.best_metric=psnr"]) == 3
    rows = json.loads((tmp_path / "sweep.json").read_text())
    assert [(row["run"], row["status"], row["psnr"], row["step"]) for row in rows] == [
        ("seed=0", 0, 20.0, 1),
        ("seed=1", 0, 18.0, 1),
        ("seed=2", 3, None, None),
    ]
    assert "seed=2       3  -  -" in capsys.readouterr().out


def test_an_interruption_ends_the_sweep(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep.subprocess, "run", _pretend([[1.0]], [130]))
    flags = [CONFIG, f"--workdir={tmp_path}", "--config.seed=0,1"]
    assert main([*flags, "--config.checkpoint.best_metric=psnr"]) == 130


@pytest.mark.slow
def test_two_seeds_really_run(tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "launch.sweep", CONFIG, f"--workdir={tmp_path}"),
            *("--config.seed=0,1", "--config.train.steps=1", "--config.data.source=synthetic"),
            *("--config.data.synthetic.clips=8", "--config.data.buckets=((5,32,32,2),)"),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads((tmp_path / "sweep.json").read_text())
    assert [row["run"] for row in rows] == ["seed=0", "seed=1"]
    assert len({row["psnr"] for row in rows}) == 2
