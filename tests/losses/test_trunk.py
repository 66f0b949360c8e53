"""The adversarial loss on a trunk: no parameters, known values, bounded logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlatent.errors import VidlatentError
from vidlatent.losses.trunk import LIMIT, binary_cross_entropy, pool_logits

TOKENS = jnp.arange(24, dtype=jnp.float32).reshape(2, 3, 4)


def test_logits_are_means_over_tokens_or_channels():
    np.testing.assert_allclose(pool_logits(TOKENS), np.asarray(TOKENS).mean(axis=1))
    by_channel = pool_logits(TOKENS, "channels")
    np.testing.assert_allclose(by_channel, np.asarray(TOKENS).mean(axis=2))
    half = pool_logits(TOKENS.astype(jnp.bfloat16))
    assert half.dtype == jnp.float32
    with pytest.raises(VidlatentError, match="'token': did you mean 'tokens'"):
        pool_logits(TOKENS, "token")


@pytest.mark.parametrize("real", [True, False])
def test_cross_entropy_is_ln_2_at_0_and_of_the_sigmoid_elsewhere(real):
    """J67; for each sample the mean over its logits."""
    np.testing.assert_allclose(binary_cross_entropy(jnp.zeros((3, 5)), real), np.log(2), rtol=1e-6)
    logits = np.array([[-3.0, 0.5, 2.0], [9.0, -9.0, 1.0]])
    share = 1 / (1 + np.exp(-logits))
    want = -np.log(share if real else 1 - share).mean(axis=1)
    np.testing.assert_allclose(binary_cross_entropy(jnp.asarray(logits), real), want, rtol=1e-4)


def test_logits_beyond_the_limit_count_as_the_limit_and_have_no_gradient():
    far, edge = jnp.asarray([[50.0]]), jnp.asarray([[LIMIT]])
    value, slope = jax.value_and_grad(lambda x: binary_cross_entropy(x, False).sum())(far)
    assert value == binary_cross_entropy(edge, False)[0] and slope == 0
    assert jax.grad(lambda x: binary_cross_entropy(x, False).sum())(jnp.asarray([[9.0]])) > 0.99
