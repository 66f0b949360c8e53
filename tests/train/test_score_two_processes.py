"""J68: two processes of one run of score distillation take the same drawn step of the student."""

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

ROOT = Path(__file__).parents[2]


def run(places, processes):
    """Curves of six updates; every process has half of each batch."""
    keys = {
        **SCORE,
        "distill.teacher": str(places / "teacher"),
        "sampler.guidance.scales": "()",
        "tokenizer.path": str(places / "tokenizer"),
        "sample.grid": "0",
        "precision.compute": "float32",
    }
    several = ["launch.local", f"--processes={processes}", "--"]
    module = several if processes > 1 else ["vidlatent.main"]
    workdir = places / str(processes)
    done = subprocess.run(
        [sys.executable, "-m", *module, "--config=tests/generator_tiny.py:videos"]
        + [f"--config.{key}={value}" for key, value in keys.items()]
        + [f"--workdir={workdir}"],
        cwd=ROOT,
        # One device a process, and a quick compilation.
        env={**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return read_metrics(workdir / "metrics.jsonl")


def test_two_processes_draw_the_step_that_one_draws(tmp_path):
    """Another step on the second process would change half of the samples, and so all losses."""
    tokenizer_run(tmp_path / "tokenizer")
    generator_run(tiny(tmp_path / "tokenizer", "videos"), tmp_path / "teacher")
    one, two = run(tmp_path, 1), run(tmp_path, 2)
    drawn = one["train/student_step"][1]
    assert two["train/student_step"][1] == drawn and len(set(drawn)) > 1 and len(drawn) == 6
    for name in ("train/fake/flow", "train/generator/gap", "train/generator/bce"):
        # Sums over the batch are taken in another order.
        np.testing.assert_allclose(two[name][1], one[name][1], rtol=1e-3, err_msg=name)
    assert two["val/frechet_latents"][1] == pytest.approx(one["val/frechet_latents"][1], rel=1e-3)
