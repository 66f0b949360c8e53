"""Image encoders against the numbers of their published code."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlatent.models.pretrained.dinov2.model import Dinov2, positions
from vidlatent.weights.importer import export_params, import_params
from vidlatent.weights.tables import TABLES

TOLERANCE = {"atol": 2e-5, "rtol": 1e-4}
QUICK = {"xla_backend_optimization_level": 0}  # each program runs once


@pytest.fixture(params=["dinov2_mlp", "dinov2_swiglu"])
def dinov2_case(request, reference):
    """The arrays of a case, its module and its imported parameters."""
    arrays = dict(np.load(reference("encoders", f"{request.param}.npz")))
    config = json.loads(str(arrays["config_json"]))
    patch = config["patch_size"]
    module = Dinov2(
        config["hidden_size"],
        config["num_hidden_layers"],
        config["num_attention_heads"],
        gated=bool(config["use_swiglu_ffn"]) if "use_swiglu_ffn" in config else False,
        mlp_ratio=config["mlp_ratio"],
        patch=patch,
        table=config["image_size"] // patch,
        eps=config["layer_norm_eps"],
        area=None,
    )
    tensors = {name[3:]: value for name, value in arrays.items() if name.startswith("sd.")}
    pixels = jnp.zeros((1, patch, patch, 3))
    shapes = jax.eval_shape(module.init, jax.random.key(0), pixels)["params"]
    table = TABLES.get("dinov2_transformers")
    return module, import_params(tensors, table, shapes), tensors, arrays


def test_dinov2(dinov2_case):
    module, params, _, arrays = dinov2_case
    sizes = [name for name in arrays if name.startswith("in.pixel_values_")]
    assert sizes
    encode = jax.jit(
        lambda p, x: module.apply({"params": p}, x, method="encode"), compiler_options=QUICK
    )
    for name in sizes:
        number = name.rpartition("_")[2]
        pixels = jnp.asarray(np.moveaxis(arrays[name], 1, -1))
        grid = tuple(size // module.patch for size in pixels.shape[1:3])
        np.testing.assert_allclose(
            positions(params["pos_embed"], module.table, grid),
            arrays[f"mid.pos_embed_{number}"],
            **TOLERANCE,
        )
        found = encode(params, pixels)
        expected = arrays[f"out.last_hidden_state_{number}"]
        np.testing.assert_allclose(found, expected, **TOLERANCE)
    # As losses call it, with the last size: pixels in [-1, 1], patch tokens on their grid.
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    plain = np.float32((np.asarray(pixels) * std + mean) * 2 - 1)
    tokens = jax.jit(module.apply, compiler_options=QUICK)({"params": params}, plain)
    assert tokens.shape == (len(pixels), *grid, module.width)
    np.testing.assert_allclose(
        tokens.reshape(expected[:, 1:].shape), expected[:, 1:], atol=1e-4, rtol=1e-4
    )


def test_dinov2_names_of_all_releases(dinov2_case):
    _, params, tensors, _ = dinov2_case
    for name, tensor in export_params(params, TABLES.get("dinov2_transformers")).items():
        np.testing.assert_array_equal(tensor, tensors[name])
    for naming, fused in (
        ("dinov2", "blocks.0.attn.qkv.bias"),
        ("dinov2_transformers_released", ""),
    ):
        table = TABLES.get(naming)
        exported = export_params(params, table)
        assert not fused or exported[fused].shape == (3 * params["cls_token"].shape[-1],)
        back = import_params(exported, table, params)
        jax.tree.map(np.testing.assert_array_equal, back, params)
