"""DPM-Solver++ 2M with guidance against the solver that PixArt uses."""

import json

import jax.numpy as jnp
import numpy as np

from vidlatent.diffusion import make_sampler, make_schedule, sample
from vidlatent.diffusion.guidance import guidance_scales, guide


def test_trajectory(reference):
    stored = np.load(reference("reducio", "dpms.npz"))
    meta = json.loads(str(stored["meta"]))
    schedule = make_schedule({"name": "linear"})
    config = {"name": "dpmpp_2m", "steps": meta["steps"], "spacing": "continuous"}
    plan = make_sampler(schedule, config)
    np.testing.assert_allclose(plan.grid.times, stored["io/model_t"], atol=1e-3)

    def network(x, t, index, condition):
        """The case's analytic network, in its axis order."""
        t = t[:, None, None, None] / 1000.0
        mean = condition.mean(axis=(1, 2, 3))[:, None, None, None]
        return (0.3 + 0.6 * t) * x + 0.2 * mean * jnp.cos(3.0 * t) + 0.05 * jnp.sin(2.0 * x)

    z = jnp.asarray(np.moveaxis(stored["io/z"], 1, -1))
    conditions = [jnp.asarray(stored[f"io/{name}"]) for name in ("uncond", "cond")]
    denoise = guide(network, conditions, guidance_scales(plan.levels, meta["cfg"]))
    got = sample(plan, denoise, z).x
    np.testing.assert_allclose(got, np.moveaxis(stored["io/out"], 1, -1), atol=2e-5)
