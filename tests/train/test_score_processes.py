"""Score distillation in two processes draws what one process with two devices does (J68)."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.generator_runs import generator_run, tiny, tokenizer_run
from tests.train.test_score_runs import SCORE
from vidlatent.report.writers import read_metrics

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
RATE = 1e-3


def start(places, workdir, processes):
    """A run of four updates, two of each network, on two devices."""
    keys = {
        **SCORE,
        "train.steps": "4",
        "optim.lr": str(RATE),
        "distill.optim.lr": str(RATE),
        "distill.teacher": str(places / "teacher"),
        "tokenizer.path": str(places / "tokenizer"),
        "sampler.guidance.scales": "()",
        "precision.compute": "float32",
        "mesh.data": "1",
        "mesh.fsdp": "2",
        "eval.every": "0",
    }
    several = ["launch.local", f"--processes={processes}", "--"]
    module = several if processes > 1 else ["vidlatent.main"]
    flags = [f"--config.{name}={value}" for name, value in keys.items()]
    config = f"--config={ROOT / 'tests' / 'generator_tiny.py'}:videos"
    done = subprocess.run(
        [sys.executable, "-m", *module, config, f"--workdir={workdir}", *flags],
        cwd=ROOT,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": str(2 // processes), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return workdir


def test_two_processes_draw_the_same_step_and_learn_alike(tmp_path):
    """With a step of its own a process would wait for collectives that the other never calls."""
    tokenizer_run(tmp_path / "tokenizer")
    generator_run(tiny(tmp_path / "tokenizer", "videos"), tmp_path / "teacher")
    one, two = (start(tmp_path, tmp_path / str(count), count) for count in (1, 2))
    curves = [read_metrics(workdir / "metrics.jsonl") for workdir in (one, two)]
    drawn = [found["train/student_step"][1] for found in curves]
    np.testing.assert_array_equal(*drawn)
    assert len(set(drawn[0])) > 1
    # Processes take turns with the rows of a batch, so each clip meets another row's noise.
    flows = [found["train/fake/flow"][1] for found in curves]
    np.testing.assert_allclose(*flows, rtol=1e-2)
