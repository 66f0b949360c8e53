"""The loop that draws and learns, with a policy of three numbers a channel and rewards by hand."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlatent.diffusion.flow import Flow
from vidlatent.diffusion.sde import log_prob, make_random_steps, still
from vidlatent.sample.judge import Shown
from vidlatent.sample.policy import Policy
from vidlatent.train.rollout import Problem, Rollout

SHAPE = (2, 2, 2, 3)
GRID = Flow(shift=3.0).grid(6)
WINDOW = 2


class Toy(Policy):
    """``v = z W + sigma u``, a policy without any config."""

    def __init__(self, noise="flow_sde", eta=0.7):
        self.shape, self.steps = SHAPE, GRID.steps
        self.random = make_random_steps(GRID, "velocity", noise, eta)
        self.still = still(GRID, "velocity")

    def evaluate(self, params, conditions, state, index):
        sigma = jnp.asarray(GRID.sigmas, jnp.float32)[index]
        given = conditions["label"][:, None, None, None, None]
        # Enough arithmetic that a compiler could round it differently in two places.
        return jnp.tanh(state @ params["w"]) @ params["w"] + sigma * params["u"] + 0.1 * given


class Judge:
    """Minus the squared distance from 1, and the mean of the first channel."""

    names = ("near", "first")

    def score(self, frozen, latent, shown):
        near = -jnp.square(latent - 1.0).mean((1, 2, 3, 4))
        return jnp.stack([near, latent[..., 0].mean((1, 2, 3)) + frozen["shift"]], axis=-1)


def options(**keys):
    usual = {
        "group": 4,
        "parts": 1,
        "updates": 1,
        "same_start": True,
        "clip": 1e-4,
        "advantage_clip": 5.0,
        "advantage_std": "unbiased",
        "advantage_eps": 1e-8,
        "kl_weight": 0.0,
        "kl_kind": "exact",
    }
    return types.SimpleNamespace(**{**usual, **keys})


def rollout(weights=(1.0, 0.0), policy=None, **keys):
    return Rollout(
        policy or Toy(), Judge(), options(**keys), WINDOW, weights, lambda params, _: params
    )


def state_of(seed=0):
    rng = np.random.default_rng(seed)
    w, u = rng.normal(size=(3, 3)) / 2, rng.normal(size=3)
    return {"params": {"w": jnp.asarray(w, jnp.float32), "u": jnp.asarray(u, jnp.float32)}}


def problem(first=1, prompts=3, length=WINDOW, noise=1, mask=None):
    mask = np.ones(prompts) if mask is None else mask
    return Problem(
        {"label": jnp.arange(prompts, dtype=jnp.float32)},
        Shown({}, None, None),
        jnp.asarray(mask, jnp.float32),
        jnp.asarray(first),
        jnp.asarray(length),
        jax.random.key(0),
        jax.random.key(noise),
    )


def descend(rate):
    def update(state, gradients, loss):
        params = jax.tree.map(lambda p, g: p - rate * g, state["params"], gradients)
        return {"params": params}, {"loss": loss, "gradients": gradients}

    return update


def run(loop, given, rate=0.1, state=None, frozen=None):
    frozen = {"shift": jnp.zeros(())} if frozen is None else frozen
    step = jax.jit(lambda state, given: loop.run(state, given, frozen, descend(rate)))
    return step(state_of() if state is None else state, given)


@pytest.mark.parametrize("noise", ["flow_sde", "cps"])
@pytest.mark.parametrize("first", [0, 3])
def test_the_first_ratio_is_exactly_1(noise, first):
    """G10: and so the loss is minus the mean advantage, 0, and the gradient is REINFORCE's."""
    policy = Toy(noise, 0.5)
    loop = rollout((0.7, 0.3), policy)
    given = problem(first)
    state, samples, tally, report = run(loop, given)
    assert float(tally.first_error) == 0.0 and float(tally.distance) == 0.0
    np.testing.assert_allclose(report["loss"], 0.0, atol=1e-6)
    advantage, _ = loop.compare(samples.scores)
    np.testing.assert_allclose(np.asarray(advantage).reshape(3, 4).mean(1), 0.0, atol=1e-6)

    def surrogate(params):
        total = 0.0
        for k in range(WINDOW):
            labels = {"label": jnp.repeat(given.conditions["label"], 4)}
            now, after = samples.states[0, k], samples.states[0, k + 1]
            mean = policy.mean(policy.random, params, labels, now, first + k)
            total -= (advantage[0] * log_prob(after, mean, policy.random.std[first + k])).mean()
        return total / WINDOW

    expected = jax.grad(surrogate)(state_of()["params"])
    for name, gradient in report["gradients"].items():
        np.testing.assert_allclose(gradient, expected[name], rtol=1e-4, atol=1e-6)
    assert float(jnp.abs(report["gradients"]["w"]).max()) > 1e-3


def test_a_ratio_of_another_policy_is_noticed():
    """The error is measured, not assumed: stored likelihoods that are off by a bit show."""
    loop = rollout()
    given = problem()

    class Off(Toy):
        """Another function when a sample is learned from: as two programs would be."""

        def mean(self, steps, params, conditions, state, index):
            found = super().mean(steps, params, conditions, state, index)
            return found * (1 + 1e-6 * params["flag"])

    off = rollout(policy=Off())
    state = state_of()
    state["params"]["flag"] = jnp.zeros(())
    assert float(run(loop, given)[2].first_error) == 0.0

    def update(state, gradients, loss):
        return {"params": {**state["params"], "flag": jnp.ones(())}}, {"loss": loss}

    # Two updates: the second sees other parameters, and only the first must be exact.
    off = rollout(policy=Off(), parts=2, updates=2)
    frozen = {"shift": jnp.zeros(())}
    _, _, tally, _ = jax.jit(lambda s: off.run(s, given, frozen, update))(state)
    assert float(tally.first_error) == 0.0 and float(tally.distance) > 0.0


@pytest.mark.parametrize("same", [True, False])
def test_parts_of_a_group_change_nothing(same):
    """Each sample's noise is its own, whatever it is drawn with."""
    found = []
    for parts in (1, 2, 4):
        loop = rollout(parts=parts, same_start=same)
        _, samples, tally, report = run(loop, problem())
        members = np.asarray(samples.scores).reshape(parts, 3, 4 // parts, 2)
        found.append((np.moveaxis(members, 0, 1).reshape(3, 4, 2), report["gradients"]))
        assert float(tally.first_error) == 0.0
    for scores, gradients in found[1:]:
        np.testing.assert_allclose(scores, found[0][0], rtol=1e-5, atol=1e-6)
        for name, value in gradients.items():
            np.testing.assert_allclose(value, found[0][1][name], rtol=1e-3, atol=1e-5)


def test_randomness_is_only_in_the_window():
    """J73: members of a group coincide up to its first step, and part in it."""
    samples = run(rollout(), problem(first=2))[1]
    states = np.asarray(samples.states[0]).reshape(WINDOW + 1, 3, 4, *SHAPE)
    assert (states[0] == states[0][:, :1]).all()
    assert all((states[1][:, 0] != states[1][:, k]).any() for k in (1, 2, 3))
    assert (states[0][0] != states[0][1]).any()  # prompts have noise of their own
    # Other starts, if they are asked for; and each seed moves its own part alone.
    other = run(rollout(same_start=False), problem(first=2))[1]
    assert (np.asarray(other.states[0, 0, 0]) != np.asarray(other.states[0, 0, 1])).any()
    noise = run(rollout(), problem(first=2, noise=7))[1]
    np.testing.assert_array_equal(noise.states[0, 0], samples.states[0, 0])
    assert (np.asarray(noise.states[0, 1]) != np.asarray(samples.states[0, 1])).any()


def test_several_updates_leave_the_policy_that_drew():
    """Off-policy as published: the first update's ratio is exactly 1, later ones are clipped."""
    loop = rollout(parts=4, updates=4)
    state, _, tally, _ = run(loop, problem(), rate=1.0)
    assert float(tally.first_error) == 0.0
    assert float(tally.distance) > 1e-4 and float(tally.clipped) > 0
    once = run(rollout(parts=4), problem(), rate=1.0)[0]
    assert (np.asarray(once["params"]["w"]) != np.asarray(state["params"]["w"])).any()


def test_padding_and_short_windows_do_not_count():
    """Gradients with a padded prompt are those without it; an empty window has none."""
    whole = run(rollout(), problem(prompts=2))[3]["gradients"]
    padded = run(rollout(), problem(mask=[1, 1, 0]))[3]["gradients"]
    for name, value in padded.items():
        np.testing.assert_allclose(value, whole[name], rtol=1e-4, atol=1e-6)
    _, samples, tally, report = run(rollout(), problem(first=4, length=0))
    assert not any(np.abs(x).any() for x in jax.tree.leaves(report["gradients"]))
    assert np.isfinite(np.asarray(samples.scores)).all() and float(tally.loss) == 0.0
    # One step at the end of the sampler, where cps has no noise at the next.
    short = run(rollout(policy=Toy("cps", 0.5)), problem(first=4, length=1))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(short[3]["gradients"]))


def test_equal_rewards_teach_nothing():
    _, _, tally, report = run(rollout((0.0, 0.0001)), problem(length=0))
    assert float(tally.loss) == 0.0
    assert not any(np.abs(x).any() for x in jax.tree.leaves(report["gradients"]))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["exact", "published"])
def test_the_reference_holds_the_policy(kind):
    """At the reference the distance is 0; away from it the gradient leads back."""
    state = state_of()
    frozen = {"shift": jnp.zeros(()), "reference": state["params"]}
    loop = rollout(kl_weight=1.0, kl_kind=kind, advantage_clip=1e-9)
    assert float(run(loop, problem(), state=state, frozen=frozen)[2].kl) == 0.0
    moved = {"params": jax.tree.map(lambda x: x + 0.1, state["params"])}
    apart, after = [], moved
    for _ in range(10):
        after, _, tally, _ = run(loop, problem(), state=after, frozen=frozen, rate=50.0)
        apart.append(float(tally.kl))
    assert apart[-1] < 0.7 * apart[0]


@pytest.mark.slow
@pytest.mark.parametrize("keys", [{}, {"parts": 4, "updates": 2, "same_start": False}])
def test_a_toy_reward_rises(keys):
    """J75, over 50 iterations, with the window moving on."""
    loop, state, found = rollout(group=8, clip=1e-2, **keys), state_of(), []
    frozen = {"shift": jnp.zeros(())}
    step = jax.jit(lambda state, given: loop.run(state, given, frozen, descend(2.0)))
    for number in range(50):
        state, samples, tally, _ = step(state, problem(first=number // 5 % 4, noise=number))
        found.append(float(samples.scores[..., 0].mean()))
        assert float(tally.first_error) == 0.0
    assert np.mean(found[-5:]) > np.mean(found[:5]) + 0.3 * abs(np.mean(found[:5]))
