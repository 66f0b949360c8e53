"""What the video model promises for arbitrary weights: causality, static clips, slicing."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.nets import CONFIG, Net, fast_jit, video_of
from vidlatent.errors import VidlatentError
from vidlatent.models.tokenizers import build
from vidlatent.models.tokenizers.fsvideo.init_from import (
    inflate,
    shortcut_stage,
    video_from_image,
    video_from_image_time_first,
)


@pytest.fixture(scope="module")
def net():
    return Net()


@pytest.fixture(scope="module")
def group(net):
    return Net(net.params, decoder_time="group")


@pytest.fixture(scope="module")
def centred(net):
    return Net(net.params, decoder_time="centred")


@pytest.fixture(scope="module")
def clip(net):
    """A clip, its latent."""
    video = video_of(9)
    return video, net.encode(video)[0]


def test_image_is_frame_0_of_the_video(net, clip):
    image, _ = net.encode(clip[0][:, :1])
    np.testing.assert_allclose(image[:, 0], clip[1][:, 0], atol=1e-5)


@pytest.mark.parametrize("mode", ["net", "group", "centred"])
def test_static_clip_stays_static(mode, request, net):
    mode = request.getfixturevalue(mode)
    latent, _ = net.encode(jnp.repeat(video_of(1), 9, axis=1))
    np.testing.assert_allclose(latent, jnp.repeat(latent[:, :1], 3, axis=1), atol=1e-5)
    video, _ = mode.decode(jnp.repeat(latent[:, :1], 3, axis=1))
    np.testing.assert_allclose(video, jnp.repeat(video[:, :1], 9, axis=1), atol=1e-5)


@pytest.mark.parametrize("j", [0, 1])
def test_latents_ignore_the_future_exactly(net, clip, j):
    video, latent = clip
    changed = video.at[:, 4 * j + 1 :].set(video_of(9, seed=1)[:, 4 * j + 1 :])
    other, _ = net.encode(changed)
    np.testing.assert_array_equal(other[:, : j + 1], latent[:, : j + 1])
    assert not np.allclose(other[:, j + 1 :], latent[:, j + 1 :], atol=1e-3)


def test_decoded_frames_ignore_the_future_exactly(net, group, centred, clip):
    latent = clip[1]
    changed = latent.at[:, 2].add(1.0)
    for mode in (net, group):
        np.testing.assert_array_equal(mode.decode(changed)[0][:, :5], mode.decode(latent)[0][:, :5])
    ahead = centred.decode(changed)[0] - centred.decode(latent)[0]
    assert np.abs(ahead[:, :5]).max() > 1e-3


@pytest.mark.parametrize("sizes", [(1, 4, 4), (5, 4), (1, 8)])
def test_encoding_in_chunks(net, clip, sizes):
    np.testing.assert_allclose(net.chunked("encode", clip[0], sizes), clip[1], atol=1e-5)


@pytest.mark.parametrize("mode", ["net", "group"])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 1)])
def test_decoding_in_chunks(mode, sizes, request, clip):
    mode = request.getfixturevalue(mode)
    want, _ = mode.decode(clip[1])
    np.testing.assert_allclose(mode.chunked("decode", clip[1], sizes), want, atol=1e-5)


def test_chunks_as_a_scan(net, clip):
    video, want = clip
    first, cache = net.encode(video[:, :1])

    def step(cache, chunk):
        posterior, cache = net.model.apply(
            {"params": net.params}, chunk, cache=cache, method="encode"
        )
        return cache, posterior.mean

    chunks = jnp.stack([video[:, 1:5], video[:, 5:9]])
    _, rest = fast_jit(lambda c, x: jax.lax.scan(step, c, x))(cache, chunks)
    latent = jnp.concatenate([first, *rest], axis=1)
    np.testing.assert_allclose(latent, want, atol=1e-5)


@pytest.mark.parametrize("mode", ["causal", "group", "centred"])
def test_subpixel_up_operation(net, clip, mode):
    want, _ = Net(net.params, decoder_time=mode).decode(clip[1])
    fast = Net(net.params, decoder_time=mode, up_form="subpixel")
    np.testing.assert_allclose(fast.decode(clip[1])[0], want, atol=1e-5)
    if mode != "centred":
        sliced = fast.chunked("decode", clip[1], (1, 2))
        np.testing.assert_allclose(sliced, want, atol=1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        {"time_padding": "zeros"},
        {"shortcut_order": "thw"},
        {"down_type": "shuffle", "up_type": "shuffle"},
        {"remat": True, "norm_affine": False},
    ],
)
def test_options_stream_too(fields):
    net = Net(**{**fields, "encoder_widths": (8, 8, 8), "decoder_widths": (8, 8, 8)})
    video = video_of(9)
    latent, _ = net.encode(video)
    np.testing.assert_allclose(net.chunked("encode", video, (5, 4)), latent, atol=1e-5)
    want, _ = net.decode(latent)
    assert want.shape == video.shape
    np.testing.assert_allclose(net.chunked("decode", latent, (1, 2)), want, atol=1e-5)


@pytest.mark.parametrize("mode", ["tail", "mean"])
def test_inflated_image_model(net, mode):
    flat = Net(name="dcae", temporal_kernel=1, temporal_down=())
    video = Net(inflate(flat.params, net.shapes, mode))
    image = video_of(1)
    want, _ = flat.encode(image)
    latent, _ = video.encode(jnp.repeat(image, 9, axis=1))
    np.testing.assert_allclose(latent, jnp.repeat(want, 3, axis=1), atol=1e-4)
    restored, _ = video.decode(latent)
    np.testing.assert_allclose(restored, jnp.repeat(flat.decode(want)[0], 9, axis=1), atol=1e-4)


SHUFFLING = {
    "down_type": "shuffle",
    "up_type": "shuffle",
    "encoder_widths": (8, 8, 8),
    "decoder_widths": (8, 8, 8),
}


@pytest.mark.parametrize("order", ["hwt", "thw"])
@pytest.mark.parametrize("depth", [0, 1])
def test_inflated_shuffling_up_operations(order, depth):
    """The decoder of static clips is the image model's; ``conv_out`` is one of them at depth 0."""
    shape = {"encoder_depths": (depth, 1, 1), "decoder_depths": (depth, 1, 1)}
    fields = {**SHUFFLING, **shape, "shortcut_order": order}
    flat = Net(name="dcae", temporal_kernel=1, temporal_down=(), **fields)
    start = {"hwt": video_from_image, "thw": video_from_image_time_first}[order]
    video = Net(**fields)
    video.params = start(flat.params, video.shapes)
    latent = jax.random.normal(jax.random.key(0), (1, 1, 4, 4, 4))
    want, _ = flat.decode(latent)
    got, _ = video.decode(jnp.repeat(latent, 3, axis=1))
    np.testing.assert_allclose(got, jnp.repeat(want, 9, axis=1), atol=1e-4)


def test_inflated_shuffling_down_operations():
    """Each channel is the mean of two; where those are equal, static clips are the image's."""
    fields = {**SHUFFLING, "shortcut_order": "thw"}
    flat = Net(name="dcae", temporal_kernel=1, temporal_down=(), **fields)
    still = Net(**fields)

    def paired(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        found = re.fullmatch(r"encoder/down_blocks_[01]_1/conv/\w+", name)
        return jnp.repeat(leaf[..., ::2], 2, axis=-1) if found else leaf

    kernel = inflate(flat.params, still.shapes, order="thw")["encoder"]["down_blocks_0_1"]["conv"]
    plain = flat.params["encoder"]["down_blocks_0_1"]["conv"]["kernel"]
    np.testing.assert_allclose(kernel["kernel"][-1], (plain[0, ..., ::2] + plain[0, ..., 1::2]) / 2)
    flat.params = jax.tree_util.tree_map_with_path(paired, flat.params)
    still.params = inflate(flat.params, still.shapes, order="thw")
    image = video_of(1)
    latent, _ = still.encode(jnp.repeat(image, 9, axis=1))
    np.testing.assert_allclose(latent[:, :1], flat.encode(image)[0], atol=1e-4)


def test_inflated_model_without_temporal_stride_is_the_image_model():
    flat = Net(name="dcae", temporal_kernel=1, temporal_down=())
    still = Net(temporal_down=())
    still.params = inflate(flat.params, still.shapes)
    video = video_of(3)
    want, _ = flat.encode(video)
    latent, _ = still.encode(video)
    np.testing.assert_allclose(latent, want, atol=1e-4)
    np.testing.assert_allclose(still.decode(latent)[0], flat.decode(want)[0], atol=1e-4)


def test_new_innermost_stage_starts_as_a_shortcut(net):
    short = Net(shortcut_stage(net.params, 2))
    video = video_of(5)
    seen = short.run("encoder_values", video)
    np.testing.assert_array_equal(seen["stage_2"], seen["block_1"])
    latent, _ = short.encode(video)
    np.testing.assert_allclose(
        latent, seen["stage_2"].reshape(*seen["stage_2"].shape[:-1], 4, 2).mean(-1), atol=1e-6
    )
    # The outer stages still work: the shortcut carries a signal through to the output.
    assert np.abs(short.decode(latent)[0]).max() > 1e-3


def _gradients(net, **fields):
    video, model = video_of(5), net.model.clone(**fields)

    def loss(params):
        restored, _ = model.apply({"params": params}, video)
        return jnp.mean(jnp.abs(restored - video))

    return fast_jit(jax.grad(loss))(net.params)


def test_gradients_reach_every_parameter_and_survive_remat(net):
    gradients = _gradients(net)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, path
    again = _gradients(net, remat=True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), again, gradients)


def test_bfloat16_compute_keeps_float32_parameters_and_outputs(net, clip):
    low = build(CONFIG, "bfloat16")
    restored, posterior = fast_jit(low.apply)({"params": net.params}, clip[0])
    assert restored.dtype == posterior.mean.dtype == jnp.float32
    error = np.linalg.norm(posterior.mean - clip[1]) / np.linalg.norm(clip[1])
    assert 0 < error < 0.05


def test_wrong_chunks_and_conditions_are_refused(net, centred, clip):
    _, cache = net.encode(clip[0][:, :1])
    with pytest.raises(VidlatentError, match="multiple of 4"):
        net.encode(clip[0][:, :5], cache)
    _, cache = centred.decode(clip[1])
    with pytest.raises(VidlatentError, match="cannot continue"):
        centred.decode(clip[1], cache)
    with pytest.raises(VidlatentError, match="takes no condition"):
        net.model.apply({"params": net.params}, clip[1], condition=1, method="decode")
