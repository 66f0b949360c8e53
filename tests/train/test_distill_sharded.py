"""A step of distillation on eight devices is the step on one."""

import jax
import numpy as np
import pytest

from tests.helpers.distillation import guidance_task, progressive_task, random_params
from tests.helpers.generator_steps import batch_of
from vidlatent.parallel.mesh import AXES, make_mesh
from vidlatent.parallel.multihost import to_global
from vidlatent.parallel.sharding import batch_sharding, shardings

pytestmark = pytest.mark.slow

DIT = "fsvideo_dit:demo,first=true"


def run(make, sizes):
    """Losses and gradient norms of two steps, the second of another stage; gradients before."""
    task = make()
    params = random_params(task.model)
    devices = jax.devices()[: int(np.prod(sizes))]
    mesh = make_mesh(dict(zip(AXES, sizes, strict=True)), devices)
    placed = shardings(jax.eval_shape(task.init, jax.random.key(0)), mesh)
    batch, rows = batch_of(), batch_sharding(mesh)
    with jax.set_mesh(mesh):
        state = jax.jit(task.init, out_shardings=placed)(jax.random.key(0))
        start = jax.device_put(params, placed["params"])
        state = {**state, "params": start, "ema": jax.device_put(params, placed["ema"])}
        names = (*task.arrays, "mask")
        arrays = to_global({name: batch[name] for name in names}, rows)
        frozen = {"teacher": jax.device_put(random_params(task.model, 1), shardings(params, mesh))}

        def loss(params):
            return task.compute_loss(params, arrays, frozen, 0, 0)[0]

        slope = jax.jit(jax.grad(loss), out_shardings=placed["params"])(start)
        step = jax.jit(task.train_step, in_shardings=(placed, rows, None))
        reports = []
        for _ in range(2):
            state, report = step(state, arrays, frozen)
            state = jax.device_put(state, placed)
            reports.append([float(report["loss"]), float(report["grad_norm"])])
    return np.asarray(reports), jax.tree.map(np.asarray, slope)


@pytest.mark.parametrize("kind", ["guidance", "progressive"])
def test_eight_devices_learn_what_one_does(kind):
    """Batch over fsdp 2, tokens over context 2, kernels over tensor 2."""
    # A small rate: Adam amplifies the different rounding of gradients in the second step.
    keys = {"generator__stack": "recomputed", "optim__lr": 1e-6}
    makers = {
        "guidance": lambda: guidance_task(DIT, **keys)[0],
        "progressive": lambda: progressive_task(DIT, stages=(4, 2), steps=2, **keys),
    }
    one, many = (run(makers[kind], sizes) for sizes in ((1, 1, 1, 1), (1, 2, 2, 2)))
    np.testing.assert_allclose(many[0], one[0], rtol=1e-5)
    most = max(np.abs(leaf).max() for leaf in jax.tree.leaves(one[1]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * most), many[1], one[1])
