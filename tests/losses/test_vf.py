"""Properties of the Video VF loss for arbitrary latents, and its memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlatent.errors import VidlatentError
from vidlatent.losses.vf import cosine_distance, normalise, pool_frames, relation_distance, video_vf


def tokens(seed, shape=(2, 37, 5)):
    return normalise(jax.random.normal(jax.random.key(seed), shape))


Z, F = tokens(0), tokens(1, (2, 37, 9))


def dense(z, f, margin):
    apart = jnp.einsum("bpc,bqc->bpq", z, z) - jnp.einsum("bpc,bqc->bpq", f, f)
    return jax.nn.relu(jnp.abs(apart) - margin).mean(axis=(1, 2))


@pytest.mark.parametrize("margin", [0.0, 0.25])
def test_blocks_are_the_whole(margin):
    weights = jnp.asarray([1.0, -2.0])

    def summed(distance):
        return jax.jit(jax.value_and_grad(lambda z: (weights * distance(z, F, margin)).sum()))

    want, want_grad = summed(dense)(Z)
    for rows in (8, 37, 512):
        value, grad = summed(lambda *a, rows=rows: relation_distance(*a, rows))(Z)
        np.testing.assert_allclose(value, want, rtol=1e-5)
        # Along a token's own direction the two differ by the diagonal, which no unit vector feels.
        across = [g - (g * Z).sum(-1, keepdims=True) * Z for g in (grad, want_grad)]
        np.testing.assert_allclose(*across, atol=1e-6)


def test_tokens_may_be_permuted():
    order = jax.random.permutation(jax.random.key(3), 37)
    for distance in (cosine_distance, relation_distance):
        f = tokens(1)
        want = distance(Z, f, 0.1)
        np.testing.assert_allclose(distance(Z[:, order], f[:, order], 0.1), want, rtol=1e-5)


def test_features_themselves_cost_nothing():
    latent = jax.random.normal(jax.random.key(4), (2, 3, 4, 4, 6))
    parts = jax.jit(lambda x: video_vf(x, jnp.eye(6), x, jnp.ones(2), 0.0, 0.0))(latent)
    np.testing.assert_allclose(parts, 0, atol=1e-6)


def test_dark_latents_have_a_gradient():
    latent = jnp.zeros((1, 2, 2, 2, 3))
    features = jax.random.normal(jax.random.key(5), (1, 2, 2, 2, 4))

    def loss(latent, kernel):
        return sum(video_vf(latent, kernel, features, jnp.ones(1)))

    value, grads = jax.jit(jax.value_and_grad(loss, (0, 1)))(latent, jnp.ones((3, 4)))
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in grads)


def test_frames_behind_a_latent():
    frames = jnp.arange(9.0).reshape(1, 9, 1, 1, 1)
    assert pool_frames(frames, 3).ravel().tolist() == [0, 2.5, 6.5]
    assert pool_frames(frames[:, :8], 2, first_alone=False).ravel().tolist() == [1.5, 5.5]
    for first_alone in (True, False):
        assert pool_frames(frames[:, :1], 1, first_alone).ravel().tolist() == [0]
    with pytest.raises(VidlatentError, match="9 frames do not spread over 4 latent frames"):
        pool_frames(frames, 4)
    with pytest.raises(VidlatentError, match="9 frames do not spread over 1 latent frames"):
        pool_frames(frames, 1)


def test_memory_of_a_long_clip():
    """121 frames at 16x16 features: 31 * 256 tokens of 1024 channels, never a matrix of pairs."""
    latent = jax.ShapeDtypeStruct((1, 31, 16, 16, 128), jnp.float32)
    features = jax.ShapeDtypeStruct((1, 31, 16, 16, 1024), jnp.float32)
    kernel = jax.ShapeDtypeStruct((128, 1024), jnp.float32)

    def loss(latent, kernel, features):
        return sum(video_vf(latent, kernel, features, jnp.ones(1)))

    grad = jax.jit(jax.value_and_grad(loss, (0, 1)))
    memory = grad.lower(latent, kernel, features).compile().memory_analysis()
    tokens = 31 * 16 * 16
    # Six arrays of all tokens' vectors and four of a block's rows: about one matrix of pairs, where
    # differentiating the plain formula keeps more than three.
    assert memory.temp_size_in_bytes < 4 * tokens * (6 * 1024 + 4 * 512)
