"""Score distillation in two processes is that of one process with two devices (J68)."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.helpers.generator_runs import generator_run, tiny, tokenizer_run
from tests.train.test_score_runs import SCORE
from vidlatent import config as configs
from vidlatent.models.load import open_checkpoints
from vidlatent.report.writers import read_metrics
from vidlatent.train.state import random_key
from vidlatent.train.tasks.base import make_task

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


def read_state(workdir):
    config = configs.read(workdir)
    state = jax.eval_shape(make_task(config).init, random_key(0, "params"))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), state
    )
    checkpoints = open_checkpoints(config, workdir)
    found = checkpoints.restore(target, step=4).state
    checkpoints.close()
    return jax.tree.map(np.asarray, found)


def test_two_processes_distil_as_one_with_two_devices(tmp_path):
    """Each process has half of the batch: with a step of its own, gradients would be others."""
    tokenizer_run(tmp_path / "tokenizer")
    generator_run(tiny(tmp_path / "tokenizer", "videos"), tmp_path / "teacher")
    one, two = (start(tmp_path, tmp_path / str(count), count) for count in (1, 2))
    curves = [read_metrics(workdir / "metrics.jsonl") for workdir in (one, two)]
    drawn = [found["train/student_step"][1] for found in curves]
    assert drawn[0] == drawn[1] and len(set(drawn[0])) > 1
    for name in ("train/fake/flow", "train/fake/grad_norm", "train/generator/score"):
        np.testing.assert_allclose(curves[1][name][1], curves[0][name][1], rtol=1e-4, err_msg=name)
    states = list(map(read_state, (one, two)))
    # Sums of the two halves have the same two terms, so only rounding inside of each may differ.
    for name in ("params", "fake", "ema"):
        leaves = [jax.tree.leaves(state[name]) for state in states]
        for a, b in zip(*leaves, strict=True):
            # Adam's update of a value whose gradient is nearly 0 is of any size up to the rate.
            np.testing.assert_allclose(b, a, rtol=1e-4, atol=2e-2 * RATE)
