"""Damaged media files: refused by name or read, never another exception, a crash or a hang.

``VIDLATENT_FUZZ_SECONDS=600 pytest -m slow tests/media/test_fuzz.py`` runs for ten minutes;
``VIDLATENT_FUZZ_SEED`` makes other files.
"""

import json
import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SECONDS = float(os.environ.get("VIDLATENT_FUZZ_SECONDS", "100"))
SEED = int(os.environ.get("VIDLATENT_FUZZ_SEED", "0"))
HANG_S = 30
MEGABYTES = 2000  # of memory at most: the libraries take 150, frames are small


def run_fuzzer(folder: Path, seconds: float, seed: int) -> list[dict]:
    """Reports of all damaged files; fails if the process crashes or hangs."""
    command = [sys.executable, "-m", "tests.media.fuzz_media", str(folder), str(seconds), str(seed)]
    with open(folder / "errors.txt", "w") as errors:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        lines: queue.Queue[str | None] = queue.Queue()

        def listen():
            for line in process.stdout:
                lines.put(line)
            lines.put(None)

        threading.Thread(target=listen, daemon=True).start()
        reports, in_hand = [], "the files to begin with"
        try:
            while True:
                try:
                    line = lines.get(timeout=HANG_S)
                except queue.Empty:
                    pytest.fail(f"{in_hand} takes longer than {HANG_S} s; it lies in {folder}")
                if line is None:
                    break
                report = json.loads(line)
                if "begins" in report:
                    in_hand = report["file"]
                else:
                    reports.append(report)
            code = process.wait(HANG_S)
        finally:
            process.kill()
            process.wait()
    said = (folder / "errors.txt").read_text()[-3000:]
    assert code == 0, f"the process ended with {code} at {in_hand} in {folder}: {said}"
    return reports


def check(reports: list[dict], most: int) -> None:
    wrong = [report for report in reports if "error" in report]
    assert not wrong, "\n".join(f"{r['file']} {r['kept']}\n{r['trace']}" for r in wrong[:3])
    assert len(reports) >= most
    assert max(report["seconds"] for report in reports) < HANG_S
    assert max(report["megabytes"] for report in reports) < MEGABYTES
    refused = sum(report["refused"] > 0 for report in reports)
    assert 0 < refused < len(reports)  # damage that nothing notices, or all, tests nothing


def test_a_few_damaged_files(tmp_path):
    check(run_fuzzer(tmp_path, 4.0, SEED), 20)


@pytest.mark.slow
def test_damaged_files_for_minutes(tmp_path):
    began = time.monotonic()
    reports = run_fuzzer(tmp_path, SECONDS, SEED + 1)
    check(reports, int(SECONDS))
    assert time.monotonic() - began < SECONDS + 2 * HANG_S
