"""Two processes train as one: they save and stop together, and one process can resume."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from vidlatent.train.loop import INTERRUPTED

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
TINY = ROOT / "tests" / "tiny.py"


def start(workdir, *overrides, processes=2):
    """Start all processes of one run on this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    started = []
    for index in range(processes):
        several = {
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": str(processes),
            "JAX_PROCESS_ID": str(index),
        }
        env = {**os.environ, **(several if processes > 1 else {})}
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "vidlatent.main", f"--config={TINY}", *overrides]
                + [f"--workdir={workdir}", "--config.train.log_every=1"],
                cwd=ROOT,
                env=env,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
    return started


def finish(started, status=0, seconds=200):
    texts = []
    try:
        for process in started:
            texts.append(process.communicate(timeout=seconds)[1])
    finally:
        for process in started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert [p.returncode for p in started] == [status] * len(started), texts[0][-3000:]
    return texts


def losses(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    return {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("alone")
    finish(start(workdir, "--config.train.steps=12", processes=1))
    return losses(workdir)


def test_two_processes_learn_what_one_learns_and_one_can_go_on(alone, tmp_path):
    finish(
        start(tmp_path, "--config.train.steps=12", "--config.train.stop_at=6"), status=INTERRUPTED
    )
    together = losses(tmp_path)
    assert sorted(together) == list(range(1, 7))
    # Gradients are summed in another order, so equality is up to float32 rounding that Adam's
    # first steps, which divide by small numbers, amplify.
    np.testing.assert_allclose(
        [together[step] for step in range(1, 7)], [alone[step] for step in range(1, 7)], rtol=1e-3
    )
    text = finish(start(tmp_path, "--config.train.steps=12", processes=1))[0]
    assert "resuming at step 6 of 12" in text
    resumed = losses(tmp_path)
    np.testing.assert_allclose(resumed[12], alone[12], rtol=1e-2)


def test_sigterm_to_one_process_saves_on_both(tmp_path):
    started = start(tmp_path, "--config.train.steps=4000", "--config.eval.every=0")
    deadline = time.monotonic() + 150
    for line in started[0].stderr:
        if "step 5/4000" in line:
            break
        assert time.monotonic() < deadline, line
    started[1].send_signal(signal.SIGTERM)
    texts = finish(started, status=INTERRUPTED)
    assert "SIGTERM: saved step" in texts[0]
    steps = [int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()]
    assert steps
