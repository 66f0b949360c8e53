"""A discriminator on eight devices equals that on one: gradients of both sides, statistics.

Its batch norm counts the whole batch, its convolutions stride over a sharded height.
"""

import jax
import numpy as np
import pytest

from vidlatent.config import load
from vidlatent.parallel.mesh import AXES, make_mesh
from vidlatent.parallel.multihost import to_global
from vidlatent.parallel.sharding import batch_sharding, constrain, shardings
from vidlatent.train.discriminator import DiscriminatorTrainer

pytestmark = pytest.mark.slow

VIDEO = ("batch", "time", "height", "width", "channel")
CLIP = (5, 32, 16)


@pytest.fixture(scope="module")
def videos():
    draw = np.random.default_rng(0).uniform
    return {name: draw(-1, 1, (4, *CLIP, 3)).astype(np.float32) for name in ("fake", "real")}


def compute(videos, model, sizes):
    config = load("tests/tiny.py")
    with config.unlocked():
        config.discriminator.update({"model": model, "lecam_weight": 0.1})
    trainer = DiscriminatorTrainer(config, np.float32)
    devices = jax.devices()[: int(np.prod(sizes))]
    mesh = make_mesh(dict(zip(AXES, sizes, strict=True)), devices)
    key = jax.random.key(0)

    def init(key):
        return {"discriminator": trainer.init(key, CLIP)}

    placed = shardings(jax.eval_shape(init, key), mesh, whole=("discriminator",))

    def run(state, videos):
        real, fake = (constrain(videos[name], VIDEO) for name in ("real", "fake"))
        found = trainer.compute_losses(state["discriminator"], fake, real, np.int32(0), key)
        return found.loss, found.to_prediction, found.grads, found.values

    with jax.set_mesh(mesh):
        state = jax.jit(init, out_shardings=placed)(key)
        arrays = to_global(videos, batch_sharding(mesh))
        return jax.device_get(jax.jit(run)(state, arrays))


@pytest.mark.parametrize(
    "model",
    [
        {"name": "patch3d", "width": 8, "time_kernels": (3, 3, 1, 1)},
        {"name": "multiscale3d", "widths": (8, 8), "scales": 2},
    ],
    ids=lambda model: model["name"],
)
def test_eight_devices_equal_one(videos, model):
    one, *many = (compute(videos, model, s) for s in ((1, 1, 1, 1), (2, 2, 2, 1), (1, 2, 2, 2)))
    for found in many:
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(found), strict=True):
            # Means of logits of about 1 cancel.
            np.testing.assert_allclose(b, a, atol=1e-5 * max(0.3, np.abs(a).max()))
