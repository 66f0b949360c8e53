"""The Dockerfiles: linted, and they copy what setup.py installs. None is built here."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
FILES = sorted((ROOT / "launch").glob("Dockerfile.*"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_linter_has_nothing_to_say(file):
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([str(linter), str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_what_is_copied_is_sent_to_the_builder(file):
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line[0] == "!"}
    copied = set()
    for line in file.read_text().splitlines():
        if line.startswith("COPY "):
            copied |= {name.split("/")[0] for name in line.split()[1:-1]}
    assert copied == sent
    assert all((ROOT / name).exists() for name in sent)


def test_both_images_are_there():
    assert [file.name for file in FILES] == ["Dockerfile.gpu", "Dockerfile.tpu"]
