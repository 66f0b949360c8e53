"""What the IV-VAE family promises for arbitrary weights: groups, streams, inflation, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlatent.errors import VidlatentError
from vidlatent.models.tokenizers import Posterior, build
from vidlatent.models.tokenizers.ivvae.frame_attention import frame_attention
from vidlatent.models.tokenizers.ivvae.init_from import (
    inflate,
    model_of_params,
    video_from_image,
)
from vidlatent.parallel.compilation import QUICKEST

# Two levels above the latent, both halving time: the same 4 frames a group as the full model.
CONFIG = {
    "name": "ivvae",
    "latent_channels": 4,
    "width": 4,
    "multipliers": (1, 1, 2),
    "blocks": 1,
    "temporal_down": (0, 1),
    "pac_dilations": (0, 1, 2),
}
# One level above the latent, groups of two frames: enough where only the layer types matter.
SMALL = {"multipliers": (1, 2), "temporal_down": (0,)}
SIZE = 8
# These programs run once: a fifth of the compile time, a slower run.
QUICK = QUICKEST
IMAGE = {"variant": "image", "latent_channels": 2, "temporal_down": ()}


def jit(function):
    return jax.jit(function, compiler_options=QUICK)


class Net:
    """A model with random parameters everywhere (biases and norms too), compiled per method."""

    def __init__(self, params=None, **fields):
        self.model = build({**CONFIG, **fields})
        video = jnp.zeros((1, 1, SIZE, SIZE, 3))
        self.shapes = jax.eval_shape(self.model.init, jax.random.key(0), video)["params"]
        self.params = randomise(self.shapes) if params is None else params
        self._encode = jit(self._apply("encode"))
        self._decode = jit(self._apply("decode"))

    def _apply(self, method):
        return lambda p, x, cache: self.model.apply({"params": p}, x, cache=cache, method=method)

    def posterior(self, video, cache=None):
        return self._encode(self.params, video, cache)

    def encode(self, video, cache=None):
        posterior, cache = self._encode(self.params, video, cache)
        return jnp.concatenate(posterior, axis=-1), cache

    def decode(self, latent, cache=None):
        return self._decode(self.params, latent, cache)

    def chunked(self, method, x, sizes):
        run, parts, cache, start = getattr(self, method), [], None, 0
        for size in sizes:
            part, cache = run(x[:, start : start + size], cache)
            parts.append(part)
            start += size
        return jnp.concatenate(parts, axis=1)


def randomise(shapes):
    rng = np.random.default_rng(11)

    def draw(path, leaf):
        name, x = path[-1].key, rng.normal(size=leaf.shape)
        if name == "gamma":
            return jnp.asarray(1 + 0.2 * x, jnp.float32)
        fan = np.prod(leaf.shape[:-1]) if name == "kernel" else 100.0
        return jnp.asarray(x / np.sqrt(fan), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def video_of(frames, seed=0):
    shape = (1, frames, SIZE, SIZE, 3)
    return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, shape), jnp.float32)


@pytest.fixture(scope="module")
def net():
    return Net()


@pytest.fixture(scope="module")
def clip(net):
    video = video_of(13)
    moments, _ = net.encode(video)
    return video, moments, net.decode(moments[..., :4])[0]


def test_image_is_frame_0_of_the_video(net, clip):
    video, moments, restored = clip
    image, _ = net.encode(video[:, :1])
    np.testing.assert_allclose(image, moments[:, :1], atol=1e-5)
    np.testing.assert_allclose(net.decode(image[..., :4])[0], restored[:, :1], atol=1e-5)


def test_groups_ignore_later_groups_but_not_their_own_future(net, clip):
    video, moments, restored = clip
    other, _ = net.encode(video.at[:, 5:].set(video_of(13, seed=1)[:, 5:]))
    np.testing.assert_array_equal(other[:, :2], moments[:, :2])
    assert np.abs(other[:, 2:] - moments[:, 2:]).max() > 1e-2
    # The last frame of a group reaches the whole of that group's latent, and no earlier one.
    other, _ = net.encode(video.at[:, 8].add(0.5))
    np.testing.assert_array_equal(other[:, :2], moments[:, :2])
    assert (np.abs(other[:, 2] - moments[:, 2]).max(axis=(0, 1, 2)) > 1e-4).all()
    latent = moments[..., :4]
    other, _ = net.decode(latent.at[:, 2].add(1.0))
    np.testing.assert_array_equal(other[:, :5], restored[:, :5])
    assert (np.abs(other[:, 5:9] - restored[:, 5:9]).max(axis=(0, 2, 3, 4)) > 1e-3).all()


@pytest.mark.parametrize("sizes", [(1, 4, 4, 4), (1, 12), (5, 4, 4), (1, 4, 8)])
def test_encoding_any_number_of_groups_a_call(net, clip, sizes):
    np.testing.assert_allclose(net.chunked("encode", clip[0], sizes), clip[1], atol=2e-5)


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (1, 3), (2, 2)])
def test_decoding_any_number_of_groups_a_call(net, clip, sizes):
    got = net.chunked("decode", clip[1][..., :4], sizes)
    np.testing.assert_allclose(got, clip[2], atol=2e-5)


def test_stream_as_a_scan(net, clip):
    video, moments, _ = clip
    _, cache = net.posterior(video[:, :1])

    def step(cache, chunk):
        posterior, cache = net.model.apply(
            {"params": net.params}, chunk, cache=cache, method="encode"
        )
        return cache, posterior.mean

    chunks = jnp.moveaxis(video[:, 1:].reshape(1, 3, 4, SIZE, SIZE, 3), 1, 0)
    _, rest = jit(lambda c, x: jax.lax.scan(step, c, x))(cache, chunks)
    np.testing.assert_allclose(
        rest[:, :, 0], moments[0][None, 1:, ..., :4].swapaxes(0, 1), atol=2e-5
    )


def test_every_cached_convolution_remembers_one_frame(net, clip):
    _, cache = net.encode(clip[0])
    kept = jax.tree.leaves(cache)
    assert {leaf.shape[1] for leaf in kept} == {1}
    np.testing.assert_array_equal(cache["conv1"], clip[0][:, -1:])
    full = build({"name": "ivvae", "latent_channels": 16, "width": 64})
    video = jax.ShapeDtypeStruct((1, 5, 64, 64, 3), jnp.float32)
    params = jax.eval_shape(full.init, jax.random.key(0), video)
    posterior, cache = jax.eval_shape(lambda p, x: full.apply(p, x, method="encode"), params, video)
    assert len(jax.tree.leaves(cache)) == 13
    # Half of the released code's: what a frame adds to the next is smaller than the frame.
    assert cache["downsamples_0"]["residual_2"].shape == (1, 1, 64, 64, 64)
    _, cache = jax.eval_shape(
        lambda p, x: full.apply(p, x, method="decode"), params, posterior.mean
    )
    assert len(jax.tree.leaves(cache)) == 19


@pytest.mark.parametrize(
    "variant", ["ktc", "ktc_causal", "volumes", "volumes_plain", "causal", "gcconv"]
)
def test_ablations_and_baselines_stream_too(variant):
    net = Net(variant=variant, **SMALL)
    video = video_of(5)
    moments, _ = net.encode(video)
    np.testing.assert_allclose(net.chunked("encode", video, (1, 4)), moments, atol=2e-5)
    np.testing.assert_allclose(net.chunked("encode", video, (3, 2)), moments, atol=2e-5)
    latent = moments[..., :4]
    want, _ = net.decode(latent)
    assert want.shape == video.shape
    np.testing.assert_allclose(net.chunked("decode", latent, (1, 1, 1)), want, atol=2e-5)
    assert net.model.latent_spec.name == f"ivvae-{variant}"


# Inflation.


@pytest.fixture(scope="module")
def image():
    return Net(**IMAGE)


@pytest.fixture(scope="module")
def plain_image():
    return Net(**{**IMAGE, "variant": "image_plain"})


def frame_by_frame(image, video):
    """Image latents and image reconstructions of every frame."""
    mean = image.posterior(video)[0].mean
    return mean, image.decode(mean)[0]


@pytest.mark.parametrize("keep", [1, 0])
@pytest.mark.parametrize("plain", [False, True])
def test_inflated_model_is_two_image_models(net, image, plain_image, plain, keep):
    flat = plain_image if plain else image
    net = Net(inflate(flat.params, flat.model, net.model, net.params, keep))
    video = video_of(9)
    latents, images = frame_by_frame(flat, video)
    mean = net.posterior(video)[0].mean
    first, kept = jnp.array([0, 1, 5]), jnp.array([0, 4, 8] if keep else [0, 1, 5])
    np.testing.assert_allclose(mean[..., :2], latents[:, first], atol=2e-5)
    np.testing.assert_allclose(mean[..., 2:], latents[:, kept], atol=2e-5)
    frames = jnp.array([0, 1, 4, 4, 4, 5, 8, 8, 8] if keep else [0, 1, 1, 1, 1, 5, 5, 5, 5])
    np.testing.assert_allclose(net.decode(mean)[0], images[:, frames], atol=5e-5)


@pytest.mark.parametrize("variant", ["causal", "gcconv"])
def test_inflated_baseline_keeps_images(plain_image, variant):
    template = Net(variant=variant, latent_channels=2)
    net = Net(
        inflate(plain_image.params, plain_image.model, template.model, template.params),
        variant=variant,
        latent_channels=2,
    )
    video = video_of(9)
    latents, images = frame_by_frame(plain_image, video)
    mean = net.posterior(video)[0].mean
    # Each temporal down operation keeps the first frame of a pair.
    kept = jnp.array([0, 1, 5])
    np.testing.assert_allclose(mean, latents[:, kept], atol=2e-5)
    restored = net.decode(mean)[0]
    np.testing.assert_allclose(restored, images[:, jnp.repeat(kept, 4)[3:]], atol=5e-5)


def test_sizes_read_from_parameters(net, image, plain_image):
    for one in (net, image, plain_image):
        assert model_of_params(one.params) == one.model.clone(pac_dilations=_dilations(one))
    got = video_from_image(image.params, net.params)
    want = inflate(image.params, image.model, net.model, net.params)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def _dilations(net):
    """A model without parallel convolutions keeps the default."""
    rich = "PAC_conv" in net.params["encoder"]["head_2"]
    return net.model.pac_dilations if rich else type(net.model).pac_dilations


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ({}, {"width": 8}, "make them agree"),
        ({}, {"variant": "causal", "latent_channels": 2}, "make them agree"),
        ({"variant": "gcconv"}, {}, "not an image VAE"),
    ],
)
def test_models_that_do_not_inflate(source, target, message):
    source, target = build({**CONFIG, **IMAGE, **source}), build({**CONFIG, **target})
    with pytest.raises(VidlatentError, match=message):
        inflate({}, source, target, {})


# Sampling, training, attention, refusals.


def test_samples_are_the_mean_plus_noise_of_the_posterior(net, clip):
    posterior = net.posterior(clip[0])[0]
    noise = jax.random.normal(jax.random.key(3), posterior.mean.shape)
    sample = posterior.sample(jax.random.key(3))
    np.testing.assert_array_equal(sample, posterior.draw(noise))
    want = posterior.mean + jnp.exp(posterior.logvar / 2) * noise
    np.testing.assert_allclose(sample, want, atol=1e-6)
    certain = Posterior(posterior.mean)
    np.testing.assert_array_equal(certain.sample(jax.random.key(3)), posterior.mean)


def test_gradients_reach_every_parameter_and_survive_remat():
    net, video = Net(**SMALL), video_of(3)

    def gradients(model):
        def loss(params):
            restored, posterior = model.apply({"params": params}, video)
            return jnp.mean(jnp.abs(restored - video)) + jnp.mean(posterior.logvar**2)

        return jit(jax.grad(loss))(net.params)

    plain = gradients(net.model)
    for path, leaf in jax.tree_util.tree_leaves_with_path(plain):
        # (A bias of the keys shifts all scores of a query alike, but those of q and v matter.)
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, path
    again = gradients(net.model.clone(remat=True, up_form="nearest"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), again, plain)


@pytest.mark.parametrize("form", ["taps", "fold2d"])
def test_forms_of_the_paired_convolution(net, clip, form):
    other = Net(net.params, conv_impl=form)
    np.testing.assert_allclose(other.chunked("encode", clip[0], (5, 8)), clip[1], atol=2e-5)
    np.testing.assert_allclose(other.decode(clip[1][..., :4])[0], clip[2], atol=2e-5)


@pytest.mark.parametrize("block", [3, 4, 12])
def test_attention_in_blocks(block):
    q, k, v = (jax.random.normal(jax.random.key(i), (2, 10, 3)) for i in range(3))
    weights = jax.nn.softmax(q @ k.swapaxes(1, 2) / np.sqrt(3))
    np.testing.assert_allclose(frame_attention(q, k, v, block), weights @ v, atol=1e-6)

    def total(q, block):
        return jnp.sum(jnp.square(frame_attention(q, k, v, block)))

    np.testing.assert_allclose(jax.grad(total)(q, block), jax.grad(total)(q, 99), atol=1e-5)


def test_bfloat16_compute_keeps_float32_outputs(net, clip):
    low = build(CONFIG, "bfloat16")
    restored, posterior = jit(low.apply)({"params": net.params}, clip[0][:, :5])
    assert restored.dtype == posterior.mean.dtype == posterior.logvar.dtype == jnp.float32
    want = clip[1][:, :2, ..., :4]
    error = np.linalg.norm(posterior.mean - want) / np.linalg.norm(want)
    assert 0 < error < 0.1


@pytest.mark.parametrize(
    ("frames", "height", "message"),
    [
        (16, 8, "use 13 or 17 frames"),
        (2, 8, "use 1 or 5 frames"),
        (5, 10, "height 10 is not a multiple of 4 .*: use 8 or 12"),
    ],
)
def test_sizes_that_would_lose_frames_or_pixels_are_refused(net, frames, height, message):
    with pytest.raises(VidlatentError, match=message):
        net.encode(jnp.zeros((1, frames, height, 8, 3)))


def test_wrong_chunks_and_conditions_are_refused(net, clip):
    _, cache = net.encode(clip[0])
    with pytest.raises(VidlatentError, match="needs a multiple of 4"):
        net.encode(clip[0][:, :5], cache)
    with pytest.raises(VidlatentError, match="takes no condition"):
        net.model.apply({"params": net.params}, clip[1][..., :4], condition=1, method="decode")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variant": "ktk"}, "did you mean 'ktc'"),
        ({"widht": 3}, "did you mean 'width'"),
        ({"latent_channels": 3}, "latent_channels 3 is odd"),
        ({"temporal_down": (2,)}, "below the last"),
        ({"variant": "image"}, "must be empty"),
        ({"up_form": "cubic"}, "use 'nearest' or 'subpixel'"),
    ],
)
def test_mistakes_are_named(change, message):
    with pytest.raises(VidlatentError, match=message):
        model = build({**CONFIG, **change})
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1, SIZE, SIZE, 3)))
