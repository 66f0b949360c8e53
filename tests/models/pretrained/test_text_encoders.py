"""Text and image encoders of generators: sizes, buckets, preprocessing, published files."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from PIL import Image

from tests.helpers import pretrained_oracle as oracle
from vidlatent.errors import VidlatentError
from vidlatent.models.pretrained import (
    NETWORKS,
    network_apply,
    network_shapes,
    random_params,
)
from vidlatent.models.pretrained.clip.image import (
    MEAN,
    STD,
    blurred_matrix,
    pillow_matrix,
    preprocess,
)
from vidlatent.models.pretrained.load import convert_network, load_network, read_network
from vidlatent.models.pretrained.resize import resize_matrix
from vidlatent.models.pretrained.t5.model import distance_buckets
from vidlatent.weights.importer import export_params
from vidlatent.weights.safetensors import save_safetensors
from vidlatent.weights.tables import TABLES

# Parameters of the encoder half, the token table once.
SIZES = {
    "t5_v10_small": 35_330_816,
    "t5_v10_base": 109_628_544,
    "t5_v10_large": 334_939_648,
    "flan_t5_small": 35_332_800,
    "flan_t5_base": 109_628_544,
    "flan_t5_large": 341_231_104,
    "flan_t5_xl": 1_223_527_424,
    "t5_v11_xxl": 4_762_310_656,
    "umt5_xxl": 5_680_910_336,
    "clip_vith14": 632_076_800,
    "clip_vith14_wan": 632_076_800 - 1280 * 1024,
    "clip_vitl14": 303_966_208,
}


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes(name):
    assert sum(leaf.size for leaf in jax.tree.leaves(network_shapes(name))) == SIZES[name]


def test_distance_buckets():
    places = distance_buckets(300, 32, 128)
    assert places.min() == 0 and places.max() == 31
    before, after = places[-1, ::-1], places[0]  # by distance
    np.testing.assert_array_equal(after[1:], before[1:] + 16)
    # Single up to 7, then half powers of two: 8, 11.3, 16, 22.6, 32, 45.3, 64, 90.5.
    starts = [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91]
    np.testing.assert_array_equal(np.searchsorted(before, range(16)), starts)
    assert before[128:].min() == 15
    assert (places == distance_buckets(301, 32, 128)[:300, :300]).all()


def test_bucket_borders_are_those_of_float32():
    # Exact powers: in other roundings a border distance falls into the bucket before.
    for buckets, farthest in ((32, 128), (8, 20), (16, 32), (32, 256)):
        row = distance_buckets(400, buckets, farthest)[-1, ::-1]
        assert (np.diff(row) >= 0).all() and row[farthest:].min() == buckets // 2 - 1


@pytest.fixture(scope="module")
def texts():
    tokens = np.array([[5, 9, 60, 1, 0, 0], [7, 1, 0, 0, 0, 0]], np.int32)
    return tokens, np.int32(tokens > 0)


@pytest.mark.parametrize("name", ["t5_tiny", "umt5_tiny"])
def test_padding_is_not_read(name, texts):
    tokens, mask = texts
    params, apply = random_params(name), network_apply(name)
    run = oracle.quick(apply)
    states = run(params, tokens, mask)
    assert states.shape == (2, 6, 16) and states.dtype == jnp.float32
    other = run(params, np.where(mask, tokens, 33), mask)
    np.testing.assert_allclose(states[0, :4], other[0, :4], atol=1e-5)
    np.testing.assert_allclose(states[1, :2], other[1, :2], atol=1e-5)
    # A text of padding alone has no states that mean anything, but finite ones.
    assert np.isfinite(run(params, tokens, np.zeros_like(mask))).all()
    biases = [block for block in params if "relative_bias" in params[block]]
    assert len(biases) == (2 if name == "umt5_tiny" else 1)


def test_bfloat16_keeps_softmax_in_float32(texts):
    tokens, mask = texts
    params = random_params("t5_tiny")
    small = network_apply("t5_tiny", jnp.bfloat16)
    found = oracle.quick(small)(params, tokens, mask)
    assert found.dtype == jnp.bfloat16
    text = str(jax.make_jaxpr(small)(params, tokens, mask))
    assert all("f32" in line for line in text.splitlines() if " = exp " in line)
    exact = network_apply("t5_tiny")(params, tokens, mask)
    np.testing.assert_allclose(np.float32(found)[0, :4], exact[0, :4], atol=0.15)


def test_odd_mask_is_refused(texts):
    tokens, mask = texts
    with pytest.raises(VidlatentError, match=r"mask \(2, 5\) does not go with tokens \(2, 6\)"):
        network_apply("t5_tiny")(random_params("t5_tiny"), tokens, mask[:, :5])


def test_text_weights_stay_as_small_as_their_file(tmp_path):
    params = random_params("umt5_tiny", 3)
    half = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), params)
    path = tmp_path / "wan.safetensors"
    save_safetensors(export_params(half, TABLES.get("umt5_wan")), path)
    read = read_network("umt5_tiny", [path])
    jax.tree.map(np.testing.assert_array_equal, read, half)
    assert all(leaf.dtype == ml_dtypes.bfloat16 for leaf in jax.tree.leaves(read))
    target = tmp_path / "umt5_tiny.safetensors"
    assert convert_network("umt5_tiny", [path], target) == len(jax.tree.leaves(params))
    again = load_network("umt5_tiny", target).params
    jax.tree.map(np.testing.assert_array_equal, again, half)


# Pictures.


def test_whole_look_is_the_written_matrix():
    # Halving with a = -0.75: taps -3/32, 19/32, 19/32, -3/32, the border repeated.
    wanted = np.zeros((3, 6))
    wanted[1, 1:5] = np.array([-3, 19, 19, -3]) / 32
    wanted[0, :3] = np.array([16, 19, -3]) / 32
    wanted[2] = wanted[0, ::-1]
    np.testing.assert_allclose(resize_matrix(6, 3, "bicubic"), wanted, atol=1e-7)
    picture = np.random.default_rng(0).uniform(-1, 1, (2, 6, 6, 3)).astype(np.float32)
    expected = np.einsum("hy,wx,nyxc->nhwc", wanted, wanted, picture)
    expected = ((expected + 1) / 2 - np.array(MEAN)) / np.array(STD)
    np.testing.assert_allclose(preprocess(picture, 3, "whole"), expected, atol=1e-5)


def test_pillow_matrix_is_the_written_one():
    # The same halving with a = -0.5 and a kernel of twice the width: eight taps inside.
    near, far = (
        (lambda x: (1.5 * x - 2.5) * x * x + 1),
        (lambda x: -0.5 * (((x - 5) * x + 8) * x - 4)),
    )
    half = np.array([far(1.75), far(1.25), near(0.75), near(0.25)])
    taps = np.concatenate([half, half[::-1]])
    row = pillow_matrix(16, 8)[4]
    np.testing.assert_allclose(row[5:13], taps / taps.sum(), atol=1e-6)
    assert not row[:5].any() and not row[13:].any()


@pytest.mark.parametrize("sizes", [(30, 12), (12, 30), (14, 13), (9, 9)])
def test_pillow_matrix_is_pillows(sizes):
    size, target = sizes
    line = np.random.default_rng(1).uniform(-1, 1, (1, size)).astype(np.float32)
    resized = Image.fromarray(line, "F").resize((target, 1), Image.Resampling.BICUBIC)
    np.testing.assert_allclose(
        pillow_matrix(size, target) @ line[0], np.asarray(resized)[0], atol=2e-6
    )


def test_center_look_is_pillows_crop():
    pixels = np.random.default_rng(2).integers(0, 256, (20, 33, 3), np.uint8)
    wide = Image.fromarray(pixels).resize((8 * 33 // 20, 8), Image.Resampling.BICUBIC)
    first = (8 * 33 // 20 - 8) // 2
    expected = np.asarray(wide, np.float32)[:, first : first + 8] / 255
    found = preprocess(np.float32(pixels[None]) / 127.5 - 1, 8, "center")[0] * np.array(STD)
    # Pillow rounds to 8 bits after each axis.
    np.testing.assert_allclose(found + np.array(MEAN), expected, atol=1.6 / 255)


def test_blurred_matrix():
    # 9 -> 3: deviation 1, five taps; corners aligned, so the samples are pixels 0, 4 and 8.
    gauss = np.exp(-(np.arange(-2, 3) ** 2) / 2)
    gauss /= gauss.sum()
    wanted = np.zeros((3, 9))
    wanted[1, 2:7] = gauss
    wanted[0, :3] = [gauss[2], 2 * gauss[1], 2 * gauss[0]]  # mirrored without the border
    wanted[2] = wanted[0, ::-1]
    np.testing.assert_allclose(blurred_matrix(9, 3, True), wanted, atol=1e-6)
    np.testing.assert_allclose(blurred_matrix(5, 5, True), np.eye(5), atol=1e-6)
    np.testing.assert_allclose(blurred_matrix(40, 7, True).sum(axis=1), 1, atol=1e-5)
    with pytest.raises(VidlatentError, match="unknown resizing 'centre'.*'center'"):
        preprocess(np.zeros((1, 4, 4, 3)), 2, "centre")


def test_clip_outputs_and_files(tmp_path):
    apply, params = network_apply("clip_tiny"), random_params("clip_tiny")
    picture = np.random.default_rng(0).uniform(-1, 1, (2, 17, 21, 3)).astype(np.float32)
    names = ("penultimate", "last", "patches", "patches_normed", "pooled", "embedding")
    found = oracle.quick(lambda p, x: {n: apply(p, x, output=n) for n in names})(params, picture)
    shapes = [(2, 10, 16), (2, 10, 16), (2, 9, 16), (2, 9, 16), (2, 16), (2, 8)]
    assert [found[name].shape for name in names] == shapes
    np.testing.assert_array_equal(found["last"][:, 1:], found["patches"])
    # Wan's file: another half, axes of length 1, the projection.
    tensors = export_params(params, TABLES.get("clip_wan"))
    tensors["visual.cls_embedding"] = tensors["visual.cls_embedding"][None, None]
    tensors["visual.pos_embedding"] = tensors["visual.pos_embedding"][None]
    tensors |= {"log_scale": np.zeros(()), "textual.head.0.weight": np.zeros((2, 2))}
    np.savez(tmp_path / "wan.npz", **tensors)
    read = read_network("clip_tiny", [tmp_path / "wan.npz"])
    jax.tree.map(np.testing.assert_array_equal, read, params)
    plain = NETWORKS.get("clip_vith14_wan").prepare(tensors)
    assert "visual.head" not in plain and plain["visual.cls_embedding"].shape == (16,)


def test_clip_mistakes():
    definition = NETWORKS.get("clip_tiny")
    assert dataclasses.is_dataclass(definition)
    params = random_params("clip_tiny")
    module = definition.module(projection=0)
    with pytest.raises(VidlatentError, match="unknown CLIP output 'pool'"):
        module.apply({"params": params}, np.zeros((1, 12, 12, 3)), output="pool")
    with pytest.raises(VidlatentError, match="no projection.*'pooled'"):
        module.apply({"params": params}, np.zeros((1, 12, 12, 3)), output="embedding")
    with pytest.raises(VidlatentError, match="8x12 pixels: this tower sees 12"):
        module.apply({"params": params}, np.zeros((1, 8, 12, 3)), "pooled", method="encode")
