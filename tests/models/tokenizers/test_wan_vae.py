"""Wan's autoencoders beyond Diffusers' numbers: the latent space, cutting, wrong fields."""

import jax.numpy as jnp
import numpy as np
import pytest

from vidlatent import config as configs
from vidlatent.errors import VidlatentError
from vidlatent.latents.contract import LatentSpace
from vidlatent.models.load import model_of
from vidlatent.models.tokenizers.wan_vae import WanVAE
from vidlatent.models.tokenizers.wan_vae.coder import wan_down_shortcut, wan_up_shortcut
from vidlatent.spec import LatentSpec

FACTORS = {"wan21": (16, 4, 8, 8), "wan22": (48, 4, 16, 16)}


@pytest.mark.parametrize("kind", FACTORS)
def test_released_moments_are_the_normalisation_of_the_space(kind):
    spec = model_of(configs.load(f"wan_vae:{kind}")).latent_spec
    assert (spec.channels, spec.t, spec.h, spec.w) == FACTORS[kind]
    space = LatentSpace.of_spec(spec)
    assert (space.mean, space.std) == spec.moments
    latent = np.random.default_rng(0).normal(size=(2, 3, 3, spec.channels)).astype(np.float32)
    wanted = (latent - np.float32(spec.moments[0])) / np.float32(spec.moments[1])
    np.testing.assert_allclose(space.standardise(latent), wanted, atol=1e-6)
    assert LatentSpec.from_json(spec.to_json()) == spec
    assert LatentSpace.from_json(space.to_json()) == space
    # What a generator sees is no part of which tokenizer made a latent.
    assert not space.find_difference(LatentSpace.of_spec(spec, "none"), moments=False)


def test_spec_without_moments_has_the_hash_of_older_files():
    assert "moments" not in LatentSpec("x", 4, 4, 8, 8, model_of_demo().rule).to_json()


def model_of_demo():
    return model_of(configs.load("wan_vae")).latent_spec


@pytest.mark.parametrize("change", [{"moments": [[0.0], [1.0]]}, {"moments": [[0.0] * 4, [0] * 4]}])
def test_moments_that_cannot_be_are_refused(change):
    stored = LatentSpec("x", 4, 4, 8, 8, model_of_demo().rule).to_json()
    with pytest.raises(VidlatentError, match="moments"):
        LatentSpec.from_json({**stored, **change})


def test_first_frame_of_the_shortcuts():
    x = jnp.arange(1.0, 9.0).reshape(1, 1, 2, 2, 2)
    # Two channels to four with time: half of the channels are the missing frame's, zeros.
    down = wan_down_shortcut(x, 4, time=True, first=True)
    np.testing.assert_array_equal(down[0, 0, 0, 0], [0, 4, 0, 5])
    # Frame 0 has the later copy: channel 1 of each pair of input channels.
    up = wan_up_shortcut(x, 1, time=True, first=True)
    assert up.shape == (1, 1, 4, 4, 1)
    np.testing.assert_array_equal(up[0, 0, :2, :2, 0], [[2, 2], [2, 2]])


@pytest.mark.parametrize(
    ("fields", "says"), [({"pixel_patch": 2}, "shortcuts"), ({"temporal_down": (3,)}, "levels")]
)
def test_wrong_fields_are_named(fields, says):
    model = WanVAE(latent_channels=4, width=4, **fields)
    with pytest.raises(VidlatentError, match=says):
        model._layers(4)
