"""Latents of content frames: by name the same wherever they are computed, and refused clearly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlatent.config import load
from vidlatent.encode.content import ContentLatents
from vidlatent.encode.plan import EncodeOptions
from vidlatent.errors import VidlatentError
from vidlatent.parallel.mesh import local_mesh


def content(network="sd_vae_tiny", draw=True, path="random"):
    options = load("fsae").encode.to_dict() | {"content": network, "content_draw": draw}
    paths = {"sd_vae": path, "sd_vae_tiny": path, "clip_tiny": path}
    with jax.set_mesh(local_mesh([1])):
        return ContentLatents(EncodeOptions.of(options), paths, local_mesh([1]), jnp.float32, 3)


def test_draws_belong_to_windows_and_means_to_frames():
    frames = np.random.default_rng(0).integers(0, 256, (3, 16, 24, 3), np.uint8)
    draws = content()
    means = content(draw=False)
    mean = means(frames)
    assert mean.shape == (3, 2, 3, 4) and mean.dtype == np.float32
    one = draws(frames, ["a", "b", "b"], [0, 0, 4])
    other = draws(frames[[2, 0, 1]], ["b", "a", "b"], [4, 0, 0])
    np.testing.assert_allclose(other[[1, 2, 0]], one, atol=1e-6)
    again = draws(frames[[0, 0, 0]], ["a", "b", "a"], [0, 0, 4])
    apart = np.abs(again - one[0]).max(axis=(1, 2, 3))
    assert apart[0] < 1e-6 and min(apart[1:]) > 1e-2
    np.testing.assert_array_equal(means(frames, ["a"] * 3, [0] * 3), mean)


def test_pictures_to_sample_from_are_coded_as_those_trained_on():
    """A draw too, of the same spread around the mean; the same whatever is encoded beside it."""
    frames = np.random.default_rng(0).integers(0, 256, (40, 16, 24, 3), np.uint8)
    draws, mean = content(), content(draw=False)(frames)
    pictures = draws(frames)
    trained = draws(frames, [str(n) for n in range(40)], [0] * 40)
    spread = [float(np.std(found - mean)) for found in (pictures, trained)]
    assert spread[0] > 1e-2 and abs(spread[0] / spread[1] - 1) < 0.1
    np.testing.assert_allclose(draws(frames[5:8]), pictures[5:8], atol=1e-6)


def test_what_is_missing_or_no_autoencoder_is_named():
    with pytest.raises(VidlatentError, match=r"config\.networks\.sd_vae is empty.*sd-vae-ft-ema"):
        content("sd_vae", path="")
    with pytest.raises(VidlatentError, match="'clip_tiny' is no image autoencoder: use 'sd_vae'"):
        content("clip_tiny")
    with pytest.raises(VidlatentError, match="no network is called 'sd_va'"):
        content("sd_va")
