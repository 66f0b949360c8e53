"""A run that hangs says where and ends; one that goes on, slowly or not, is left alone."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from vidlatent.parallel.together import LOST
from vidlatent.train import watchdog
from vidlatent.train.watchdog import Watchdog

ROOT = Path(__file__).parents[2]
HANGS = """
import sys, time
from vidlatent.report.log_file import write_log
from vidlatent.train.watchdog import Watchdog

def wait_for_the_network():
    time.sleep(60)

write_log(sys.argv[1])
with Watchdog(0.4).watching() as watch:
    watch.alive()
    wait_for_the_network()
"""


def test_a_hanging_run_tells_where_and_ends(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", HANGS, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == LOST
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: process 0 hangs: no step for ")
    assert "log.txt" in last
    assert "wait_for_the_network" in done.stderr
    assert "wait_for_the_network" in (tmp_path / "log.txt").read_text()


@pytest.fixture
def ended(monkeypatch):
    found = []
    monkeypatch.setattr(watchdog.Watchdog, "_end", lambda self, silent: found.append(silent))
    return found


def test_a_slow_run_is_left_alone(ended):
    with Watchdog(0.4).watching() as watch:
        for _ in range(8):
            time.sleep(0.1)
            watch.alive()
    assert not ended


def test_steps_that_compile_may_take_longer(ended):
    with Watchdog(0.3).watching() as watch:
        time.sleep(0.7)  # the first one compiles
        watch.alive(compiles=True)
        time.sleep(0.7)
        assert not ended
        watch.alive()
        time.sleep(0.9)
        assert ended


def test_nothing_is_watched_by_default_of_none(ended):
    with Watchdog(0).watching() as watch:
        watch.alive()
        time.sleep(0.3)
    assert not ended
