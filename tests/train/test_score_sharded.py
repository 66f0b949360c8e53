"""Score distillation on eight devices is that on one, with the same drawn step."""

import jax
import numpy as np
import pytest

from tests.helpers.generator_steps import batch_of, facts
from tests.train.test_score_task import draw_params, make_config, make_teacher
from vidlatent.latents.space import generator_of
from vidlatent.parallel.mesh import AXES, make_mesh
from vidlatent.parallel.multihost import to_global
from vidlatent.parallel.sharding import batch_sharding, shardings
from vidlatent.train.tasks.distill_score import ScoreTask

pytestmark = pytest.mark.slow


def run(sizes):
    """Metrics of both updates on a mesh of these sizes, and what validation measures."""
    config = make_config("fsvideo_dit:demo,first=true", generator__stack="recomputed")
    task = ScoreTask(config, generator_of(config), facts(), make_teacher(config))
    devices = jax.devices()[: int(np.prod(sizes))]
    mesh = make_mesh(dict(zip(AXES, sizes, strict=True)), devices)
    placed = shardings(jax.eval_shape(task.init, jax.random.key(0)), mesh)
    batch, rows = batch_of(), batch_sharding(mesh)
    with jax.set_mesh(mesh):
        state = jax.jit(task.init, out_shardings=placed)(jax.random.key(0))
        for name, seed in (("params", 1), ("ema", 1)):
            state[name] = jax.device_put(draw_params(task, seed), placed[name])
        own = jax.device_put(draw_params(task, 2), placed["fake"]["params"])
        state = {**state, "fake": {**state["fake"], "params": own}}
        frozen = {"teacher": jax.device_put(draw_params(task, 3), placed["params"])}
        arrays = to_global({name: batch[name] for name in task.arrays}, rows)
        step = jax.jit(task.train_step, in_shardings=(placed, rows, {"teacher": placed["params"]}))
        reports = []
        for _ in range(2):
            state, report = step(state, arrays, frozen)
            reports.append({name: float(value) for name, value in report.items()})
            state = jax.device_put(state, placed)
        probed = jax.jit(task.eval_step)(
            {"student": state["ema"], "fake": state["fake"]["params"]},
            frozen,
            to_global({name: batch[name] for name in (*task.arrays, "clip", "start")}, rows),
        )
        return reports, jax.device_get(probed)


def test_eight_devices_distil_as_one_does():
    """Batch over fsdp 2, tokens over context 2, kernels over tensor 2."""
    (one, probed), (many, probed_many) = run((1, 1, 1, 1)), run((1, 2, 2, 2))
    for a, b in zip(one, many, strict=True):
        assert a["student_step"] == b["student_step"]  # J68
        for name in a:
            np.testing.assert_allclose(b[name], a[name], rtol=2e-3, atol=1e-6, err_msg=name)
    for name, value in probed.items():
        np.testing.assert_allclose(probed_many[name], value, rtol=2e-2, atol=1e-2, err_msg=name)
