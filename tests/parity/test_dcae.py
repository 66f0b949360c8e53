"""The image model against Diffusers' AutoencoderDC, and its full-size key table."""

import json

import jax
import numpy as np
import pytest

from tests.helpers.nets import decoder_values
from vidlatent import config as configs
from vidlatent.models.tokenizers import build
from vidlatent.models.tokenizers.fsvideo.names import DCAE_TABLE
from vidlatent.weights.importer import export_names, export_params, import_params
from vidlatent.weights.safetensors import load_safetensors, save_safetensors

TOLERANCE = 2e-4


def _inputs(case):
    return sorted(name for name in case.arrays if name.startswith("input_"))


def test_latents_and_outputs(dcae_case):
    for name in _inputs(dcae_case):
        tag = name.removeprefix("input_")
        latent = dcae_case.run("encode", dcae_case.array(name))[0].mean
        np.testing.assert_allclose(latent, dcae_case.array(f"latent_{tag}"), atol=TOLERANCE)
        output = dcae_case.run("decode", dcae_case.array(f"latent_{tag}"))[0]
        np.testing.assert_allclose(output, dcae_case.array(f"output_{tag}"), atol=TOLERANCE)


def test_every_block(dcae_case):
    names = [name for name in dcae_case.arrays if name.startswith(("enc_", "dec_"))]
    if not names:
        pytest.skip("the case has no intermediate values")
    tag = names[0].rpartition("_")[2]
    seen = {
        "enc": dcae_case.run("encoder_values", dcae_case.array(f"input_{tag}")),
        "dec": dcae_case.run(decoder_values, dcae_case.array(f"latent_{tag}")),
    }
    for name in names:
        side, _, rest = name.partition("_")
        value = seen[side][rest.removesuffix(f"_{tag}")]
        np.testing.assert_allclose(value, dcae_case.array(name), atol=TOLERANCE, err_msg=name)


def test_forms_and_subpixel_agree(dcae_case):
    latent = dcae_case.array(max(name for name in dcae_case.arrays if name.startswith("latent_")))
    want = dcae_case.run("decode", latent)[0]
    for fields in ({"up_form": "subpixel"}, {"conv_impl": "native"}, {"remat": True}):
        np.testing.assert_allclose(dcae_case.run("decode", latent, **fields)[0], want, atol=1e-4)


def test_import_export_import_is_bitwise(dcae_case, fsae_case, shapes_of, tmp_path):
    for case in (dcae_case, fsae_case):
        exported = export_params(case.params, case.table)
        assert set(exported) == set(case.tensors)
        path = tmp_path / "weights.safetensors"
        save_safetensors(exported, path)
        loaded = load_safetensors(path)
        for name, tensor in case.tensors.items():
            assert loaded[name].dtype == tensor.dtype
            assert loaded[name].tobytes() == tensor.tobytes(), name
        again = import_params(loaded, case.table, shapes_of(case.model))
        jax.tree.map(np.testing.assert_array_equal, again, case.params)


def test_full_size_key_table(reference, config_of, shapes_of):
    table = json.loads(reference("dcae", "f32c32_sana_1_0_keys.json").read_text())
    shapes = shapes_of(build(config_of("dcae", table)))
    config = configs.load("configs/dcae.py:paper").model.to_dict()
    assert jax.tree.map(np.shape, shapes) == jax.tree.map(np.shape, shapes_of(build(config)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == table["total_params"]
    names = export_names(shapes, DCAE_TABLE)
    assert len(names) == table["num_tensors"]
    assert names == {name: tuple(shape) for name, shape in table["tensors"].items()}
