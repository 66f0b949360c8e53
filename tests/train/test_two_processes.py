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

from tests.helpers.clips import pictures, write_clip
from vidlatent.parallel.together import LOST
from vidlatent.train.loop import INTERRUPTED

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
TINY = ROOT / "tests" / "tiny.py"


def start(workdir, *overrides, processes=2, of_one=()):
    """Start all processes of one run on this machine; ``of_one``: more flags of the second."""
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
                + [f"--workdir={workdir}", "--config.train.log_every=1"]
                + list(of_one if index else ()),
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


def wait_for_step(process, step=5):
    deadline = time.monotonic() + 150
    for line in process.stderr:
        if f"step {step}/4000" in line:
            return
        assert time.monotonic() < deadline, line


def last_line(text):
    return [line for line in text.splitlines() if line][-1]


@pytest.mark.parametrize(
    ("number", "asked"),
    [(signal.SIGTERM, [1]), (signal.SIGINT, [0]), (signal.SIGINT, [0, 1])],
    ids=["SIGTERM to one", "SIGINT to one", "SIGINT to both"],
)
def test_a_signal_to_some_saves_one_step_of_all(tmp_path, number, asked):
    flags = ["--config.train.steps=4000", "--config.eval.every=0", "--config.checkpoint.every=0"]
    started = start(tmp_path, *flags)
    wait_for_step(started[0])
    for index in asked:
        started[index].send_signal(number)
    texts = finish(started, status=INTERRUPTED, seconds=60)
    assert f"{number.name}: saved step" in texts[0]
    steps = [int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()]
    assert len(steps) == 1 and f"saved step {steps[0]} in" in texts[0]


def test_another_config_on_one_process_is_named_by_both(tmp_path):
    texts = finish(start(tmp_path / "run", of_one=["--config.optim.lr=0.5"]), status=2, seconds=60)
    for text in texts:
        assert "process 1 has other config than process 0 (optim.lr 0.003 and 0.5)" in text
        assert last_line(text).startswith("error: ")
    assert not (tmp_path / "run").exists()


def test_other_data_on_one_process_is_named_by_both(tmp_path):
    of_one = ["--config.data.path=" + str(write_clips(tmp_path / "few", 3))]
    whole = "--config.data.path=" + str(write_clips(tmp_path / "all", 5))
    flags = ["--config.data.source=folder", "--config.data.num_workers=0", whole]
    texts = finish(start(tmp_path / "run", *flags, of_one=of_one), status=2, seconds=100)
    for text in texts:
        assert "process 1 has other data than process 0" in last_line(text)


def test_the_reason_of_one_process_is_said_by_the_other(tmp_path):
    whole = "--config.data.path=" + str(write_clips(tmp_path / "all", 3))
    flags = ["--config.data.source=folder", "--config.data.num_workers=0", whole]
    of_one = ["--config.data.path=" + str(tmp_path / "missing")]
    texts = finish(start(tmp_path / "run", *flags, of_one=of_one), status=2, seconds=100)
    assert "missing' is no folder" in last_line(texts[1])
    assert "process 1 of this run stopped: data.path" in last_line(texts[0])


def test_a_killed_process_ends_the_other_with_a_sentence(tmp_path):
    flags = ["--config.train.steps=4000", "--config.eval.every=0", "--config.checkpoint.every=0"]
    started = start(tmp_path, *flags)
    wait_for_step(started[0])
    started[1].kill()
    text = started[0].communicate(timeout=80)[1]
    started[1].communicate()
    assert started[0].returncode == LOST, text[-3000:]
    assert "the connection to another process of this run is lost" in last_line(text)
    assert "Traceback" not in text and text.count("error: ") == 1


def write_clips(folder, count):
    folder.mkdir()
    for number in range(count):
        write_clip(folder / f"{number}.mp4", pictures(frames=12, seed=number))
    return folder
