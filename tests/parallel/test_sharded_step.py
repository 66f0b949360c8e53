"""FSAE's training step gives the same result on eight devices as on one."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlatent.config import load
from vidlatent.models import tokenizers as models
from vidlatent.parallel.mesh import AXES, make_mesh
from vidlatent.parallel.multihost import to_global
from vidlatent.parallel.sharding import batch_sharding, shardings
from vidlatent.train.state import random_key
from vidlatent.train.tasks.tokenizer import TokenizerTask

TINY = Path(__file__).parent.parent / "tiny.py"


@pytest.fixture(scope="module")
def setting():
    config = load(str(TINY), {"optim.lr": "1e-2", "optim.weight_decay": "0.1"})
    # Both kinds of block and a temporal downsampling, but nothing else to compile.
    model = config.model
    model.encoder_widths = model.decoder_widths = (8, 16)
    model.encoder_depths = model.decoder_depths = (1, 1)
    model.block_types, model.multiscales, model.temporal_down = ("res", "evit"), ((), (5,)), (0,)
    model = models.build(config.model.to_dict(), jnp.float32)
    rng = np.random.default_rng(0)
    batch = {
        "video": rng.integers(0, 256, (4, 3, 16, 24, 3), dtype=np.uint8),
        "mask": np.ones(4, np.float32),
    }
    return config, model, batch


def run(config, model, batch, sizes, pieces=1):
    """Loss and gradient of the training step on a mesh of these sizes."""
    devices = jax.devices()[: int(np.prod(sizes))]
    mesh = make_mesh(dict(zip(AXES, sizes, strict=True)), devices)
    task = TokenizerTask(config, model)
    key = random_key(0, "params")
    placed = shardings(jax.eval_shape(task.init, key), mesh)
    with config.unlocked():
        config.optim.accumulate = pieces

    def loss_and_grads(state, batch):
        found = task.compute_gradients(state, batch, {})
        return found.loss, found.params

    with jax.set_mesh(mesh):
        state = jax.jit(task.init, out_shardings=placed)(key)
        arrays = to_global(batch, batch_sharding(mesh))
        grad = jax.jit(loss_and_grads, out_shardings=(None, placed["params"]))
        loss, grads = grad(state, arrays)
    return jax.device_get((loss, grads))


def compare(one, many, tolerance):
    # Gradients are compared on the scale of the largest entry of their array: sums over the whole
    # batch cancel, and float32 rounding is relative to the summands.
    np.testing.assert_allclose(many[0], one[0], rtol=tolerance)
    for a, b in zip(jax.tree.leaves(one[1]), jax.tree.leaves(many[1]), strict=True):
        np.testing.assert_allclose(b, a, atol=tolerance * max(1.0, np.abs(a).max()))


@pytest.fixture(scope="module")
def single(setting):
    return run(*setting, sizes=(1, 1, 1, 1))


@pytest.mark.parametrize(
    "sizes", [pytest.param((2, 2, 2, 1), marks=pytest.mark.slow), (1, 2, 2, 2)]
)
def test_eight_devices_equal_one(setting, single, sizes):
    compare(single, run(*setting, sizes=sizes), 1e-5)


def test_accumulated_gradient_is_the_gradient(setting, single):
    compare(single, run(*setting, sizes=(2, 1, 1, 1), pieces=2), 1e-5)


def test_padding_rows_do_not_count(setting, single):
    config, model, batch = setting
    noise = np.random.default_rng(1).integers(0, 256, batch["video"].shape, dtype=np.uint8)
    padded = {
        "video": np.concatenate([batch["video"], noise]),
        "mask": np.concatenate([batch["mask"], np.zeros(4, np.float32)]),
    }
    compare(single, run(config, model, padded, sizes=(1, 1, 1, 1)), 1e-5)
