"""The update of the state: schedules, EMA, and what a non-finite step leaves unchanged."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vidlatent.config import load
from vidlatent.errors import VidlatentError
from vidlatent.train.optim import make_learning_rate, make_optimizer
from vidlatent.train.state import apply_gradients, init_state, random_key


@pytest.fixture
def config():
    return load(
        "fsae",
        {
            "optim.lr": "0.1",
            "optim.warmup_steps": "4",
            "optim.weight_decay": "0.5",
            "optim.clip_norm": "1.0",
            "optim.ema_decay": "0.9",
        },
    )


def test_schedule(config):
    rate = make_learning_rate(config, 20)
    assert [float(rate(step)) for step in range(4)] == pytest.approx([0.025, 0.05, 0.075, 0.1])
    assert float(rate(12)) == pytest.approx(0.05)  # half-way down the cosine
    assert float(rate(20)) == pytest.approx(0.0, abs=1e-8)
    config.optim.update({"schedule": "linear", "final_lr_share": 0.5})
    assert float(make_learning_rate(config, 20)(20)) == pytest.approx(0.05)
    config.optim.schedule = "cosin"
    with pytest.raises(VidlatentError, match="did you mean 'cosine'"):
        make_learning_rate(config, 20)


def params():
    return {"layer": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}


def test_weight_decay_is_on_kernels_only(config):
    optimizer = make_optimizer(config)
    zeros = jax.tree.map(jnp.zeros_like, params())
    updates, _ = optimizer.update(zeros, optimizer.init(params()), params())
    np.testing.assert_allclose(updates["layer"]["kernel"], 0.5)
    np.testing.assert_allclose(updates["layer"]["bias"], 0.0)


def test_matches_optax_adamw(config):
    """With the learning rate outside the chain, updates equal those of optax.adamw."""
    rate = make_learning_rate(config, 20)
    optimizer = make_optimizer(config)
    state = init_state(params(), optimizer)
    reference = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(
            rate,
            b1=config.optim.b1,
            b2=config.optim.b2,
            weight_decay=0.5,
            mask={"layer": {"kernel": True, "bias": False}},
        ),
    )
    expected, expected_opt = params(), reference.init(params())
    for step in range(5):
        grads = jax.tree.map(
            lambda p, s=step: jax.random.normal(random_key(s, "test"), p.shape), params()
        )
        state, _ = apply_gradients(
            state, grads, jnp.float32(1), optimizer=optimizer, rate=rate, ema_decay=0.9
        )
        updates, expected_opt = reference.update(grads, expected_opt, expected)
        expected = optax.apply_updates(expected, updates)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), state["params"], expected
    )


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_non_finite_step_changes_nothing_but_counters(config, where):
    optimizer = make_optimizer(config)
    rate = make_learning_rate(config, 20)
    update = jax.jit(
        lambda s, g, loss: apply_gradients(
            s, g, loss, optimizer=optimizer, rate=rate, ema_decay=0.9
        )
    )
    good = jax.tree.map(jnp.ones_like, params())
    bad = jax.tree.map(lambda g: g.at[0].set(jnp.nan), good) if where == "gradient" else good
    loss = jnp.float32(jnp.inf if where == "loss" else 1.0)
    before, _ = update(init_state(params(), optimizer), good, jnp.float32(1))
    after, report = update(before, bad, loss)
    for item in ("params", "opt", "ema"):
        jax.tree.map(np.testing.assert_array_equal, after[item], before[item])
    assert int(after["step"]) == int(before["step"]) + 1
    assert int(report["bad_streak"]) == 1
    again, report = update(after, bad, loss)
    assert (int(report["bad_steps"]), int(report["bad_streak"])) == (2, 2)
    _, report = update(again, good, jnp.float32(1))
    assert (int(report["bad_steps"]), int(report["bad_streak"])) == (2, 0)


def test_random_streams_differ_and_repeat():
    keys = [random_key(*args) for args in ((0, "a", 0), (0, "a", 1), (0, "b", 0), (1, "a", 0))]
    data = {tuple(np.asarray(jax.random.key_data(key)).tolist()) for key in keys}
    assert len(data) == 4
    assert random_key(0, "a", 1) == keys[1]
