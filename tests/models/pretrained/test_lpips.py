"""LPIPS: published sizes and names, an independent NumPy computation, properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import pretrained_oracle as oracle
from vidlatent.errors import VidlatentError
from vidlatent.models.pretrained import network_apply, network_shapes, random_params
from vidlatent.models.pretrained.load import load_network
from vidlatent.weights.importer import export_names, export_params, import_params
from vidlatent.weights.tables import TABLES


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).uniform(-1, 1, (2, 2, 35, 32, 3)).astype(np.float32)


@pytest.mark.parametrize(
    "name, trunk, heads", [("lpips_vgg", 14_714_688, 1472), ("lpips_alex", 2_469_696, 1152)]
)
def test_published_sizes(name, trunk, heads):
    leaves = jax.tree.leaves(network_shapes(name))
    assert sum(leaf.size for leaf in leaves) == trunk + heads


def test_published_names():
    names = export_names(network_shapes("lpips_vgg"), TABLES.get("lpips_vgg_torchvision"))
    assert names["features.28.weight"] == (512, 512, 3, 3)
    assert names["lin4.model.1.weight"] == (1, 512, 1, 1)
    names = export_names(network_shapes("lpips_alex"), TABLES.get("lpips"))
    assert names["net.slice1.0.weight"] == (64, 3, 11, 11)
    assert names["net.slice5.10.bias"] == (256,)


@pytest.mark.parametrize("name, taps", [("vgg", oracle.vgg16_taps), ("alex", oracle.alexnet_taps)])
def test_against_numpy(name, taps, pictures):
    shapes, table = network_shapes(f"lpips_{name}"), TABLES.get(f"lpips_{name}_torchvision")
    rng = np.random.default_rng(1)

    def draw(tensor, shape):
        fan = int(np.prod(shape[1:]))
        values = rng.standard_normal(shape) * np.sqrt(2 / fan) if len(shape) > 1 else 0.1
        return np.abs(values) if tensor.startswith("lin") else values * np.ones(shape)

    names = export_names(shapes, table)
    tensors = {tensor: np.float32(draw(tensor, shape)) for tensor, shape in names.items()}
    # What a published file holds besides is passed over.
    params = import_params({**tensors, "classifier.0.weight": np.zeros(2)}, table, shapes)
    for tensor, back in export_params(params, table).items():
        np.testing.assert_array_equal(back, tensors[tensor])
    pair = pictures[:, :1, :17, :16] if name == "vgg" else pictures
    found = oracle.quick(network_apply(f"lpips_{name}"))(params, *pair)
    expected = oracle.lpips(*np.moveaxis(pair, -1, 2), tensors, taps)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=2e-5)


def test_distance(pictures):
    assert network_apply("lpips_tiny") is network_apply("lpips_tiny")
    apply, params = oracle.quick(network_apply("lpips_tiny")), random_params("lpips_tiny", 1)
    x, y = pictures
    apart = apply(params, x, y)
    assert apart.shape == (2,) and (apart > 0).all()
    np.testing.assert_array_equal(apply(params, x, x), 0)
    np.testing.assert_allclose(apply(params, y, x), apart, rtol=1e-6)


def test_gradient_is_finite_where_features_are_dark(pictures):
    apply, params = network_apply("lpips_tiny"), random_params("lpips_tiny", 1)
    params["slice2_3"]["bias"] = params["slice2_3"]["bias"] - 100  # nothing passes this ReLU
    slope = oracle.quick(jax.grad(lambda x: apply(params, x, pictures[1]).sum()))(pictures[0])
    assert np.isfinite(slope).all() and np.any(slope)


def test_images_too_small():
    with pytest.raises(VidlatentError, match="8x8 pixels are too small"):
        jax.eval_shape(
            network_apply("lpips_vgg"), network_shapes("lpips_vgg"), *[np.zeros((1, 8, 8, 3))] * 2
        )


def test_random_weights_say_so():
    network = load_network("lpips_tiny", "random:5")
    assert network.label == "lpips_tiny_random5"
    again = load_network("lpips_tiny", "random:5").params
    jax.tree.map(np.testing.assert_array_equal, network.params, again)
    other = load_network("lpips_tiny", "random").params
    assert (other["slice1_0"]["kernel"] != again["slice1_0"]["kernel"]).any()
