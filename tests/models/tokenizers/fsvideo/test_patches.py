"""Crops, tiles and windows decode as the whole does, and not one pixel further."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.nets import Net, fast_jit
from vidlatent.errors import VidlatentError
from vidlatent.models.tokenizers import build
from vidlatent.models.tokenizers.fsvideo import patches, reach
from vidlatent.models.tokenizers.fsvideo.tiling import ExactTiles, cover_line

# The published model's outer stages (three blocks each), with hardly any channels. Among so few a
# norm's root mean square comes near zero here and there, which would magnify rounding.
CONFIG = {
    "norm_eps": 1e-2,
    "encoder_widths": (4, 4, 4, 8),
    "decoder_widths": (4, 4, 4, 8),
    "encoder_depths": (2, 2, 2, 1),
    "decoder_depths": (3, 3, 3, 1),
    "block_types": ("res", "res", "res", "evit"),
    "multiscales": ((), (), (), (5,)),
    "cross_stages": (2, 3),
    "cross_head_dim": 4,
    "cross_window": 7,
    "noise_weight": 0.05,
}
CELLS = (22, 17)


@pytest.fixture(scope="module")
def net():
    return Net(**CONFIG)


@pytest.fixture(scope="module")
def clip(net):
    """A latent, its features of frame 0 and its decoding."""
    rng = np.random.default_rng(0)
    video = jnp.asarray(rng.uniform(-1, 1, (1, 5, *(8 * n for n in CELLS), 3)), jnp.float32)
    condition = net.condition(video)
    latent, _ = net.encode(video)
    return video, latent, condition, net.decode(latent, condition=condition)[0]


def test_reach_of_the_published_model():
    paper = {
        "name": "fsae",
        "latent_channels": 128,
        "encoder_widths": (128, 256, 512, 512, 1024, 1024, 2048),
        "decoder_widths": (128, 256, 512, 512, 1024, 1024, 2048),
        "encoder_depths": (2, 2, 2, 3, 3, 3, 3),
        "decoder_depths": (3,) * 7,
        "block_types": ("res",) * 3 + ("evit",) * 4,
        "multiscales": ((),) * 3 + ((5,),) * 4,
    }
    for time, left, right in (("causal", 97, 0), ("centred", 47, 50), ("group", 47, 0)):
        model = build({**paper, "decoder_time": time})
        assert reach.find_outer_stage(model) == 3
        assert reach.compute_decoder_reach(model, 3) == (50, left, right)
    assert [reach.compute_decoder_reach(model, 3, end).space for end in (2, 1, 0)] == [7, 21, 49]
    assert reach.compute_decoder_reach(build({**paper, "decoder_time": "centred"}), None, 3)[
        1:
    ] == (
        16,
        16,
    )
    assert reach.compute_encoder_reach(model, 2) == 36


@pytest.mark.parametrize("start", [(0, 0), (2, 0), (4, 1), (3, 0)])
def test_patch_equals_the_whole_where_it_claims_to(net, clip, start):
    _, latent, condition, want = clip
    size = (18, 16)

    def run(params, start):
        return patches.decode_patch(net.model, params, latent, start, size, condition=condition)

    run = net._compiled.setdefault("patch", fast_jit(run))
    video, top, left = run(net.params, start)
    assert video.shape[2:4] == (8 * 18 - 100, 8 * 16 - 100)
    # A crop that touches the frame's border is right up to it.
    for place, first, cells, whole in zip((top, left), start, size, CELLS, strict=True):
        assert place == 8 * first + (0 if first == 0 else 100 if first + cells == whole else 50)
    part = want[:, :, top : top + video.shape[2], left : left + video.shape[3]]
    np.testing.assert_allclose(video, part, atol=1e-5)


@pytest.mark.parametrize("tap", [0, 2])
def test_fifty_pixels_are_needed_and_enough(net, clip, tap):
    """With kernels that only shift, a change outside a crop travels as far as anything can."""

    def shift(leaf):
        if leaf.ndim != 5 or leaf.shape[1] != 3:
            return leaf
        return leaf.at[:, [i for i in range(3) if i != tap]].set(0)

    decoder = jax.tree.map(shift, net.params["decoder"])
    _, latent, condition, _ = clip
    model = net.model
    inner = net._compiled.setdefault(
        "inner", fast_jit(lambda p, z: model.apply(p, z, 3, condition, method="decode_inner")[0])
    )
    outer = net._compiled.setdefault(
        "outer", fast_jit(lambda p, x: model.apply(p, x, 3, condition, method="decode_outer")[0])
    )
    params = {"params": {**net.params, "decoder": decoder}}
    x = inner(params, latent)
    low, high = 8, 14
    changed = x.at[:, :, :low].add(9.0).at[:, :, high:].add(9.0)
    apart = np.abs(outer(params, x) - outer(params, changed)).max((0, 1, 3, 4))
    assert not apart[8 * low + 50 : 8 * high - 50].any()
    spoilt = apart[8 * low : 8 * low + 50] if tap == 0 else apart[8 * high - 50 : 8 * high]
    assert spoilt.all()
    assert 8 * high - 8 * low < 100 or apart[8 * low + 50] == 0


@pytest.mark.parametrize("core", [6])
def test_tiles_equal_the_whole(net, clip, core):
    video, latent, condition, want = clip
    coder = ExactTiles(net.model, 8 * core)
    got, _ = fast_jit(coder.decode)(net.params, latent, condition)
    np.testing.assert_allclose(got, want, atol=1e-5)
    posterior, _ = fast_jit(coder.encode)(net.params, video)
    np.testing.assert_allclose(posterior.mean, latent, atol=1e-5)
    features = fast_jit(coder.encode_condition)(net.params, video[:, 0])
    # Features are no pixels: they reach 6 here, so errors are held to the largest of them.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max()),
        features,
        condition,
    )


def test_prefix_of_frames(clip, net):
    _, latent, condition, want = clip

    def run(params, **fields):
        return patches.decode_patch(
            net.model.clone(**fields), params, latent, (0, 0), CELLS, frames=1, condition=condition
        )

    region = fast_jit(run)(net.params)
    assert (region.top, region.left) == (0, 0)
    np.testing.assert_allclose(region.video, want[:, :1], atol=1e-5)
    with pytest.raises(VidlatentError, match="take more"):
        jax.eval_shape(lambda params: run(params, decoder_time="centred"), net.params)


def test_windows_of_a_decoder_that_looks_ahead():
    net = Net(decoder_time="centred", cross_stages=(2,), cross_head_dim=4)
    latent = jnp.asarray(np.random.default_rng(1).normal(size=(1, 15, 2, 2, 4)), jnp.float32)
    condition = net.condition(jnp.zeros((1, 1, 8, 8, 3)))
    want, _ = net.decode(latent, condition=condition)
    frames = (latent[:, i] for i in range(latent.shape[1]))
    parts = list(net.model.make_frame_coder().decode_windows(net.params, frames, 4, condition))
    # The third window is computed to the end of the clip, so there is no fourth.
    assert [part.shape[1] for part in parts] == [13, 16, 28]
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), want, atol=1e-5)


def test_mistakes_are_named(net, clip):
    with pytest.raises(VidlatentError, match="use more than 12 cells"):
        patches.find_valid_window(1, 12, 20, 8, 50)
    with pytest.raises(VidlatentError, match="no stages to cut"):
        reach.find_outer_stage(net.model.clone(block_types=("evit",) * 4))
    assert cover_line(10, 4, 2) == (8, [(0, 0, 4), (2, 4, 8), (2, 8, 10)])
    assert cover_line(5, 8, 2) == (5, [(0, 0, 5)])
