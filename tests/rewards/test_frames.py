"""Rewards of frames: the mean over all, or over those that score lowest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlatent.config import get_defaults
from vidlatent.errors import VidlatentError
from vidlatent.rewards import FrameReward, RewardInputs, make_rewards

rng = np.random.default_rng(0)
VIDEO = jnp.asarray(rng.uniform(-1, 1, (2, 7, 4, 4, 3)), jnp.float32)
WEIGHTS = {"w": jnp.asarray(rng.uniform(1, 2, (2, 1)), jnp.float32)}


class Squares(FrameReward):
    """The prompt's number times the mean square of a frame."""

    names = ("squares",)

    def score_images(self, params, images, prompt):
        return prompt["w"][:, 0] * jnp.square(images).mean((1, 2, 3))


def expected_frames():
    return np.asarray(WEIGHTS["w"]) * np.square(np.asarray(VIDEO)).mean((2, 3, 4))


@pytest.mark.parametrize("at_once", [1, 3, 7])
def test_each_frame_by_its_own_prompt(at_once):
    reward = Squares(lowest=0, frames_at_once=at_once)
    np.testing.assert_allclose(
        reward.score_frames({}, VIDEO, WEIGHTS), expected_frames(), rtol=1e-6
    )
    score = reward.score({}, RewardInputs(VIDEO, WEIGHTS))["squares"]
    np.testing.assert_allclose(score, expected_frames().mean(1), rtol=1e-6)


def test_only_the_lowest_frames_count_and_get_a_gradient():
    reward = Squares(lowest=3, frames_at_once=2)

    def total(video):
        return reward.score({}, RewardInputs(video, WEIGHTS))["squares"].sum()

    value, grad = jax.value_and_grad(total)(VIDEO)
    frames = expected_frames()
    worst = np.sort(np.argsort(frames, axis=1)[:, :3], axis=1)
    np.testing.assert_allclose(value, np.take_along_axis(frames, worst, 1).mean(1).sum(), rtol=1e-6)
    for row in range(2):
        moved = np.flatnonzero(np.abs(np.asarray(grad[row])).max((1, 2, 3)))
        assert moved.tolist() == worst[row].tolist()
        share = 2 * WEIGHTS["w"][row, 0] * VIDEO[row, worst[row]] / (3 * 4 * 4 * 3)
        np.testing.assert_allclose(grad[row, worst[row]], share, rtol=1e-5)
    # As many as there are: all of them.
    whole = Squares(lowest=7, frames_at_once=2).score({}, RewardInputs(VIDEO, WEIGHTS))["squares"]
    np.testing.assert_allclose(whole, frames.mean(1), rtol=1e-6)


def test_wrong_numbers_are_refused():
    for lowest, at_once in ((-1, 1), (0, 0)):
        with pytest.raises(VidlatentError, match=f"lowest={lowest} and frames_at_once={at_once}"):
            Squares(lowest, at_once)


def mps_config(**options):
    config = get_defaults("rewards", "test")
    config.rewards.mps.update({"network": "mps_tiny", "tokenizer": "words", **options})
    return config


def test_mps_is_marked_where_its_weights_are_random():
    chosen = make_rewards(("mps",), mps_config())
    assert chosen.label({"mps": 1.0}) == {"mps_random": 1.0} and set(chosen.frozen) == {
        "reward_mps"
    }


def test_mps_says_what_is_missing(tmp_path):
    with pytest.raises(VidlatentError, match="config.rewards.mps.tokenizer='': no tokenizer at an"):
        make_rewards(("mps",), mps_config(tokenizer=""))
    with pytest.raises(VidlatentError, match="config.rewards.mps.quantize='rond': did you mean"):
        make_rewards(("mps",), mps_config(quantize="rond"))
    chosen = make_rewards(("mps",), mps_config(network="mps"))
    with pytest.raises(VidlatentError, match="config.networks.mps is empty: name mps.safetensors"):
        chosen.frozen["reward_mps"].load(chosen.frozen["reward_mps"].abstract)


def test_mps_in_half_precision_keeps_its_matrices_so():
    chosen = make_rewards(("mps",), mps_config(), dtype=jnp.bfloat16)
    abstract = chosen.frozen["reward_mps"].abstract
    assert abstract["cross_0"]["q"]["kernel"].dtype == jnp.bfloat16
    assert abstract["cross_0"]["norm"]["scale"].dtype == jnp.float32
    assert abstract["logit_scale"].dtype == jnp.float32
