"""Models by name, their latent specs, and errors that name the field."""

import jax
import jax.numpy as jnp
import pytest

from vidlatent.errors import VidlatentError
from vidlatent.models.tokenizers import build

PAPER = {
    "name": "fsae",
    "latent_channels": 128,
    "encoder_widths": [128, 256, 512, 512, 1024, 1024, 2048],
    "decoder_widths": [128, 256, 512, 512, 1024, 1024, 2048],
    "encoder_depths": [2, 2, 2, 3, 3, 3, 3],
    "decoder_depths": [3] * 7,
    "block_types": ["res"] * 3 + ["evit"] * 4,
    "multiscales": [[], [], [], [5], [5], [5], [5]],
    "temporal_down": [0, 1],
}


def test_latent_spec_of_the_paper_model():
    spec = build(PAPER).latent_spec
    assert spec.compression == 384
    shapes = {
        (17, 256, 256): (5, 4, 4, 128),
        (61, 512, 512): (16, 8, 8, 128),
        (121, 768, 1280): (31, 12, 20, 128),
    }
    for video, latent in shapes.items():
        assert spec.latent_shape(video) == latent


@pytest.mark.parametrize("shape", [(171, 256, 256), (17, 720, 1280), (17, 256, 32)])
def test_illegal_sizes_are_refused_with_legal_ones(shape):
    model = build(PAPER)
    video = jax.ShapeDtypeStruct((1, *shape, 3), jnp.float32)
    with pytest.raises(VidlatentError, match="use "):
        jax.eval_shape(model.init, jax.random.key(0), video)


def test_image_model_takes_any_number_of_frames():
    fields = {**PAPER, "name": "dcae", "temporal_down": []}
    model = build(fields)
    video = jax.ShapeDtypeStruct((2, 3, 64, 128, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1, 64, 64, 3)))
    restored, posterior = jax.eval_shape(model.apply, params, video)
    assert restored.shape == video.shape
    assert posterior.mean.shape == (2, 3, 1, 2, 128)
    assert model.latent_spec.t == 1


def test_empty_outer_stage_moves_into_the_ends():
    fields = {
        **PAPER,
        "encoder_widths": [4, 8, 8],
        "decoder_widths": [4, 8, 8],
        "encoder_depths": [0, 1, 1],
        "decoder_depths": [0, 1, 1],
        "block_types": ["res"] * 3,
        "multiscales": [[]] * 3,
        "latent_channels": 4,
    }
    model = build(fields)
    video = jnp.zeros((1, 5, 8, 8, 3))
    params = jax.eval_shape(model.init, jax.random.key(0), video)
    assert set(params["params"]["encoder"]["conv_in"]) == {"conv"}
    assert jax.eval_shape(model.apply, params, video)[0].shape == video.shape


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "fsea"}, "did you mean 'fsae'"),
        ({"latent_chanels": 3}, "did you mean 'latent_channels'"),
        ({"encoder_depths": [1]}, "encoder_depths has 1 entries"),
        ({"block_types": ["conv"] * 7}, "use 'res' or 'evit'"),
        ({"shortcut_order": "abc"}, "use 'hwt' or 'thw'"),
        ({"decoder_time": "later"}, "use 'causal', 'centred' or 'group'"),
        ({"latent_channels": 100}, "change the stage widths"),
        ({"name": "dcae"}, "temporal_down of the image model"),
    ],
)
def test_mistakes_are_named(change, message):
    with pytest.raises(VidlatentError, match=message):
        model = build({**PAPER, **change})
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1, 64, 64, 3)))
