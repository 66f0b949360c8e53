"""The step that tasks with one loss share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlatent.config import load
from vidlatent.train.optim import make_learning_rate, make_optimizer
from vidlatent.train.state import PlayerUpdate, init_player, init_state
from vidlatent.train.update import make_slice_keys, update_by_loss


def update(pieces, **options):
    """One update of a line's slope and intercept towards ``2 x + 1``, with a term to log."""
    config = load("fsae", {"optim.warmup_steps": "0"})
    config.optim.accumulate = pieces
    optimizer, rate = make_optimizer(config), make_learning_rate(config, 10)
    state = init_state({"slope": jnp.zeros(()), "level": jnp.zeros(())}, optimizer)
    state["critic"] = init_player({"kernel": jnp.ones(2)}, optimizer)
    x = jnp.arange(4.0)

    def compute_loss(params, rows, number):
        error = params["slope"] * rows["x"] + params["level"] - rows["y"]
        return jnp.mean(error**2), {"largest": jnp.max(jnp.abs(error)), "number": number}

    return update_by_loss(
        state,
        {"x": x, "y": 2 * x + 1},
        compute_loss,
        config=config,
        optimizer=optimizer,
        rate=rate,
        **options,
    )


@pytest.mark.parametrize("pieces", [1, 2, 4])
def test_loss_terms_and_update_are_means_over_the_slices(pieces):
    whole, one = update(1)
    state, report = update(pieces)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), state, whole)
    assert float(report["loss"]) == pytest.approx(float(one["loss"]), rel=1e-6)
    assert float(report["grad_norm"]) == pytest.approx(float(one["grad_norm"]), rel=1e-6)
    # Slices take every n-th sample; the errors are 1, 3, 5, 7.
    assert float(report["largest"]) == {1: 7.0, 2: 6.0, 4: 4.0}[pieces]
    assert float(report["number"]) == (pieces - 1) / 2


def test_players_are_updated_in_the_same_step():
    config = load("fsae", {"optim.warmup_steps": "0"})
    change = PlayerUpdate({"kernel": jnp.ones(2)}, make_optimizer(config), jnp.float32(0.5))
    state, report = update(2, players={"critic": change})
    assert not np.array_equal(state["critic"]["params"]["kernel"], [1, 1])
    assert "critic_grad_norm" in report


def test_keys_of_slices_differ_by_stream_step_and_number():
    settings = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    keys = [make_slice_keys(*setting)(name) for setting in settings for name in ("a", "b")]
    assert len({jax.random.key_data(key).tobytes() for key in keys}) == 8
