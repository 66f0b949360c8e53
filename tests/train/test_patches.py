"""Training on patches: exact where they are compared, with the configured gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlatent.config import load
from vidlatent.errors import VidlatentError
from vidlatent.models.load import model_of
from vidlatent.train.patches import make_reconstruct


@pytest.fixture(scope="module")
def setting():
    config = load("tests/tiny.py")
    with config.unlocked():
        config.model.encoder_widths = config.model.decoder_widths = (8, 8)
        config.model.encoder_depths = config.model.decoder_depths = (1, 1)
        config.model.block_types, config.model.multiscales = ("res", "evit"), ((), (5,))
        config.model.temporal_down = (0,)
        config.model.norm_scale_init = 1.0
        config.train.patch_cells = 9
    model = model_of(config)
    video = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (1, 3, 32, 24, 3)), jnp.float32)
    params = jax.jit(model.init)(jax.random.key(1), video)["params"]
    return config, model, params, video


def test_a_patch_is_a_window_of_the_whole(setting):
    config, model, params, video = setting
    whole = model.apply({"params": params}, video)[0]
    reconstruct = jax.jit(
        lambda params, key: make_reconstruct(config, model)(params, video, {}, key)
    )
    places = set()
    for seed in range(4):
        (patch, posterior), target = reconstruct(params, jax.random.key(seed))
        assert patch.shape == target.shape and posterior.mean.shape[2:4] == (16, 12)
        rows, columns = target.shape[2:4]
        found = [
            (y, x)
            for y in range(32 - rows + 1)
            for x in range(24 - columns + 1)
            if np.array_equal(target, video[:, :, y : y + rows, x : x + columns])
        ]
        ((y, x),) = found
        places.add((y, x))
        np.testing.assert_allclose(patch, whole[:, :, y : y + rows, x : x + columns], atol=1e-5)
    assert len(places) > 1


def test_a_patch_may_hold_the_first_frames_alone(setting):
    config, model, params, video = setting
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.train.patch_latents = 1
    shapes = jax.eval_shape(
        lambda: make_reconstruct(config, model)(params, video, {}, jax.random.key(0))
    )
    (patch, posterior), target = shapes
    assert posterior.mean.shape[1] == 2 and patch.shape == target.shape and patch.shape[1] == 1

    def shown(key):
        return make_reconstruct(config, model)(params, video, {}, key)

    (patch, _), target = jax.jit(shown)(jax.random.key(3))
    whole = model.apply({"params": params}, video)[0][:, :1]
    size = target.shape[2:4]
    places = [(y, x) for y in range(33 - size[0]) for x in range(25 - size[1])]
    cuts = {p: np.s_[:, :, p[0] : p[0] + size[0], p[1] : p[1] + size[1]] for p in places}
    ((y, x),) = [p for p in places if np.array_equal(target, video[:, :1][cuts[p]])]
    np.testing.assert_allclose(patch, whole[cuts[y, x]], atol=1e-5)


def test_gradients_reach_the_encoder_only_if_they_shall(setting):
    config, model, params, video = setting

    def encoder_gradient(flag):
        with config.unlocked():
            config.train.patch_encoder = flag
        reconstruct = make_reconstruct(config, model)

        def loss(params):
            (patch, _), target = reconstruct(params, video, {}, jax.random.key(0))
            return jnp.square(patch - target).mean()

        grads = jax.jit(jax.grad(loss))(params)
        assert float(jnp.abs(grads["decoder"]["conv_in"]["kernel"]).max()) > 0
        return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(grads["encoder"]))

    assert encoder_gradient(False) == 0
    assert encoder_gradient(True) > 0
    assert load("fsae:paper,stage=3").train.patch_encoder


def test_the_encoder_learns_from_a_patch_what_the_whole_frame_would_teach_it(setting):
    """The gradient of the loss on the same pixels, of a whole decoding: every encoder parameter."""
    config, model, params, video = setting
    with config.unlocked():
        config.train.patch_encoder = True
    key = jax.random.key(0)
    target = make_reconstruct(config, model)(params, video, {}, key)[1]
    rows, columns = target.shape[2:4]
    ((y, x),) = [
        (y, x)
        for y in range(32 - rows + 1)
        for x in range(24 - columns + 1)
        if np.array_equal(target, video[:, :, y : y + rows, x : x + columns])
    ]

    def of_patch(params):
        (patch, _), target = make_reconstruct(config, model)(params, video, {}, key)
        return jnp.square(patch - target).mean()

    def of_whole(params):
        decoded = model.apply({"params": params}, video)[0]
        return jnp.square(decoded[:, :, y : y + rows, x : x + columns] - target).mean()

    found, wanted = (jax.jit(jax.grad(loss))(params)["encoder"] for loss in (of_patch, of_whole))
    for leaf, want in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        assert np.abs(want).max() > 0
        np.testing.assert_allclose(
            leaf, want, rtol=1e-3, atol=1e-6 * float(np.abs(want).max()) + 1e-8
        )


def test_small_frames_are_decoded_whole(setting):
    config, model, params, video = setting
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.train.patch_above = 32 * 24
    shape = jax.eval_shape(
        lambda: make_reconstruct(config, model)(params, video, {}, jax.random.key(0))
    )[1].shape
    assert shape == video.shape


def test_other_tokenizers_refuse_patches():
    config = load("ivvae", {"train.patch_cells": "8"})
    with pytest.raises(VidlatentError, match="patch_cells is 8, but only fsae and dcae"):
        make_reconstruct(config, model_of(config))


def test_features_of_a_patch_are_not_compared_with_the_whole_latent():
    config = load("fsae:paper,stage=vf", {"train.patch_cells": "8"})
    with pytest.raises(VidlatentError, match="config.loss.vf"):
        make_reconstruct(config, model_of(config))
