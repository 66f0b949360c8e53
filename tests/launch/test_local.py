"""Processes on one machine: they are told of each other, and end as one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.local import describe_processes, run

ROOT = Path(__file__).parent.parent.parent


def test_each_is_told_its_number_and_its_gpus():
    told = describe_processes(2, 2, 4000)
    assert [v["JAX_PROCESS_ID"] for v in told] == ["0", "1"]
    assert [v["JAX_LOCAL_DEVICE_IDS"] for v in told] == ["0,1", "2,3"]
    assert {v["JAX_COORDINATOR_ADDRESS"] for v in told} == {"127.0.0.1:4000"}
    assert "JAX_LOCAL_DEVICE_IDS" not in describe_processes(2, 0, 4000)[0]


@pytest.mark.parametrize(
    ("code", "status"),
    [("0", 0), ("k and 3", 3), ("1 - k and 4", 4), ("k and os.kill(os.getpid(), 9)", 137)],
)
def test_the_first_status_that_is_not_0_counts(code, status):
    program = f"import os, sys; k = int(os.environ['JAX_PROCESS_ID']); sys.exit({code})"
    assert run([sys.executable, "-c", program], describe_processes(2, 0, 4000)) == status


CHILD = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
print("ready", os.environ["JAX_PROCESS_ID"], flush=True)
time.sleep(60)
"""


def test_signals_reach_all_and_lines_are_numbered():
    program = f"""
import sys
from launch.local import describe_processes, run
sys.exit(run([sys.executable, "-c", {CHILD!r}], describe_processes(2, 0, 4000)))
"""
    command = [sys.executable, "-c", program]
    started = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        lines = {started.stdout.readline(), started.stdout.readline()}
        assert lines == {"0: ready 0\n", "1: ready 1\n"}
        began = time.monotonic()
        started.send_signal(signal.SIGTERM)
        assert started.wait(20) == 130
        assert time.monotonic() - began < 10
    finally:
        started.kill()


@pytest.mark.slow
def test_two_processes_train(tmp_path):
    flags = ["--config=tests/helpers/micro_config.py", f"--workdir={tmp_path}"]
    flags += ["--config.train.steps=4", "--config.train.log_every=1", "--config.eval.every=0"]
    flags += ["--config.data.source=synthetic", "--config.data.synthetic.clips=12"]
    flags += ["--config.data.buckets=((3,16,16,8),)", "--config.eval.metrics=('psnr',)"]
    flags += ["--config.train.profile_at=2", "--config.train.profile_steps=1"]
    command = [sys.executable, "-m", "launch.local", "--processes=2", "--", *flags]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "2 processes announced by the variables JAX_*" in done.stdout
    assert any(line.startswith("0: ") and "step 4/4" in line for line in done.stdout.splitlines())
    assert (tmp_path / "checkpoints" / "4").is_dir()
    profiles = tmp_path / "profile"
    assert {folder.name for folder in profiles.iterdir()} == {"process_0", "process_1"}
    for folder in profiles.iterdir():
        assert len([*folder.rglob("*.xplane.pb")]) == 1
