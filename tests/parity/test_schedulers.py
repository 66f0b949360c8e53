"""Sampler trajectories of Diffusers' and Wan's schedulers with a toy velocity."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlatent.diffusion import Flow, make_sampler, sample
from vidlatent.diffusion.samplers import StepWeights, apply_step

# The shared cases have these runs; another file may have others of the same kinds.
KINDS = {
    "diffusers.UniPCMultistepScheduler": ("unipc", "diffusers_unipc"),
    "Wan2.1 FlowUniPCMultistepScheduler": ("unipc", "wan_unipc"),
    "diffusers.FlowMatchEulerDiscreteScheduler stochastic_sampling": ("fresh", "diffusers_euler"),
    "diffusers.FlowMatchEulerDiscreteScheduler": ("euler", "diffusers_euler"),
}


@pytest.fixture(scope="module")
def case(reference):
    return dict(np.load(reference("schedulers", "schedulers.npz")))


def settings(case):
    return json.loads(str(case["meta_json"]))


def plan_of(setting):
    name, spacing = next(v for k, v in KINDS.items() if setting["kind"].startswith(k))
    config = {"name": name, "steps": setting["steps"], "spacing": spacing}
    config["shift"] = setting["flow_shift"] if "flow_shift" in setting else setting["shift"]
    custom = setting.get("custom_sigmas")
    if custom is not None:
        config["sigmas"] = tuple(custom)
    if name == "unipc":
        for key, default in (("order", 2), ("solver_type", "bh2"), ("disable_corrector", ())):
            config[key] = setting.get(key.replace("order", "solver_order"), default)
    return make_sampler(Flow(), config)


def velocity(case, xp, x, t, dtype=np.float32):
    """The toy network on states ``[B, ..., C]``, in the case's order ``[B, C, ...]``."""
    a, u, b = (case[k].astype(dtype) for k in ("toy_A", "toy_u", "toy_b"))
    first = xp.moveaxis(x, -1, 1)
    flat = first.reshape(x.shape[0], -1)
    v = xp.tanh(flat @ a + (t[:, None] / 1000.0) * u + b) - 0.3 * flat
    return xp.moveaxis(v.reshape(first.shape), 1, -1)


def last(case, name):
    """States with the channel axis last, under as many leading axes as the array has."""
    return np.moveaxis(case[name], 1 - case["x_init"].ndim, -1)


def test_every_run(case):
    """All runs of the file, in float64 without a compiler: levels, times and every state."""
    for run, setting in settings(case).items():
        plan = plan_of(setting)
        np.testing.assert_allclose(plan.grid.sigmas, case[f"{run}.sigmas"], atol=2e-7, err_msg=run)
        times = case[f"{run}.timesteps"]
        np.testing.assert_allclose(plan.grid.times, times, rtol=1e-6, err_msg=run)
        x = last(case, "x_init").astype(np.float64)
        previous, past = x, (np.zeros_like(x),) * plan.history
        for i in range(plan.nfe):
            row = StepWeights(*(None if w is None else w[i] for w in plan.rows))
            noise = last(case, f"{run}.noise")[i] if plan.random else None
            got = []

            def evaluate(x, t, state, got=got):
                got.append(velocity(case, np, x, t, np.float64))
                return got[0], state

            x, previous, past, _ = apply_step(row, evaluate, x, previous, past, None, noise)
            note = f"{run} step {i}"
            want = last(case, f"{run}.velocities")[i]
            np.testing.assert_allclose(got[0], want, atol=4e-6, err_msg=note)
            want = last(case, f"{run}.samples")[i + 1]
            np.testing.assert_allclose(x, want, atol=4e-6, err_msg=note)


def first_of_kind(case, name):
    for run, setting in settings(case).items():
        if setting["kind"].startswith(name):
            return run, plan_of(setting)
    pytest.skip(f"no run of {name}")


@pytest.mark.parametrize("kind", list(KINDS))
def test_scan(case, kind):
    """One run of each kind through the scan, in float32."""
    run, plan = first_of_kind(case, kind)
    noise = jnp.asarray(last(case, f"{run}.noise")) if plan.random else None

    def denoise(x, t, index):
        return velocity(case, jnp, x, t)

    start = jnp.asarray(last(case, "x_init"))
    run_all = jax.jit(lambda x: sample(plan, denoise, x, noise=noise, trajectory=True).trajectory)
    got = run_all(start)
    np.testing.assert_allclose(got, last(case, f"{run}.samples"), atol=1e-5)
    assert got.dtype == jnp.float32
