"""Scripts run as files, too, although the folder that Python then looks in is not the checkout."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def scripts_of(folder):
    files = sorted((ROOT / folder).glob("*.py"))
    return [file for file in files if '__name__ == "__main__"' in file.read_text()]


@pytest.mark.parametrize("folder", ["experiments", "benchmarks"])
def test_scripts_that_import_their_folder_find_it_first(folder):
    for file in scripts_of(folder):
        text = file.read_text()
        place = re.search(rf"^from {folder}[ .]", text, re.MULTILINE)
        if place:
            assert "sys.path.insert(0" in text[: place.start()], file


@pytest.mark.parametrize("script", ["experiments/growth.py", "vidlatent/main.py"])
def test_a_script_runs_as_a_file(script, tmp_path):
    """No module of the folder that it lies in hides one of the standard library."""
    where = {"PYTHONPATH": str(ROOT)} if script.startswith("vidlatent") else {}
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | where
    done = subprocess.run(
        [sys.executable, str(ROOT / script), "--help"],
        cwd=tmp_path,
        env=environment | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert "--workdir" in done.stdout, done.stderr[-2000:]
