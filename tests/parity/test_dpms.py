"""DPM-Solver++ 2M with guidance against the solver that PixArt uses."""

import json
import re

import jax.numpy as jnp
import numpy as np

from vidlatent.diffusion import make_sampler, make_schedule, sample
from vidlatent.diffusion.guidance import guidance_scales, guide

NUMBER = r"(\d+(?:[.]\d+)?)"
# The analytic network as a case writes it down, and its five numbers.
FORMULA = re.compile(
    re.escape("eps=(A+A*t/1000)*x+A*mean(cond)*cos(A*t/1000)+A*sin(A*x)").replace("A", NUMBER)
)


def test_trajectory(reference):
    stored = np.load(reference("reducio", "dpms.npz"))
    meta = json.loads(str(stored["meta"]))
    schedule = make_schedule({"name": "linear"})
    config = {"name": "dpmpp_2m", "steps": meta["steps"], "spacing": "continuous"}
    plan = make_sampler(schedule, config)
    np.testing.assert_allclose(plan.grid.times, stored["io/model_t"], atol=1e-3)

    a, b, c, d, e, f = map(float, FORMULA.match(meta["model"]).groups())

    def network(x, t, index, condition):
        """The case's analytic network, for states of any rank."""
        mean = condition.reshape(len(x), -1).mean(axis=1)
        t, mean = (v.reshape(-1, *(1,) * (x.ndim - 1)) for v in (t / 1000.0, mean))
        return (a + b * t) * x + c * mean * jnp.cos(d * t) + e * jnp.sin(f * x)

    z = jnp.asarray(np.moveaxis(stored["io/z"], 1, -1))
    conditions = [jnp.asarray(stored[f"io/{name}"]) for name in ("uncond", "cond")]
    denoise = guide(network, conditions, guidance_scales(plan.levels, meta["cfg"]))
    got = sample(plan, denoise, z).x
    np.testing.assert_allclose(got, np.moveaxis(stored["io/out"], 1, -1), atol=2e-5)
