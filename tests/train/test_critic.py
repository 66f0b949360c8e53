"""The critic in the tokenizer's step: both players' gradients, its schedule, what stops it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.train.micro import Micro
from vidlatent.config import load
from vidlatent.infer.pixels import from_pixels
from vidlatent.losses import TERMS, Term
from vidlatent.losses.adversarial import critic_loss, generator_loss, r1_penalty
from vidlatent.models.critics import build_critic
from vidlatent.train.steps.tokenizer import make_step
from vidlatent.typing import VidlatentError

CRITIC = {"name": "multiscale3d", "widths": (8, 8), "scales": 1}


def config(**changes):
    loaded = load("tests/tiny.py")
    with loaded.unlocked():
        loaded.data.buckets = ((2, 8, 8, 4),)
        loaded.critic.model.update(CRITIC)
        loaded.critic.weight = 0.3
        loaded.critic.loss = "non_saturating"
        loaded.optim.warmup_steps = 0
        for key, value in changes.items():
            section, _, name = key.rpartition("__")
            node = loaded
            for part in filter(None, section.split("__")):
                node = node[part]
            node[name] = value
    return loaded


@pytest.fixture(scope="module")
def batch():
    video = np.random.default_rng(0).integers(0, 256, (4, 2, 8, 8, 3), np.uint8)
    return {"video": video, "mask": np.ones(4, np.float32)}


def run(loaded, batch, steps=1):
    """States before and after each step, and the last report."""
    step = make_step(loaded, Micro())
    states = [jax.jit(step.init)(jax.random.key(0))]
    train_step = jax.jit(step.train_step)
    for _ in range(steps):
        state, report = train_step(states[-1], batch, {})
        states.append(state)
    return states, report


def changed(a, b):
    return [bool(np.any(x != y)) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)]


def norm(tree):
    return float(np.sqrt(sum(np.square(x).sum() for x in jax.tree.leaves(tree))))


def test_both_players_get_their_own_gradient(batch):
    """Compared with plain differentiation of each player's loss, the other held fixed."""
    states, report = run(config(), batch)
    model, critic = Micro(), build_critic(CRITIC)
    target = from_pixels(batch["video"])
    judge = states[0]["critic"]["params"]

    def logits(params, video):
        return critic.apply({"params": params}, video, {}, True)[0]

    def generator(params):
        prediction = model.apply({"params": params}, target)[0]
        adversarial = generator_loss("non_saturating", logits(judge, prediction))
        return jnp.abs(prediction - target).mean() + 0.3 * adversarial

    def opponent(params):
        prediction = model.apply({"params": states[0]["params"]}, target)[0]
        return critic_loss("non_saturating", logits(params, target), logits(params, prediction))

    loss, grads = jax.value_and_grad(generator)(states[0]["params"])
    np.testing.assert_allclose(report["loss"], loss, rtol=1e-6)
    np.testing.assert_allclose(report["grad_norm"], norm(grads), rtol=1e-5)
    loss, grads = jax.value_and_grad(opponent)(judge)
    np.testing.assert_allclose(report["critic/loss"], loss, rtol=1e-6)
    np.testing.assert_allclose(report["critic_grad_norm"], norm(grads), rtol=1e-5)
    assert all(changed(states[0]["critic"]["params"], states[1]["critic"]["params"]))
    assert all(changed(states[0]["params"], states[1]["params"]))


def test_adaptive_weight_is_the_ratio_of_gradients_at_the_layer(batch):
    loaded = config(critic__adaptive_layer="decoder/conv_out/kernel", loss__l2=0.5)
    loaded.critic.adaptive_terms = ("l1",)
    states, report = run(loaded, batch)
    model, critic = Micro(), build_critic(CRITIC)
    target = from_pixels(batch["video"])

    def parts(params):
        prediction = model.apply({"params": params}, target)[0]
        judge = {"params": states[0]["critic"]["params"]}
        maps = critic.apply(judge, prediction, {}, True)[0]
        return jnp.abs(prediction - target).mean(), generator_loss("non_saturating", maps)

    rated, adversarial = (
        norm(
            jax.grad(lambda p, i=i: parts(p)[i])(states[0]["params"])["decoder"]["conv_out"][
                "kernel"
            ]
        )
        for i in (0, 1)
    )
    expected = 0.3 * rated / (adversarial + 1e-4)
    np.testing.assert_allclose(report["adversarial_weight"], expected, rtol=1e-4)
    with pytest.raises(VidlatentError, match="matches no parameter"):
        run(config(critic__adaptive_layer="decoder/nowhere"), batch)
    with pytest.raises(VidlatentError, match="adaptive_terms names 'lpips'"):
        run(config(critic__adaptive_terms=("lpips",)), batch)


def test_nothing_is_felt_before_the_start_and_then_it_fades_in(batch):
    loaded = config(critic__start_step=1, critic__warmup_steps=2)
    with_critic, _ = run(loaded, batch, steps=2)
    alone = config()
    with alone.unlocked():
        alone.critic.model = {}
    without, _ = run(alone, batch, steps=2)
    first = [states[1]["params"] for states in (with_critic, without)]
    jax.tree.map(np.testing.assert_array_equal, *first)
    assert not any(changed(with_critic[0]["critic"], with_critic[1]["critic"]))
    assert any(changed(with_critic[1]["critic"], with_critic[2]["critic"]))
    assert any(changed(with_critic[2]["params"], without[2]["params"]))
    step = make_step(loaded, Micro())
    state, weights = jax.jit(step.init)(jax.random.key(0)), []
    train_step = jax.jit(step.train_step)
    for _ in range(4):
        state, report = train_step(state, batch, {})
        weights.append(float(report["adversarial_weight"]))
    assert weights == pytest.approx([0, 0.15, 0.3, 0.3])


def test_pieces_of_a_batch_make_the_whole(batch):
    whole, parts = (
        run(config(optim__accumulate=pieces, critic__lecam_weight=0.1), batch, steps=1)
        for pieces in (1, 2)
    )
    for part in ("params", "critic"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6),
            whole[0][1][part],
            parts[0][1][part],
        )
    np.testing.assert_allclose(whole[1]["critic/loss"], parts[1]["critic/loss"], rtol=1e-5)


def test_lazy_penalty_counts_as_often_as_it_is_left_out(batch):
    loaded = config(critic__r1_weight=10.0, critic__r1_every=3, critic__r1_crop=(2, 8, 8))
    states, report = run(loaded, batch)
    critic = build_critic(CRITIC)
    target, judge = from_pixels(batch["video"]), states[0]["critic"]["params"]

    def logits(params, video):
        return critic.apply({"params": params}, video, {}, True)[0]

    def loss(params):
        prediction = Micro().apply({"params": states[0]["params"]}, target)[0]
        own = critic_loss("non_saturating", logits(params, target), logits(params, prediction))
        return own + 3 * r1_penalty(logits, params, target, gamma=10.0)

    np.testing.assert_allclose(report["critic_grad_norm"], norm(jax.grad(loss)(judge)), rtol=1e-4)
    _, report = run(loaded, batch, steps=2)
    assert report["critic/r1"] == 0.0


def test_a_player_that_is_not_finite_stops_all(batch, monkeypatch):
    loaded = config()
    step = make_step(loaded, Micro())
    state = jax.jit(step.init)(jax.random.key(0))
    state["critic"]["params"] = jax.tree.map(
        lambda x: x.at[(0,) * x.ndim].set(jnp.nan), state["critic"]["params"]
    )
    after, report = jax.jit(step.train_step)(state, batch, {})
    for part in ("params", "opt", "ema", "critic"):
        jax.tree.map(np.testing.assert_array_equal, after[part], state[part])
    assert (int(report["bad_streak"]), int(after["step"])) == (1, 1)


def test_helper_parameters_of_a_term_are_trained_beside_the_model(batch, monkeypatch):
    def scaled(inputs, params, networks):
        return jnp.square(params["w"] - 1.0) + 0 * inputs.prediction.mean()

    term = Term(scaled, init=lambda key, spec: {"w": jnp.zeros(())})
    monkeypatch.setattr(TERMS, "_entries", {**TERMS._entries, "helped": lambda: term})
    states, report = run(config(loss__helped=2.0), batch, steps=3)
    assert float(states[0]["helpers"]["params"]["helped"]["w"]) == 0
    assert 0 < float(states[3]["helpers"]["params"]["helped"]["w"])
    assert "helped" in report and "w" not in states[3]["params"]


def test_the_latent_is_drawn_only_where_asked(batch):
    def losses(loaded):
        step = make_step(loaded, Micro())
        state = jax.jit(step.init)(jax.random.key(0))
        return float(jax.jit(step.train_step)(state, batch, {})[1]["l1"])

    drawn, mean = (losses(config(train__sample_latent=flag)) for flag in (True, False))
    assert drawn != mean
    assert losses(config(train__sample_latent=True)) == drawn
