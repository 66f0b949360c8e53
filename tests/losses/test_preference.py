"""Bradley-Terry with ties: as VideoAlign's code has it, and as a distribution."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlatent.errors import VidlatentError
from vidlatent.losses.preference import (
    FIRST,
    SECOND,
    TIE,
    UNKNOWN,
    count_agreement,
    preference_loss,
)

REFERENCE = Path(os.environ.get("VIDLATENT_REFERENCE", Path(__file__).parents[1] / "reference"))


def test_published_loss_and_gradients():
    file = REFERENCE / "videoalign" / "btt_loss.npz"
    if not file.is_file():
        pytest.skip(f"no case {file}")
    case = dict(np.load(file))
    assert {*np.unique(case["chosen_label"])} == {FIRST, SECOND, TIE, UNKNOWN}
    with jax.enable_x64(True):
        loss, grads = jax.value_and_grad(
            lambda a, b: preference_loss(a, b, case["chosen_label"]).mean(), argnums=(0, 1)
        )(jnp.asarray(case["rewards_A"]), jnp.asarray(case["rewards_B"]))
    assert loss.dtype == jnp.float64
    np.testing.assert_allclose(loss, case["loss"], rtol=1e-12)
    for found, name in zip(grads, ("grad_A", "grad_B"), strict=True):
        np.testing.assert_allclose(found, case[name], atol=1e-14)


def test_what_may_happen_has_probability_one():
    a, b = jnp.linspace(-4, 4, 9), jnp.zeros(9)
    for ties in (1.5, 5.0, 20.0):
        likely = [
            np.exp(-preference_loss(a, b, jnp.full(9, judged), ties))
            for judged in (FIRST, TIE, SECOND)
        ]
        np.testing.assert_allclose(sum(likely), 1, rtol=1e-5)
    assert not preference_loss(a, b, jnp.full(9, UNKNOWN)).any()


def test_sides_may_change_places():
    rng = np.random.default_rng(0)
    a, b = jnp.asarray(rng.normal(size=(2, 5, 3)), jnp.float32)
    for judged in (FIRST, TIE, SECOND):
        there = preference_loss(a, b, jnp.full((5, 3), judged))
        np.testing.assert_allclose(there, preference_loss(b, a, jnp.full((5, 3), -judged)))


def test_agreement_counts_decided_pairs():
    first = jnp.array([2.0, 2.0, 2.0, 1.0, 2.0])
    judged = jnp.array([FIRST, SECOND, TIE, FIRST, UNKNOWN])
    right, decided = count_agreement(first, jnp.ones(5), judged)
    assert right.tolist() == [True, False, False, False, False]
    assert decided.tolist() == [True, True, False, True, False]


def test_ties_below_one_are_refused():
    with pytest.raises(VidlatentError, match="ties=1: give more than 1"):
        preference_loss(jnp.zeros(1), jnp.zeros(1), jnp.zeros(1), 1.0)
