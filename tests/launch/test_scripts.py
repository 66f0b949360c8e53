"""The shell scripts, with programs in the place of the clusters' that note how they were called."""

import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest

from vidlatent.train.loop import INTERRUPTED

LAUNCH = Path(__file__).parent.parent.parent / "launch"
# A step that saves when it is asked to; started is the sign that it listens.
SRUN = """
trap 'exit $STATUS' TERM
echo "$@" >> $NOTES/srun
echo $$ > $NOTES/pid
touch $NOTES/started
if [ "$STATUS" = 3 ]; then exit 3; fi
while :; do sleep 0.05; done
"""
TOLD = {
    "srun": SRUN,
    "scancel": 'echo "$@" >> $NOTES/scancel; kill -TERM $(cat $NOTES/pid)',
    "scontrol": 'echo "$@" >> $NOTES/scontrol',
    "gcloud": 'for a in "$@"; do echo "$a" >> $NOTES/gcloud; done',
}


@pytest.fixture
def cluster(tmp_path):
    """Environment in which the clusters' programs only take notes, and the folder of the notes."""
    (tmp_path / "bin").mkdir()
    for name, text in TOLD.items():
        file = tmp_path / "bin" / name
        file.write_text(f"#!/usr/bin/env bash\n{text}\n")
        file.chmod(0o755)
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "NOTES": str(tmp_path), "SLURM_JOB_ID": "77"}
    return env, tmp_path


def start_slurm(env, status):
    command = ["bash", str(LAUNCH / "slurm.sh"), "--config=a b.py"]
    return subprocess.Popen(command, env={**env, "STATUS": str(status)})


def wait_for(file):
    deadline = time.monotonic() + 20
    while not file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_job_whose_time_ends_is_queued_again(cluster):
    env, notes = cluster
    job = start_slurm(env, INTERRUPTED)
    wait_for(notes / "started")
    job.send_signal(signal.SIGUSR1)
    assert job.wait(20) == INTERRUPTED
    assert (notes / "scancel").read_text() == "--signal=TERM 77\n"
    assert (notes / "scontrol").read_text() == "requeue 77\n"
    assert "-m vidlatent.main --config=a b.py" in (notes / "srun").read_text()


def test_a_job_that_is_cancelled_is_not(cluster):
    env, notes = cluster
    job = start_slurm(env, INTERRUPTED)
    wait_for(notes / "started")
    os.kill(int((notes / "pid").read_text()), signal.SIGTERM)
    assert job.wait(20) == INTERRUPTED
    assert not (notes / "scontrol").exists()


def test_a_failed_job_is_not(cluster):
    env, notes = cluster
    assert start_slurm(env, 3).wait(20) == 3
    assert not (notes / "scontrol").exists()


def test_flags_reach_every_host_of_a_tpu_vm_as_they_were_typed(cluster):
    env, notes = cluster
    flags = ["--config=configs/fsae.py:paper", "--config.data.buckets=((9, 64, 64, 4),)"]
    subprocess.run([LAUNCH / "tpu_vm.sh", "v4", "us-a", *flags], env=env, check=True)
    words = (notes / "gcloud").read_text().splitlines()
    assert words[:7] == "compute tpus tpu-vm ssh v4 --zone=us-a --worker=all".split()
    remote = shlex.split(words[7].removeprefix("--command="))
    assert remote[-2:] == flags and remote[:2] == ["cd", "vidlatent"]


def test_a_run_on_a_tpu_vm_is_stopped_by_a_signal(cluster):
    env, notes = cluster
    subprocess.run([LAUNCH / "tpu_vm.sh", "v4", "us-a", "stop"], env=env, check=True)
    assert "pkill -TERM" in (notes / "gcloud").read_text()
    assert subprocess.run([LAUNCH / "tpu_vm.sh", "v4"], env=env).returncode == 2


def test_the_script_knows_the_status_of_the_loop():
    assert f"\nINTERRUPTED={INTERRUPTED} " in (LAUNCH / "slurm.sh").read_text()
