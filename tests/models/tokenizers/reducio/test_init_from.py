"""Starting from an image VAE: what has a counterpart takes it, a still clip is coded alike."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.nets import fast_jit
from tests.helpers.reducio_nets import LEVELS, image_vae, net
from vidlatent.errors import VidlatentError
from vidlatent.models.tokenizers.reducio.coder import FeatureEncoder
from vidlatent.models.tokenizers.reducio.names import SD_VAE_TABLE
from vidlatent.weights.files import choose_table
from vidlatent.weights.importer import export_names, export_params, import_params
from vidlatent.weights.tables import TABLES, initialize_from


@pytest.mark.parametrize(("kind", "tap"), [("reducio_image", 1), ("reducio_image_causal", 2)])
def test_blocks_take_their_counterparts(kind, tap):
    _, fresh = net(**LEVELS)
    image = image_vae(fresh)
    params = initialize_from(kind, image, fresh)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.shape, b.shape), params, fresh)
    jax.tree.map(np.testing.assert_array_equal, params["encoder"]["frame"], image["encoder"])
    for name, half in (("up_2_block_0", "up_2_block_1_0"), ("up_0_block_1", "up_0_block_2_0")):
        kernel = np.asarray(params["decoder"][half]["conv1"]["kernel"])
        np.testing.assert_array_equal(kernel[tap], image["decoder"][name]["conv1"]["kernel"][0])
        assert not np.delete(kernel, tap, axis=0).any()
    fuse = ("decoder", "up_1_fuse", "to_q", "kernel")
    for path in (fuse, ("encoder", "quant", "kernel")):
        a, b = params, fresh
        for key in path:
            a, b = a[key], b[key]
        np.testing.assert_array_equal(a, b)


def test_volume_is_the_image_encoder_on_one_frame():
    """Without temporal halving the middle taps are the image's network on every frame."""
    model, fresh = net(**LEVELS, time_factor=1)
    params = initialize_from("reducio_image", image_vae(fresh), fresh)
    image = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (1, 1, 8, 8, 3)), jnp.float32)

    def deepest(params, volume):
        coder = model.make_layer_config(4, (1, 1, 2), 1, ((False, True),) * 2, volume)
        return FeatureEncoder(coder).apply({"params": params}, image)[1][2]

    parts = [
        fast_jit(deepest, static_argnums=1)(params["encoder"][name], volume)
        for name, volume in (("volume", True), ("frame", False))
    ]
    # Sums of a few thousand products in float32, in another order.
    np.testing.assert_allclose(*parts, rtol=1e-5, atol=1e-4)


def test_another_number_of_levels_than_names_are_read_for_is_told():
    """Three levels under Diffusers' names: the deepest would be taken for the fourth."""
    _, fresh = net(**LEVELS)
    image = image_vae(fresh)
    image["decoder"] = {name.replace("up_0_", "up_3_"): x for name, x in image["decoder"].items()}
    with pytest.raises(VidlatentError, match="3 levels, and names of Diffusers are read for four"):
        initialize_from("reducio_image", image, fresh)


def test_2d_convolutions_take_the_image_kernels_as_they_are():
    _, fresh = net(**LEVELS, convolutions="2d", time_factor=1)
    image = image_vae(fresh)
    params = initialize_from("reducio_image", image, fresh)
    taken = params["encoder"]["volume"]["down_0_block_0"]["conv1"]["kernel"]
    np.testing.assert_array_equal(taken, image["encoder"]["down_0_block_0"]["conv1"]["kernel"])
    half = params["decoder"]["up_0_block_2_0"]["conv1"]["kernel"]
    np.testing.assert_array_equal(half, image["decoder"]["up_0_block_1"]["conv1"]["kernel"])


def test_what_does_not_fit():
    _, fresh = net(**LEVELS)
    image = image_vae(fresh)
    image["encoder"]["conv_in"]["kernel"] = np.zeros((1, 3, 3, 3, 8), np.float32)
    with pytest.raises(VidlatentError, match="no conv_in/kernel of shape"):
        initialize_from("reducio_image", image, fresh)
    with pytest.raises(VidlatentError, match="lack the encoder"):
        initialize_from("reducio_image", {"decoder": {}}, fresh)


def test_image_names():
    _, fresh = net(**LEVELS)
    image = image_vae(fresh)
    tensors = export_params(image, SD_VAE_TABLE)
    assert tensors["encoder.down.2.block.0.nin_shortcut.weight"].shape == (8, 4, 1, 1)
    assert tensors["decoder.up.1.block.1.conv1.weight"].shape == (4, 4, 3, 3)
    assert "encoder.mid.attn_1.q.weight" in tensors and "decoder.up.2.upsample.conv.bias" in tensors
    again = import_params(tensors, TABLES.get("sd_vae"), None)
    jax.tree.map(np.testing.assert_array_equal, again, image)


def test_names_of_diffusers():
    """All of a published VAE's names, and the two namings mean the same arrays."""
    file = Path(__file__).parents[3] / "reference" / "reducio" / "sd_vae_diffusers_keys.json"
    names = {name: tuple(shape) for name, shape in json.loads(file.read_text()).items()}
    tensors = {name: np.broadcast_to(np.float32(0), shape) for name, shape in names.items()}
    table = choose_table(tensors, "reducio")
    params = import_params(tensors, table, None)
    assert export_names(params, table) == names
    original = export_names(params, SD_VAE_TABLE)
    assert original["decoder.up.1.block.0.nin_shortcut.weight"] == (256, 512, 1, 1)
    assert original["encoder.mid.attn_1.proj_out.weight"] == (512, 512, 1, 1)
    assert len(original) == len(names) == 248
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new, old in older.items():
        tensors = {name.replace(new, old): x for name, x in tensors.items()}
    again = import_params(tensors, table, None)
    assert jax.tree.structure(again) == jax.tree.structure(params)
