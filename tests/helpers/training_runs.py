"""Training runs of the tiny config in processes of their own, and what they saved."""

import hashlib
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

from vidlatent import config as configs
from vidlatent.models.load import model_of, open_checkpoints
from vidlatent.parallel.paths import path_name
from vidlatent.train.state import random_key
from vidlatent.train.tasks.tokenizer import TokenizerTask

ROOT = Path(__file__).parent.parent.parent
TINY = ROOT / "tests" / "tiny.py"


def command(workdir, *overrides, preset="workers"):
    return [
        sys.executable,
        "-m",
        "vidlatent.main",
        f"--config={TINY}:{preset}",
        f"--workdir={workdir}",
        *overrides,
    ]


def train(workdir, *overrides, status=0, preset="workers"):
    done = subprocess.run(
        command(workdir, *overrides, preset=preset),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == status, done.stderr[-3000:]
    return done.stderr


def digest(workdir, step):
    """SHA-256 over every leaf of the state saved at ``step``."""
    config = configs.read(workdir)
    step_fns = TokenizerTask(config, model_of(config))
    abstract = jax.eval_shape(step_fns.init, random_key(0, "params"))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), abstract
    )
    checkpointer = open_checkpoints(config, workdir)
    state = checkpointer.restore(target, step=step).state
    checkpointer.close()
    total = hashlib.sha256()
    leaves = jax.tree_util.tree_leaves_with_path(state)
    for path, leaf in sorted(leaves, key=lambda item: path_name(item[0])):
        total.update(path_name(path).encode())
        total.update(np.asarray(leaf).tobytes())
    return total.hexdigest()
