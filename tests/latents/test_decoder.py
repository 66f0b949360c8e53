"""The decoder of a training step: whole, group by group, and in chunks that are faded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.generator_runs import MODEL
from vidlatent.config import load
from vidlatent.errors import VidlatentError
from vidlatent.latents.contract import LatentSpace
from vidlatent.latents.decoder import FrozenDecoder
from vidlatent.latents.space import Latents
from vidlatent.models.load import model_of


def tokenizer(**fields):
    config = load("fsae")
    with config.unlocked():
        config.model.update({**MODEL, **fields})
    return config


def make(own, chunks=(), groups=0):
    """A decoder of latents with mean 0.5 and deviation 2, and random weights."""
    spec = model_of(own).latent_spec.in_chunks(chunks, "chunks")
    space = LatentSpace(spec, (0.5,) * spec.channels, (2.0,) * spec.channels)
    decoder = FrozenDecoder(load("fsvideo_dit"), Latents(space, (), 8.0), own, groups)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / 5, leaf.dtype),
        decoder.frozen.abstract,
    )
    return decoder, params


def plain(decoder, params, latent):
    restored = latent * 2.0 + 0.5
    return np.asarray(decoder.model.apply({"params": params}, restored, method="decode")[0])


def test_group_by_group_gives_the_whole():
    own = tokenizer(decoder_time="causal")
    latent = jax.random.normal(jax.random.key(0), (1, 5, 2, 2, 4))
    decoder, params = make(own)
    expected = plain(decoder, params, latent)
    np.testing.assert_allclose(decoder(params, latent, None), expected, atol=1e-6)
    for groups in (2, 9):
        found = make(own, groups=groups)[0](params, latent, None)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_chunks_fade_into_each_other():
    """Three chunks of 5 frames, of which neighbours share 2."""
    decoder, params = make(tokenizer(), chunks=(5, 2))
    latent = jax.random.normal(jax.random.key(0), (1, 9, 2, 2, 4))
    total, weights = np.zeros((1, 11, 4, 4, 3)), np.zeros(11)
    for number in range(3):
        video = plain(decoder, params, latent[:, 3 * number : 3 * number + 3])
        rise = np.asarray([1 / 3, 2 / 3]) if number else np.ones(2)
        fall = np.asarray([2 / 3, 1 / 3]) if number < 2 else np.ones(2)
        weight = np.concatenate([rise, [1.0], fall])
        here = slice(3 * number, 3 * number + 5)
        total[:, here] += video * weight[:, None, None, None]
        weights[here] += weight
    np.testing.assert_allclose(weights, 1.0)
    np.testing.assert_allclose(decoder(params, latent, None), total, atol=1e-5)


def test_a_decoder_that_looks_ahead_is_not_cut():
    with pytest.raises(VidlatentError, match="cannot decode group by group: set config.rl"):
        make(tokenizer(decoder_time="centred", temporal_kernel=3), groups=1)
