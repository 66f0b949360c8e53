"""One writer for a folder: live holders are refused by name, locks of dead ones taken over."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from vidlatent.checkpoint import lock as locks
from vidlatent.checkpoint.lock import lock_folder
from vidlatent.errors import VidlatentError

HOLD = """
import sys, time
from vidlatent.checkpoint.lock import lock_folder
with lock_folder(sys.argv[1], "--workdir"):
    print("held", flush=True)
    time.sleep(60)
"""


def hold(folder):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_a_live_process_is_refused_by_name_and_a_killed_one_is_taken_over(tmp_path, caplog):
    process = hold(tmp_path)
    try:
        with pytest.raises(VidlatentError, match=f"process {process.pid} on .* another folder"):
            with lock_folder(tmp_path, "--workdir"):
                pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with caplog.at_level("WARNING", logger="absl"), lock_folder(tmp_path, "--workdir") as lock:
        assert f"process {process.pid}" in caplog.text and "taken over" in caplog.text
        assert json.loads(lock.path.read_text())["process"] == os.getpid()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"\0" * 200, b"{", b"[1]", b'{"host": 3}'])
def test_a_damaged_lock_hinders_nobody_for_long(tmp_path, content, monkeypatch):
    monkeypatch.setattr(locks, "_SILENCE_SECONDS", 0.0)
    (tmp_path / locks.FILE).write_bytes(content)
    with lock_folder(tmp_path, "--workdir"):
        pass


def test_another_process_with_the_number_of_a_dead_one_does_not_count(tmp_path):
    mine = locks._describe_process()
    (tmp_path / locks.FILE).write_text(json.dumps({**mine, "started": "1"}))
    with lock_folder(tmp_path, "--workdir"):
        pass


def test_a_process_on_another_machine_lives_while_it_touches_its_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_SILENCE_SECONDS", 2.5)
    path = tmp_path / locks.FILE
    path.write_text(json.dumps({**locks._describe_process(), "host": "far", "process": 7}))
    real = time.sleep

    def sleep_and_touch(seconds):
        real(seconds)
        os.utime(path)

    monkeypatch.setattr(locks.time, "sleep", sleep_and_touch)
    with pytest.raises(VidlatentError, match="process 7 on far"), lock_folder(tmp_path, "--output"):
        pass
    monkeypatch.setattr(locks.time, "sleep", real)
    with lock_folder(tmp_path, "--output") as lock:
        lock.check()
        path.write_text(json.dumps({"host": "far", "process": 8}))
        with pytest.raises(VidlatentError, match="taken over by process 8 on far"):
            lock.check()
    assert path.exists()  # it is another's by now
