"""Advantages, the clipped loss and its gradient (rewards.md G10, G11; fsvideo.md J72, J74)."""

import jax
import jax.numpy as jnp
import numpy as np

from vidlatent.diffusion.policy import clipped_loss, group_advantages, mean_distance

REWARDS = np.random.default_rng(0).normal(size=(4, 6, 2)).astype(np.float32)


def test_advantages_have_mean_0_and_deviation_1():
    _, each = group_advantages(REWARDS, (1.0, 1.0))
    np.testing.assert_allclose(each.mean(axis=1), 0.0, atol=1e-6)
    np.testing.assert_allclose(np.std(each, axis=1, ddof=1), 1.0, rtol=1e-5)
    _, each = group_advantages(REWARDS, (1.0, 1.0), unbiased=False, eps=0.0)
    np.testing.assert_allclose(np.std(each, axis=1), 1.0, rtol=1e-5)


def test_affine_changes_of_a_reward_do_not_matter():
    found, _ = group_advantages(REWARDS, (0.7, 0.3))
    scaled = REWARDS * np.asarray([100.0, 0.01], np.float32) + np.asarray([5.0, -3.0], np.float32)
    np.testing.assert_allclose(group_advantages(scaled, (0.7, 0.3))[0], found, atol=2e-3)
    # Nor does the scale of the weights; a negative one turns its reward around.
    np.testing.assert_allclose(group_advantages(REWARDS, (7.0, 3.0))[0], found, rtol=1e-5)
    turned, _ = group_advantages(REWARDS * np.asarray([1.0, -1.0], np.float32), (0.7, -0.3))
    np.testing.assert_allclose(turned, found, rtol=1e-5, atol=1e-6)


def test_equal_rewards_give_exactly_0():
    """0.1 is no float, and the mean of many of them is not it."""
    for value in (0.1, 1e6 / 3, 0.0):
        found, _ = group_advantages(np.full((3, 12, 1), value, np.float32), (1.0,))
        assert (np.asarray(found) == 0.0).all()


def test_at_the_old_policy_the_gradient_is_that_of_reinforce():
    """G10, J72: ratio 1, loss -mean(A), gradient -mean(A grad log p)."""
    advantage = jnp.asarray([1.5, -0.5, -0.25, 3.0])
    value, slope = jax.value_and_grad(lambda x: clipped_loss(x, advantage, 1e-4, 5.0).mean())(
        jnp.zeros(4)
    )
    np.testing.assert_allclose(value, -advantage.mean(), rtol=1e-6)
    np.testing.assert_allclose(slope, -advantage / 4, rtol=1e-6)


def test_clipping_stops_the_gradient_on_one_side_alone():
    slope = jax.grad(lambda x, a: clipped_loss(x, a, 0.1, 5.0).sum())
    for log_ratio, advantage, stops in (
        (0.5, 1.0, True),
        (-0.5, 1.0, False),
        (-0.5, -1.0, True),
        (0.5, -1.0, False),
    ):
        found = float(slope(jnp.asarray([log_ratio]), jnp.asarray([advantage]))[0])
        assert (found == 0.0) == stops
    # Advantages are cut before they count.
    np.testing.assert_allclose(clipped_loss(jnp.zeros(2), jnp.asarray([9.0, -9.0]), 0.1, 5.0),
                               [-5.0, 5.0])  # fmt: skip


def test_distance_is_the_divergence_of_gaussians():
    rng = np.random.default_rng(0)
    mean, other = (jnp.asarray(rng.normal(size=(2, 500)), jnp.float32) for _ in range(2))
    drawn = mean[:, None] + 0.3 * rng.normal(size=(2, 400, 500))

    def likely(around):
        return -np.square(drawn - around[:, None]).mean((1, 2)) / (2 * 0.3**2)

    expected = likely(np.asarray(mean)) - likely(np.asarray(other))
    np.testing.assert_allclose(mean_distance(mean, other, 0.3), expected, rtol=1e-2)
