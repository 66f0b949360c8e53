"""I3D, C3D and VideoMAE: published sizes and names, an independent NumPy computation."""

import jax
import numpy as np
import pytest

from tests.helpers import pretrained_oracle as oracle
from vidlatent.errors import VidlatentError
from vidlatent.layers.positions import interleaved_sincos
from vidlatent.models.pretrained import NETWORKS, network_apply, network_shapes
from vidlatent.models.pretrained.video.c3d import with_cropped_mean
from vidlatent.weights.importer import export_names, export_params, import_params
from vidlatent.weights.tables import TABLES


def drawn(network, table):
    """Random tensors under published names, and the parameters they become."""
    rng, shapes = np.random.default_rng(2), network_shapes(network)

    def draw(name, shape):
        values = rng.standard_normal(shape).astype(np.float32)
        if name == "mean":
            return values * 20 + 100
        if len(shape) > 1:
            return values * np.float32(np.sqrt(2 / np.prod(shape[1:])))
        if name.endswith("running_var"):
            return np.abs(values) + 0.5
        return values * np.float32(0.2) + ("bias" not in name and name[-2:] != "/b")

    rows = TABLES.get(table)
    tensors = {name: draw(name, shape) for name, shape in export_names(shapes, rows).items()}
    params = import_params(tensors, rows, shapes)
    for name, tensor in export_params(params, rows).items():
        np.testing.assert_array_equal(tensor, tensors[name])
    return tensors, params


def clips(*shape):
    return np.random.default_rng(3).uniform(-1, 1, shape).astype(np.float32)


def first(x):
    return np.moveaxis(x, -1, 1).astype(np.float64)


# Learned parameters of the published files; kept besides: statistics, and C3D's mean clip.
@pytest.mark.parametrize(
    "name, learned, kept",
    [
        ("i3d_kinetics400", 12_697_264, 2 * 7280),
        ("c3d_ucf101", 78_409_573, 3 * 16 * 112 * 112),
        ("videomae_g", 1_011_855_918, 0),
    ],
)
def test_published_sizes(name, learned, kept):
    assert sum(leaf.size for leaf in jax.tree.leaves(network_shapes(name))) == learned + kept


def test_published_names():
    names = export_names(network_shapes("i3d_kinetics400"), TABLES.get("i3d"))
    assert names["Mixed_4f.b1b.conv3d.weight"] == (320, 160, 3, 3, 3)
    assert names["Conv3d_1a_7x7.bn.running_var"] == (64,)
    assert names["logits.conv3d.weight"] == (400, 1024, 1, 1, 1)
    names = export_names(network_shapes("c3d_ucf101"), TABLES.get("c3d_chainer"))
    assert names["fc6/W"] == (4096, 8192) and names["conv5b/b"] == (512,)
    names = export_names(network_shapes("videomae_g"), TABLES.get("videomae"))
    assert names["blocks.39.attn.qkv.weight"] == (3 * 1408, 1408)
    assert names["blocks.0.mlp.fc1.weight"] == (6144, 1408)
    assert names["head.bias"] == (174,)
    assert len(names) == 2 + 40 * 13 + 4


def test_i3d():
    tensors, params = drawn("i3d_tiny", "i3d")
    video = clips(1, 11, 30, 32, 3)
    found = oracle.quick(network_apply("i3d_tiny"))(params, video)
    expected = oracle.i3d_logits(first(video), tensors, NETWORKS.get("i3d_tiny").module().pool)
    np.testing.assert_allclose(found["logits"], expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(found["features"], found["logits"])


def test_c3d():
    tensors, params = drawn("c3d_tiny", "c3d_chainer")
    video = clips(2, 16, 20, 20, 3)
    found = oracle.quick(network_apply("c3d_tiny"))(params, video)
    expected = oracle.c3d_logits(first(video), tensors)
    np.testing.assert_allclose(found["logits"], expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found["probabilities"].sum(axis=1), 1, rtol=1e-6)
    assert found["features"].shape == (2, 12)


def test_c3d_resizes_to_the_corners():
    _, params = drawn("c3d_tiny", "c3d")
    video = clips(1, 16, 20, 20, 3)
    # Every second pixel of 39 is a pixel of 20 when the corners coincide.
    large = np.zeros((1, 16, 39, 39, 3), np.float32)
    large[:, :, ::2, ::2] = video
    apply = oracle.quick(network_apply("c3d_tiny"))
    found, expected = (apply(params, x)["logits"] for x in (large, video))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("frames", [16, 11])
def test_videomae(frames):
    tensors, params = drawn("videomae_tiny", "videomae")
    video = clips(2, frames, 32, 32, 3)
    module = NETWORKS.get("videomae_tiny").module()
    found = oracle.quick(network_apply("videomae_tiny"))(params, video)
    pixels = (first(video)[:, :, : frames // 2 * 2] + 1) / 2
    expected = oracle.videomae_features(pixels, tensors, module.heads, module.grid)
    np.testing.assert_allclose(found["features"], expected, rtol=1e-4, atol=1e-4)


def test_sinusoids():
    table = interleaved_sincos(50, 6)
    np.testing.assert_allclose(table[7, :2], [np.sin(7), np.cos(7)], rtol=1e-6)
    assert table[7, 5] == np.float32(np.cos(7 / 10000 ** (4 / 6)))


def test_mean_clip_is_cut_as_released():
    mean = np.arange(3 * 16 * 128 * 171).reshape(3, 16, 128, 171)
    cut = with_cropped_mean({"mean": mean, "fc8/b": 1})
    np.testing.assert_array_equal(cut["mean"], mean[:, :, 8:120, 8:120])
    assert with_cropped_mean(cut)["mean"] is cut["mean"] and cut["fc8/b"] == 1


@pytest.mark.parametrize(
    "name, shape, message",
    [
        ("i3d_kinetics400", (1, 16, 256, 256, 3), "224x224 pixels, not 16 of 256x256"),
        ("i3d_kinetics400", (1, 8, 224, 224, 3), "9 or more frames"),
        ("videomae_g", (1, 16, 256, 256, 3), "224x224 pixels"),
        ("c3d_ucf101", (1, 17, 64, 64, 3), "16 frames at a time, not 17"),
    ],
)
def test_other_sizes_are_refused(name, shape, message):
    with pytest.raises(VidlatentError, match=message):
        jax.eval_shape(network_apply(name), network_shapes(name), np.zeros(shape, np.float32))
