"""The step of ReFL on real networks: whose gradient it is, streamed or not, on several devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.grpo_steps import make, prompts, refl_config, tokenizer_config
from vidlatent.parallel.mesh import AXES, make_mesh
from vidlatent.parallel.multihost import to_global
from vidlatent.parallel.sharding import batch_sharding, shardings
from vidlatent.rewards import REWARDS, FrameReward, RewardEntry
from vidlatent.train.program import jit_train_step


class Dark(FrameReward):
    """Minus the mean square of each picture, of the two lowest."""

    names = ("dark",)

    def score_images(self, params, images, prompt):
        return -jnp.square(images).mean(axis=(1, 2, 3))


@pytest.fixture(scope="module", autouse=True)
def dark():
    if "dark" not in REWARDS.names():
        REWARDS.register("dark", RewardEntry(lambda setting: Dark(2, 1), "darkness"))


def causal(**fields):
    return tokenizer_config(decoder_time="causal", **fields)


def loss_of(task, batch, frozen):
    return lambda params: task.compute_loss(params, batch, frozen, 0, 0)[0]


TWO = {"rewards__use": ("motion", "dark"), "rewards__weights": (("motion", 1.0), ("dark", 0.5))}


@pytest.mark.slow
@pytest.mark.parametrize("groups", [1, 2])
def test_streamed_is_the_whole_gradient(groups):
    """Five latents in pieces of one, and of two with a shorter last one; two rewards."""
    found = []
    for stream in (False, True):
        keys = {"refl__stream": stream, "refl__groups": groups, "refl__flow_weight": 0.0, **TWO}
        task, state, frozen = make(refl_config(**keys), causal())
        batch = prompts(task, size=2, frames=5)
        found.append(jax.jit(jax.value_and_grad(loss_of(task, batch, frozen)))(state["params"]))
    (loss, gradient), (again, streamed) = found
    np.testing.assert_allclose(again, loss, rtol=1e-6)
    norm = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient))
    assert norm > 1e-6
    # Float32 sums in another order.
    for one, two in zip(jax.tree.leaves(gradient), jax.tree.leaves(streamed), strict=True):
        np.testing.assert_allclose(two, one, rtol=0, atol=2e-5 * norm)


@pytest.mark.slow
@pytest.mark.parametrize("guidance", [(), (3.0,)])
def test_the_gradient_is_that_of_the_rewards(guidance):
    """Against finite differences of the rewards of the first step's prediction.

    With guidance the gradient leaves out the unconditional branch, and so is not that slope.
    """
    keys = {"refl__steps": (0, 0), "refl__flow_weight": 0.0, "sampler__guidance__scales": guidance}
    task, state, frozen = make(refl_config(**keys, **TWO), causal())
    batch = prompts(task)
    params, compute = state["params"], jax.jit(loss_of(task, batch, frozen))
    gradient = jax.jit(jax.grad(loss_of(task, batch, frozen)))(params)
    length = jnp.sqrt(sum(jnp.vdot(x, x) for x in jax.tree.leaves(gradient)))
    assert 0 < float(length) < np.inf
    if guidance:
        return
    far = 1e-2 / length
    there, back = (
        compute(jax.tree.map(lambda p, g, s=s: p + s * far * g / length, params, gradient))
        for s in (1, -1)
    )
    # Along itself a gradient's slope is its length; curvature and float32 leave a percent.
    np.testing.assert_allclose((there - back) / (2 * far), length, rtol=0.02)


class Fake:
    """A policy whose walk and prediction are parameters, so that gradients can be told apart."""

    def __init__(self, shape):
        self.shape = shape

    def walk(self, params, conditions, state, first, end):
        return state + params["walk"]

    def predict_clean(self, params, conditions, state, index):
        return state + params["clean"]


@pytest.mark.slow
def test_steps_before_have_no_gradient_and_only_the_first_latents_are_seen(monkeypatch):
    task, _, frozen = make(refl_config(refl__latents=2, refl__flow_weight=0.0), causal())
    batch = prompts(task, size=1, frames=4)
    monkeypatch.setattr(task, "policy_of", Fake)
    monkeypatch.setattr(task, "merge", lambda trained, frozen: trained)
    params = {name: jnp.zeros((1, 4, 2, 2, 4)) for name in ("walk", "clean")}
    gradient = jax.jit(jax.grad(loss_of(task, batch, frozen)))(params)
    np.testing.assert_array_equal(gradient["walk"], 0.0)
    seen = np.abs(gradient["clean"]).max(axis=(0, 2, 3, 4))
    assert (seen[:2] > 0).all() and (seen[2:] == 0).all()


def test_a_reward_of_frames_moves_its_lowest_frames_alone():
    task, _, frozen = make(refl_config(rewards__use=("dark",)), causal())
    video = jax.random.normal(jax.random.key(0), (2, 5, 4, 4, 3))
    judge = task.judge.rewards

    def lose(video):
        each = judge.score_each("dark", frozen, video, {"dark": {}})["dark"]
        return each.sum(), each

    gradient, each = jax.grad(lose, has_aux=True)(video)
    assert each.shape == (2, 2)
    all_scores = -np.square(video).mean(axis=(2, 3, 4))
    lowest = np.sort(np.argsort(all_scores, axis=1)[:, :2], axis=1)
    moved = [np.flatnonzero(np.abs(g).max(axis=(1, 2, 3))) for g in gradient]
    np.testing.assert_array_equal(moved, lowest)


@pytest.mark.slow
def test_a_step_raises_the_reward_and_leaves_the_frozen_networks_alone():
    config = refl_config(refl__flow_weight=0.1, conditions__drop={"label": 0.5}, **TWO)
    with config.unlocked():
        config.optim.freeze = "patch_embedding/"
    task, state, frozen = make(config, causal())
    mesh = make_mesh({axis: 1 for axis in AXES}, jax.devices()[:1])
    batch = prompts(task)
    before, start = jax.tree.map(np.array, (frozen, state["params"]))
    with jax.set_mesh(mesh):
        length = config.train.steps
        step = jit_train_step(task, state, frozen, mesh, length)
        seen = []
        for _ in range(8):
            state, report = step(state, batch, frozen, np.float32(length))
            seen.append(float(report["reward"]))
    assert np.mean(seen[4:]) > np.mean(seen[:4])
    assert {0.0, 1.0} >= {float(report["step_with_gradient"])}
    for name in ("reward/motion", "reward/dark", "below_margin/dark", "data_loss", "reward_loss"):
        assert np.isfinite(float(report[name]))
    jax.tree.map(np.testing.assert_array_equal, frozen, before)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), state["params"], start)
    assert not any(jax.tree.leaves(moved.pop("patch_embedding")))
    assert any(jax.tree.leaves(moved))


def run(sizes):
    """Reports of two steps on a mesh of these sizes."""
    task, state, frozen = make(refl_config(**TWO), causal())
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
            reports.append([float(report[n]) for n in ("loss", "reward", "grad_norm")])
    return np.asarray(reports)


@pytest.mark.slow
def test_eight_devices_learn_what_one_does():
    """Prompts over data 2 and fsdp 2, tokens and rows over context 2."""
    np.testing.assert_allclose(run((2, 2, 2, 1)), run((1, 1, 1, 1)), rtol=2e-3)
