"""``--mode=doctor``: what it finds, what it calls a fault, and what it keeps to itself."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from vidlatent.config import get_defaults
from vidlatent.doctor import checks, run

ROOT = Path(__file__).resolve().parents[2]


def test_the_command_needs_no_config_and_prints_a_table(tmp_path):
    command = [sys.executable, "-m", "vidlatent.main", "--mode=doctor"]
    command += [f"--output={tmp_path / 'doctor.md'}", f"--workdir={tmp_path / 'not' / 'there'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    parts = [line.split("|")[1].strip() for line in done.stdout.splitlines() if line[:1] == "|"]
    for part in ("version", "system", "packages", "devices", "decoders", "video there and back"):
        assert part in parts
    assert (tmp_path / "doctor.md").read_text().strip() == done.stdout.strip()
    assert "failed" not in done.stdout


def test_a_broken_part_is_a_failed_row_and_the_others_go_on(monkeypatch, capsys):
    def check_pipes(folder):
        raise RuntimeError(f"no pipe at {Path.home()}/pipe")

    monkeypatch.setattr(run, "CHECKS", (check_pipes, checks.check_variables))
    assert run.examine(get_defaults("", ""), Path("."), "") == 2
    text = capsys.readouterr().out
    assert "| pipes | RuntimeError: no pipe at ~/pipe | failed |" in text and "variables" in text


def test_versions_out_of_bounds_and_missing_packages(monkeypatch):
    versions = {"jax": "0.1.0", "flax": None}
    known = checks._version_of
    monkeypatch.setattr(checks, "_version_of", lambda name: versions.get(name, known(name)))
    row = checks.check_packages(Path("."))[0]
    assert row.verdict == checks.FAILED
    assert "missing flax" in row.found and "jax 0.1.0 (" in row.found
    versions["flax"] = known("flax")
    assert checks.check_packages(Path("."))[0].verdict == checks.WARNING


def test_an_extra_of_an_extra_is_looked_at(monkeypatch):
    """``gpu`` asks for jax, which is there, with CUDA, which is not."""
    known = checks._version_of
    missing = ("jax-cuda12-plugin", "av")
    monkeypatch.setattr(checks, "_version_of", lambda n: None if n in missing else known(n))
    rows = {row.part: row for row in checks.check_extras(Path("."))}
    assert "jax-cuda12-plugin" in rows["extra gpu"].found
    # av is no part of an extra, and no extra is a fault.
    assert "av" not in rows["extra gpu"].found.split(": ")[1].split(", ")
    assert {row.verdict for row in rows.values()} == {checks.OK}


def test_run_but_not_installed(monkeypatch):
    def metadata(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(checks.importlib.metadata, "metadata", metadata)
    (row,) = checks.check_packages(Path("."))
    assert row.verdict == checks.WARNING and "pip install -e ." in row.remedy
    assert checks.check_extras(Path(".")) == []


def test_a_disk_that_is_nearly_full(monkeypatch, tmp_path):
    usage = type("Usage", (), {"free": 2 << 30})
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda place: usage)
    rows = checks.check_disk(tmp_path / "not" / "there")
    assert [row.verdict for row in rows] == [checks.WARNING] * 2
    assert rows[0].found == checks.hide_home(f"2.0 GiB free at {tmp_path}")


def test_addresses_and_names_stay_private(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "host.example:1234")
    monkeypatch.setenv("XLA_FLAGS", f"--xla_dump_to={Path.home()}/dump")
    monkeypatch.setenv("MY_TOKEN", "secret")
    (row,) = checks.check_variables(Path("."))
    assert "JAX_COORDINATOR_ADDRESS" in row.found and "host.example" not in row.found
    assert "XLA_FLAGS=--xla_dump_to=~/dump" in row.found
    assert "TOKEN" not in row.found and "secret" not in row.found


@pytest.mark.parametrize("name", ["h264", "libx264"])
def test_a_codec_that_is_lacking(monkeypatch, name):
    import av

    monkeypatch.setattr(av, "codecs_available", set(av.codecs_available) - {name})
    rows = checks.check_decoders(Path("."))
    assert any(row.verdict == checks.WARNING and f"lacks {name}" in row.found for row in rows)
