"""The step of policy updates on real networks: exact ratios, and the same on eight devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.grpo_steps import grpo_config, make, prompts
from vidlatent.parallel.mesh import AXES, make_mesh
from vidlatent.parallel.multihost import to_global
from vidlatent.parallel.sharding import batch_sharding, shardings

pytestmark = pytest.mark.slow
RATIO = "first_ratio_error/must_be_zero"


@pytest.mark.parametrize(
    ("system", "keys"),
    [
        ("fsvideo_dit:demo", {"generator__stack": "recomputed", "rl__parts": 2}),
        # Guided, with the text of nothing; and DDIM's steps of a network that predicts noise.
        ("fsvideo_dit:demo", {"sampler__guidance__scales": (2.0,), "rl__noise": "cps"}),
        ("latte:demo", {"rl__noise": "cps", "sampler__name": "ddim"}),
    ],
)
@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_the_first_ratio_is_exactly_1_in_any_precision(system, keys, compute):
    config = grpo_config(system, precision__compute=compute, **keys)
    if system.startswith("latte"):
        with config.unlocked():
            config.sampler.spacing = "trailing"
    task, state, frozen = make(config)
    step = jax.jit(task.train_step)
    seen = []
    for _ in range(4):
        state, report = step(state, prompts(task), frozen)
        assert float(report[RATIO]) == 0.0 and float(report["log_ratio_size"]) == 0.0
        assert np.isfinite(float(report["grad_norm"])) and float(report["grad_norm"]) > 0
        seen.append(float(report["window"]))
    assert seen == [0, 0, 0, 1]


def run(sizes):
    """Reports of two steps, and held-out scores, on a mesh of these sizes."""
    task, state, frozen = make(grpo_config(rl__parts=2, rl__kl_weight=0.0))
    mesh = make_mesh(dict(zip(AXES, sizes, strict=True)), jax.devices()[: int(np.prod(sizes))])
    batch, rows = prompts(task, size=4, side=8), batch_sharding(mesh)
    placed, held = (shardings(tree, mesh) for tree in (state, frozen))
    with jax.set_mesh(mesh):
        state, frozen = jax.device_put(state, placed), jax.device_put(frozen, held)
        arrays = to_global(batch, rows)
        step = jax.jit(task.train_step, in_shardings=(placed, rows, held))
        reports = []
        for _ in range(2):
            state, report = step(state, arrays, frozen)
            state = jax.device_put(state, placed)
            assert float(report[RATIO]) == 0.0
            reports.append([float(report[n]) for n in ("reward", "spread/motion", "grad_norm")])
        clip = jnp.arange(4)
        scores = jax.jit(task.eval_step)(state["ema"], frozen, {**arrays, "clip": clip})
    return np.asarray(reports), np.asarray(scores["motion"])


def test_eight_devices_learn_and_score_what_one_does():
    """Prompts over data 2 and fsdp 2, tokens and rows over context 2."""
    one, many = run((1, 1, 1, 1)), run((2, 2, 2, 1))
    np.testing.assert_allclose(many[0], one[0], rtol=2e-3)
    np.testing.assert_allclose(many[1], one[1], rtol=1e-3)
