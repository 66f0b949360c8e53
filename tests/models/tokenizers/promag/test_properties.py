"""What ProMAG and its baseline promise for arbitrary weights: causality, streams, frame 0."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.nets import fast_jit
from tests.helpers.promag_nets import SIZE, Net, net, video_of
from vidlatent.errors import VidlatentError
from vidlatent.models.tokenizers.promag.blocks import Up
from vidlatent.models.tokenizers.promag.growth import with_first_frame
from vidlatent.models.tokenizers.promag.model import MAGVIT2
from vidlatent.weights.tables import initialize_from

TOLERANCE = 1e-5


def perturbed(x, seed=5):
    """Row t of the batch differs from ``x`` at frames >= t; the last row is ``x``."""
    frames = x.shape[1]
    noise = jax.random.normal(jax.random.key(seed), x.shape)
    late = jnp.arange(frames)[None] >= jnp.arange(frames + 1)[:, None]
    return x + late[..., None, None, None] * noise


def leaks(k, change, latents):
    """How far latents that end before the change at frame ``change`` moved."""
    ends = k * np.arange(latents.shape[1])
    before = np.abs(latents[change] - latents[-1]).max(axis=(1, 2, 3))[ends < change]
    return before.max(initial=0)


@pytest.mark.parametrize("k", [4, 8, 16])
def test_latents_ignore_later_frames(k):
    latents = np.asarray(net(k).encode(perturbed(video_of(17))))
    assert max(leaks(k, t, latents) for t in range(17)) == 0
    assert all(np.abs(latents[t] - latents[-1])[-1].max() > 1e-4 for t in range(17))


@pytest.mark.parametrize("k", [4, 8, 16])
def test_frames_ignore_later_latents(k):
    latent = net(k).encode(video_of(17))
    frames = np.asarray(net(k).decode(perturbed(latent)))
    for i in range(latent.shape[1]):
        first = 0 if i == 0 else k * (i - 1) + 1
        moved = np.abs(frames[i] - frames[-1]).max(axis=(1, 2, 3)) > 0
        assert not moved[:first].any() and moved[first:].any()


def test_norms_over_time_break_both():
    whole = Net(norm_axes="thw")
    latents = np.asarray(whole.encode(perturbed(video_of(17))))
    assert max(leaks(4, t, latents) for t in range(1, 17)) > 1e-3
    image = whole.encode(video_of(17)[:, :1])
    assert np.abs(image[0] - latents[-1, :1]).max() > 1e-3
    with pytest.raises(VidlatentError, match="chunks"):
        whole.model.apply({"params": whole.params}, video_of(4), cache={}, method="encode")


@pytest.mark.parametrize("k", [4, 8, 16])
def test_image_is_frame_0_of_the_video(k):
    video = video_of(17)
    latent = net(k).encode(video)
    image = net(k).encode(video[:, :1])
    np.testing.assert_allclose(image, latent[:, :1], atol=TOLERANCE)
    np.testing.assert_allclose(net(k).decode(image), net(k).decode(latent)[:, :1], atol=TOLERANCE)


# One level above the latent: enough where only the kinds of layer matter.
SMALL = {"multipliers": (1, 2), "temporal_down": (0,)}


@pytest.mark.parametrize(
    "fields",
    [
        {"grow": 1, "ada_mode": "pooled", "decoder_ada": "position", "first_frame_join": "feature"},
        {**MAGVIT2, "name": "magvit2", "extra_multipliers": (2,)},
    ],
    ids=["grown", "magvit2"],
)
def test_streams(fields):
    """Chunk by chunk equals the whole, in both directions."""
    some = Net(**SMALL, **fields)
    k = some.k
    video = video_of(1 + 2 * k)
    whole, _ = some.moments(video)
    chunked = some.chunked(some.moments, video, [1 + k, k])
    np.testing.assert_allclose(chunked, whole, atol=TOLERANCE)
    latent = whole[..., :4]
    restored = some.decode(latent)
    assert restored.shape == video.shape
    pieces = some.chunked(lambda x, c: some.run("decode", x, c), latent, [2, 1])
    np.testing.assert_allclose(pieces, restored, atol=TOLERANCE)


def test_up_layer_repeats_frames():
    plan = net().model.layer_config
    up = Up(plan, (2, 1, 1))
    x = jnp.arange(5.0)[None, :, None, None, None] + jnp.ones((1, 5, 2, 2, 4)) * jnp.arange(4.0)
    kernel = np.zeros((3, 3, 3, 4, 8), np.float32)
    kernel[2, 1, 1] = np.tile(np.eye(4), 2)
    params = {"conv": {"kernel": kernel, "bias": np.zeros(8, np.float32)}}
    y, _ = up.apply({"params": params}, x)
    np.testing.assert_array_equal(y, x[:, [0, 1, 1, 2, 2, 3, 3, 4, 4]])
    started = up.init(jax.random.key(0), x)["params"]["conv"]["kernel"]
    np.testing.assert_array_equal(started[..., :4], started[..., 4:])


def test_first_frame_is_the_image_encoders():
    some = Net(first_frame_join="feature", **SMALL)
    video = video_of(5)

    def latents(params, video):
        return some.model.apply({"params": params}, video, method="encode")[0].mean

    def weight(params, video):
        value = latents(params, video)
        return jnp.sum(value[:, 0] ** 2), jnp.sum(value[:, 1:] ** 2)

    def both(params, video):
        _, pull = jax.vjp(weight, params, video)
        return pull((1.0, 0.0)), pull((0.0, 1.0))

    (first, _), (later, seen) = fast_jit(both)(some.params, video)
    zero = jax.tree.map(lambda x: not np.any(x), (first["image"], later["image"]))
    assert all(jax.tree.leaves(zero)), "the image encoder is frozen"
    assert not any(np.any(x) for x in jax.tree.leaves(first["encoder"]))
    assert any(np.any(x) for x in jax.tree.leaves(later["encoder"]))
    assert np.abs(seen[:, 0]).max() > 0, "later latents know frame 0"


def test_image_latents_are_the_image_models():
    """Joined as latents, frame 0 has the image autoencoder's own posterior at every growth."""
    still = Net(image=True)
    video = video_of(17)
    want, _ = still.moments(video[:, :1])
    model = Net(first_frame_join="latent", grow=1)
    model.params = with_first_frame(still.params, model.params)
    got, _ = model.moments(video)
    np.testing.assert_allclose(got[:, :1], want, atol=TOLERANCE)
    with pytest.raises(VidlatentError, match="first_frame_join"):
        with_first_frame(still.params, net().params)


def test_last_slice_inflation():
    """2-D kernels in the last slice: feature frame j is the image's of frame 4j."""
    still = Net(image=True)
    video = video_of(17)
    model = Net()
    model.params = initialize_from("promag_image", still.params, model.params)
    want, _ = still.moments(video[:, ::4])
    got, _ = model.moments(video)
    np.testing.assert_allclose(got, want, atol=2e-5)
    np.testing.assert_allclose(
        model.decode(want[..., :4]), still.decode(want[..., :4])[:, _NEAREST], atol=2e-5
    )


def test_inflation_refuses_other_layers():
    with pytest.raises(VidlatentError, match="grow1"):
        initialize_from("promag_image", Net(image=True).shapes, net(8).shapes)


_NEAREST = np.ceil(np.arange(17) / 4).astype(int)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"drop_mode": "some"}, "drop_mode"),
        ({"grow": 1, "drop_mode": "final"}, "drop_mode 'each'"),
        ({"grow": 1, "image": True}, "no grow"),
        ({"temporal_down": (2,)}, "temporal_down"),
        ({"groups": 3}, "groups"),
        ({"norm_kind": "layer"}, "group norm"),
        ({"growth": 1}, "grow"),
    ],
)
def test_refusals(fields, said):
    with pytest.raises(VidlatentError, match=said):
        Net(**fields)


def test_refuses_illegal_lengths():
    with pytest.raises(VidlatentError, match="use 9 or 17"):
        jax.eval_shape(net(8).moments, jnp.zeros((1, 13, SIZE, SIZE, 3)))
