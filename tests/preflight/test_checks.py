"""What preflight says of sound and of unfit machines; the machine here stands for both."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

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
