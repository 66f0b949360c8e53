"""What preflight says of sound and of unfit machines; the machine here stands for both."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from launch.local import describe_processes
from vidlatent import config as configs
from vidlatent.errors import VidlatentError
from vidlatent.plan.hardware import HARDWARE, parse_topology
from vidlatent.preflight import checks
from vidlatent.preflight.run import inspect_machine, refuse_unfit_machine

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def config():
    return configs.load("configs/fsae.py", {"data.buckets": "((5,32,32,8),)"})


def verdicts(rows):
    return [row.verdict for row in rows]


def test_the_devices_are_those_of_the_plan():
    here = f"cpu:{jax.device_count()}"
    assert verdicts(checks.check_devices(parse_topology(here))) == ["ok", "ok"]
    for other in (f"cpu:{jax.device_count() + 1}", "v5p:2x2x1"):
        rows = checks.check_devices(parse_topology(other))
        assert verdicts(rows) == ["failed", "ok"]
        assert other in rows[0].needed


def test_a_process_with_fewer_devices_is_named(monkeypatch):
    monkeypatch.setattr(checks, "_gather", lambda _: np.array([4.0, 4.0, 3.0]))
    row = checks.check_devices(None)[-1]
    assert row.verdict == "failed"
    assert "process 2" in row.remedy


@pytest.mark.parametrize(("seconds", "verdict"), [(3.0, "ok"), (60.0, "warning")])
@pytest.mark.parametrize("before_midnight", [0.5, 40_000.0])
def test_clocks_apart_are_a_warning(monkeypatch, seconds, verdict, before_midnight):
    first = checks._DAY - before_midnight
    times = [int(moment % checks._DAY * 1000) for moment in (first, first + seconds)]
    monkeypatch.setattr(checks.multihost_utils, "sync_global_devices", lambda _: None)
    monkeypatch.setattr(
        checks.multihost_utils, "process_allgather", lambda _: np.array(times, np.int32)
    )
    (row,) = checks.check_clocks()
    assert row.verdict == verdict
    assert row.found == f"{seconds:.2f} s apart"


@pytest.mark.parametrize(("slowest", "verdict"), [(0.9, "ok"), (0.5, "failed")])
def test_a_slow_chip_is_found(monkeypatch, slowest, verdict):
    monkeypatch.setattr(checks, "measure_peaks", lambda *_, **__: {"flops": 1e14})
    monkeypatch.setattr(checks, "_gather", lambda x: np.array([x, x, slowest * x]))
    (row,) = checks.check_speed(HARDWARE["h100"])
    assert row.verdict == verdict
    assert "10% of the data sheet" in row.found
    assert "process 2" in row.remedy


@pytest.mark.skipif(jax.device_count() == 1, reason="links are between devices")
def test_links_are_measured_and_compared():
    (row,) = checks.check_links(HARDWARE["cpu"])
    assert row.verdict == "ok"
    assert float(row.found.split()[0]) > 0
    slow = dataclasses.replace(HARDWARE["cpu"], link=1e18)
    assert verdicts(checks.check_links(slow)) == ["warning"]


def test_a_state_that_does_not_fit_is_refused(config):
    rows, held = checks.check_memory(config, HARDWARE["cpu"])
    assert verdicts(rows) == ["ok"]
    # Parameters, their averages and Adam's two moments, 4 bytes each, and the batch.
    assert held > 0
    small = dataclasses.replace(HARDWARE["cpu"], memory=held)
    assert verdicts(checks.check_memory(config, small)[0]) == ["failed"]


def test_storage_is_written_measured_and_left_clean(tmp_path):
    rows = checks.check_storage(tmp_path / "new", held=1 << 30, interval=1e6)
    assert verdicts(rows) == ["ok"]
    assert not list((tmp_path / "new").iterdir())
    rows = checks.check_storage(tmp_path, held=1 << 50, interval=10.0)
    assert verdicts(rows) == ["warning"]


def test_storage_that_cannot_be_written_fails(tmp_path):
    (tmp_path / "file").write_text("in the way")
    rows = checks.check_storage(tmp_path / "file", held=1, interval=0.0)
    assert verdicts(rows) == ["failed"]


def test_the_table_is_printed_and_kept(config, tmp_path, capsys):
    output = tmp_path / "preflight.json"
    here = f"cpu:{jax.device_count()}"
    assert inspect_machine(config, tmp_path / "run", here, str(output)) == 0
    rows = json.loads(output.read_text())
    assert {row["verdict"] for row in rows} == {"ok"}
    printed = capsys.readouterr().out
    assert all(row["check"] in printed for row in rows)


def test_a_run_on_an_unfit_machine_is_refused(config, tmp_path):
    with pytest.raises(VidlatentError, match="not fit for the run: devices .*v5p:2x2x1"):
        refuse_unfit_machine(config, tmp_path, "v5p:2x2x1")


def test_the_data_are_listed_by_names_and_sizes(config, tmp_path):
    folders = [tmp_path / name for name in ("one", "copy", "longer", "fewer")]
    for folder in folders:
        folder.mkdir()
        for name in ("a.mp4", "b.mp4")[: 1 if folder.name == "fewer" else 2]:
            (folder / name).write_bytes(bytes(9 if folder.name == "longer" else 8))
    os.utime(tmp_path / "copy" / "a.mp4", (1, 1))
    found = []
    for folder in folders:
        with config.copy_and_resolve_references().unlocked() as other:
            other.data.source, other.data.path = "folder", str(folder)
            found.append(checks._list_data(other))
    assert found[0]["clips"] == 2 and found[0] == found[1]
    assert found[0] != found[2] and found[3]["clips"] == 1
    with config.copy_and_resolve_references().unlocked() as other:
        other.data.source, other.data.path = "folder", str(tmp_path / "none")
        (row,) = checks.check_data(other)
    assert row.verdict == "failed" and "is no folder" in row.found


@pytest.mark.slow
def test_other_data_on_one_process_are_refused_and_named(tmp_path):
    commands = []
    for count in (3, 2):
        folder = tmp_path / f"{count} clips"
        folder.mkdir()
        for number in range(count):
            (folder / f"{number}.mp4").write_bytes(b"clip")
        commands.append(
            [
                *(sys.executable, "-m", "vidlatent.main", "--mode=preflight"),
                *("--config=tests/helpers/micro_config.py", f"--workdir={tmp_path / 'run'}"),
                *("--config.data.source=folder", f"--config.data.path={folder}"),
                "--config.data.buckets=((3,16,16,8),)",
            ]
        )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    told = describe_processes(2, 0, port)
    started = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "XLA_FLAGS": "", **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for command, variables in zip(commands, told, strict=True)
    ]
    try:
        said = [process.communicate(timeout=300)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [2, 2], said[0][-2000:]
    assert "process 1 has other data than process 0 (clips 3 and 2, names and sizes" in said[0]


@pytest.mark.slow
def test_two_processes_look_together(tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "launch.local", "--processes=2", "--", "--mode=preflight"),
            *("--config=configs/fsae.py", f"--workdir={tmp_path}", "--topology=cpu:2"),
            "--config.data.buckets=((5,32,32,8),)",
        ],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert "0: | devices " in done.stdout
    assert "2 cpu in 2 processes" in done.stdout
    assert "1: |" not in done.stdout
