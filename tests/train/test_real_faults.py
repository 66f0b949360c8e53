"""Faults of real processes: a killed decoder, two runs in one workdir, a disk without room."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.helpers.training_runs import ROOT, command
from vidlatent.train.loop import INTERRUPTED

pytestmark = pytest.mark.slow


def start(workdir, *flags, preset="tiny"):
    always = ["--config.eval.every=0", "--config.data.buckets=((5,16,16,2),)"]
    return subprocess.Popen(
        command(workdir, *always, *flags, preset=preset),
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )


def read_until(process, text):
    seen = []
    for line in process.stderr:
        seen.append(line)
        if text in line:
            return "".join(seen)
    raise AssertionError("".join(seen)[-3000:])


def check_end(process, text):
    """The sentence is the last line, it is there once, and no traceback is on the terminal."""
    lines = [line for line in text.splitlines() if line]
    assert lines[-1].startswith("error: "), text[-3000:]
    assert text.count("error: ") == 1 and "Traceback" not in text
    assert process.returncode == 2
    return lines[-1]


def find_decoders(process):
    for child in subprocess.check_output(["ps", "-o", "pid=", "--ppid", str(process.pid)]).split():
        words = Path(f"/proc/{int(child)}/cmdline").read_bytes()
        if b"spawn_main" in words:
            yield int(child)


def test_a_killed_decoder_costs_no_step(tmp_path):
    flags = ["--config.train.steps=100000", "--config.checkpoint.every=0"]
    process = start(tmp_path, *flags, preset="workers")
    text = read_until(process, "step 20/")
    os.kill(next(find_decoders(process)), signal.SIGKILL)
    text += process.communicate(timeout=60)[1]
    last = check_end(process, text)
    assert "config.data.num_workers below 2" in last and f"{tmp_path}/log.txt" in last
    steps = [int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()]
    assert len(steps) == 1 and steps[0] >= 20 and f"Step {steps[0]} is saved" in last
    assert "Traceback" in (tmp_path / "log.txt").read_text()


def test_of_two_runs_in_one_workdir_the_second_is_refused_by_name(tmp_path):
    flags = ["--config.train.steps=100000", "--config.checkpoint.every=0"]
    first = start(tmp_path, *flags)
    read_until(first, "step 5/")
    config = (tmp_path / "config.json").read_text()
    second = start(tmp_path, *flags, "--config.seed=2")
    last = check_end(second, second.communicate(timeout=100)[1])
    assert f"is being written by process {first.pid} on" in last
    assert (tmp_path / "config.json").read_text() == config
    first.send_signal(signal.SIGINT)
    assert "SIGINT: saved step" in first.communicate(timeout=60)[1]
    assert first.returncode == INTERRUPTED
    assert not (tmp_path / "writer.lock").exists()
