"""A run that is stopped anywhere and resumed ends in the same state, by SHA-256 of all of it."""

import functools
import os
import shutil
import signal
import subprocess
import time

import pytest

from tests.helpers.training_runs import ROOT, command, digest, train
from vidlatent.train.loop import INTERRUPTED


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Workdir of an uninterrupted run of 40 steps with data worker processes."""
    workdir = tmp_path_factory.mktemp("straight")
    train(workdir)
    return workdir


@pytest.fixture(scope="module")
def straight(finished):
    return digest(finished, 40)


@pytest.fixture(scope="module")
def stopped_at(tmp_path_factory):
    """``stopped_at(cut, folder)`` copies a run that was stopped at step ``cut`` into ``folder``."""
    runs = tmp_path_factory.mktemp("stopped")

    @functools.cache
    def run(cut):
        out = train(runs / str(cut), f"--config.train.stop_at={cut}", status=INTERRUPTED)
        assert f"saved step {cut}" in out
        return runs / str(cut)

    return lambda cut, folder: shutil.copytree(run(cut), folder, dirs_exist_ok=True)


SLOW = pytest.mark.slow  # each run of 40 steps is a process that compiles


@SLOW
@pytest.mark.parametrize("cut", [7, 17, 33])
def test_cut_and_resumed_run_is_bitwise_equal(straight, stopped_at, tmp_path, cut):
    stopped_at(cut, tmp_path)
    out = train(tmp_path)
    assert f"resuming at step {cut} of 40" in out
    assert digest(tmp_path, 40) == straight


@SLOW
def test_other_seed_gives_another_state(straight, tmp_path):
    train(tmp_path, "--config.seed=1")
    assert digest(tmp_path, 40) != straight


@SLOW
def test_worker_count_does_not_matter(straight, tmp_path):
    """Stopped with two workers, resumed with none."""
    train(tmp_path, "--config.train.stop_at=12", status=INTERRUPTED)
    train(tmp_path, "--config.data.num_workers=0")
    assert digest(tmp_path, 40) == straight


def start(workdir):
    """A run in the background that reports every step."""
    return subprocess.Popen(
        command(workdir, "--config.train.log_every=1"),
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(process, text, seconds=120):
    """Read a process's stderr up to the line that contains ``text``."""
    lines, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        line = process.stderr.readline()
        lines.append(line)
        if text in line:
            return
        if not line and process.poll() is not None:
            break
    raise AssertionError(f"{text!r} did not come:\n{''.join(lines)}")


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=SLOW)])
def test_signal_saves_and_the_same_command_resumes(straight, tmp_path, number):
    process = start(tmp_path)
    try:
        wait_for(process, "step 3/40")
        process.send_signal(number)
        rest = process.communicate(timeout=60)[1]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == INTERRUPTED, rest[-3000:]
    assert f"{number.name}: saved step" in rest
    assert "resuming at step" in train(tmp_path)
    assert digest(tmp_path, 40) == straight


def test_killed_run_resumes_from_its_last_checkpoint(straight, tmp_path):
    process = start(tmp_path)
    try:
        wait_for(process, "step 24/40")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert "resuming at step" in train(tmp_path)
    assert digest(tmp_path, 40) == straight


def test_finished_run_says_so_and_changes_nothing(finished, straight):
    assert "step 40 of 40" in train(finished)
    assert digest(finished, 40) == straight


@SLOW
def test_flipped_byte_falls_back_to_the_sound_step(straight, stopped_at, tmp_path):
    stopped_at(17, tmp_path)
    files = [p for p in (tmp_path / "checkpoints" / "17").rglob("*") if p.is_file()]
    largest = max(files, key=lambda p: p.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    out = train(tmp_path)
    assert "resuming at step 10 of 40" in out
    assert "17" in out
    assert digest(tmp_path, 40) == straight
