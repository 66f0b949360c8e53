"""One ReFL step against the reference case: trajectory, clean sample, lowest frames, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlatent.diffusion.grids import make_grid
from vidlatent.diffusion.guidance import combine
from vidlatent.diffusion.prediction import data_weights
from vidlatent.diffusion.refl import attach_gradient, hinge
from vidlatent.diffusion.sde import still, take_mean
from vidlatent.rewards.frames import find_lowest

PARAMS = ("W", "u", "Q")


@pytest.fixture
def case(reference):
    with jax.enable_x64(True), np.load(reference("grpo_refl", "io.npz")) as stored:
        yield {name: stored[name] for name in stored.files}


def network(params, z, sigma, cond):
    return z @ params["W"] + sigma * params["u"] + (cond @ params["Q"])[:, None, :]


def guided(params, z, sigma, cond, scale):
    """Both branches; the unconditional one is stopped, as ``LatentSampler`` stops it."""
    least = network(jax.lax.stop_gradient(params), z, sigma, 0 * cond)
    most = network(params, z, sigma, cond)
    return most if scale == 1.0 else combine([least, most], [scale])


def read_step(case, kind):
    """Grid, scale, and ``predict(params) -> (z_k, x0)``."""
    sigmas, scale = case["refl.sigmas"], float(case[f"refl.{kind}.guidance"])
    grid = make_grid(1000.0 * sigmas[:-1], 1.0 - sigmas, sigmas)
    cond, last = jnp.asarray(case["refl.cond"]), int(case["refl.k"])
    steps, weights = still(grid, "velocity"), data_weights("velocity", 1.0 - sigmas, sigmas)

    def predict(params):
        z, held = jnp.asarray(case["refl.z_init"]), jax.lax.stop_gradient(params)
        for index in range(last):
            output = guided(held, z, sigmas[index], cond, scale)
            z = take_mean(steps.at(index, jnp.float64), z, output)
        output = guided(params, z, sigmas[last], cond, scale)
        return z, weights[0][last] * z + weights[1][last] * output

    return predict


def lose(case, clean):
    """The loss of a clean sample, and what it is made of."""
    frames = jnp.tanh(clean @ case["refl.dec_A"])
    apart = jnp.square(frames - case["refl.reward_target"]).mean(axis=(1, 2))
    video = case["refl.sc_v"] - 4 * apart
    each = case["refl.sc_f"] * jnp.sin(frames @ case["refl.reward_q"])
    worst = find_lowest(each, int(case["refl.num_lowest"]))
    chosen = jnp.take_along_axis(each, worst, axis=1)
    loss = case["refl.w_video"] * hinge(video[:, None], case["refl.margin_video"])[0].mean()
    loss += case["refl.w_frame"] * hinge(chosen, case["refl.margin_frame"])[0].mean()
    return case["refl.scale"] * loss, (frames, video, each, worst)


@pytest.mark.parametrize("kind", ["nocfg", "cfg"])
@pytest.mark.parametrize("attached", [False, True])
def test_a_step_with_and_without_guidance(case, kind, attached):
    """Plain differentiation, and the gradient of the clean sample found first and attached."""
    predict = read_step(case, kind)
    params = {name: jnp.asarray(case[f"params_old.{name}"]) for name in PARAMS}

    def compute(params):
        z, clean = predict(params)
        if not attached:
            loss, found = lose(case, clean)
            return loss, (z, clean, found)
        held = jax.lax.stop_gradient(clean)
        (loss, found), change = jax.value_and_grad(lambda x: lose(case, x), has_aux=True)(held)
        return attach_gradient(clean, loss, change), (z, clean, found)

    (loss, (z, clean, found)), gradient = jax.value_and_grad(compute, has_aux=True)(params)
    frames, video, each, worst = found
    expected = {name: case[f"refl.{kind}.{name}"] for name in
                ("z_k", "x0", "frames", "reward_video", "reward_frame")}  # fmt: skip
    for name, value in zip(expected, (z, clean, frames, video, each), strict=True):
        np.testing.assert_allclose(value, expected[name], rtol=1e-9, atol=1e-12, err_msg=name)
    np.testing.assert_array_equal(np.sort(worst, axis=1), case[f"refl.{kind}.lowest_index"])
    np.testing.assert_allclose(loss, case[f"refl.{kind}.loss"], rtol=0, atol=1e-12)
    for name in PARAMS:
        stored = case[f"refl.{kind}.grad.{name}"]
        np.testing.assert_allclose(gradient[name], stored, rtol=1e-9, atol=1e-13, err_msg=name)


def test_a_score_above_its_margin_has_no_gradient():
    scores = jnp.asarray([[1.0, 5.0], [9.0, 11.0]])
    loss, below = hinge(scores, 2.0, mean=3.0, std=2.0)  # standardised: -1, 1; 3, 4
    np.testing.assert_allclose(loss, [2.0, 0.0])
    np.testing.assert_allclose(below, [1.0, 0.0])
    gradient = jax.grad(lambda s: hinge(s, 2.0, 3.0, 2.0)[0].sum())(scores)
    np.testing.assert_allclose(gradient, [[-0.25, -0.25], [0.0, 0.0]])
