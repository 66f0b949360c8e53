"""The video transformer against Wan2.1 and the layer memory's specified numbers."""

import jax
import numpy as np
import pytest

from tests.parity.wan_cases import WanCase
from vidlatent.layers.positions import rope_tables
from vidlatent.weights.importer import export_params, import_params
from vidlatent.weights.tables import TABLES

FORWARD = {"atol": 2e-5, "rtol": 1e-4}
BACKWARD = {"atol": 2e-4, "rtol": 1e-3}
QUICK = {"xla_backend_optimization_level": 0}  # each program runs once
MEMORY = "layer_memory_i2v_patch111"


@pytest.fixture(scope="module", params=["i2v_patch122", "t2v_patch122", "i2v_patch111", MEMORY])
def case(request, reference):
    arrays = dict(np.load(reference("wan", f"{request.param}.npz")))
    if "base_file" not in arrays:
        return WanCase(arrays)
    base = str(arrays["base_file"]).rpartition("/")[2]
    return WanCase(dict(np.load(reference("wan", base))), arrays)


def test_output_and_gradients(case):
    """The form for training: one compiled layer, recomputed in the backward pass."""
    run = jax.jit(
        jax.value_and_grad(case.loss, argnums=(0, 1), has_aux=True), compiler_options=QUICK
    )
    (_, out), (grads, to_latent) = run(case.params, case.inputs[0])
    np.testing.assert_allclose(np.moveaxis(out, -1, 1), case.expected("out.sample"), **FORWARD)
    np.testing.assert_allclose(
        np.moveaxis(to_latent, -1, 1), case.expected("grad.hidden_states"), **BACKWARD
    )
    named = export_params(jax.device_get(grads), TABLES.get("wan_diffusers"))
    source = case.arrays if case.memory is None else case.memory
    compared = 0
    for key, value in source.items():
        name = key.partition(".")[2]
        if key.startswith("grad.") and name in named:
            np.testing.assert_allclose(named[name], value, **BACKWARD, err_msg=name)
            compared += 1
        elif key.startswith("gradnorm."):
            norm = np.linalg.norm(named[name].astype(np.float64))
            np.testing.assert_allclose(norm, value, **BACKWARD, err_msg=name)
    assert compared >= 4


def test_values_on_the_way(case):
    model = case.model
    found = jax.jit(
        lambda p, *a: model.apply({"params": p}, *a, method="values"), compiler_options=QUICK
    )(case.params, *case.inputs)
    np.testing.assert_allclose(
        np.moveaxis(found["output"], -1, 1), case.expected("out.sample"), **FORWARD
    )
    if case.memory is not None:
        for layer, seen in enumerate(found["blocks"][1:], start=2):
            at = f"mid.block{layer}_"
            for ours, name in (("weights", "router_weights"), ("fused", "fused"), ("state", "out")):
                np.testing.assert_allclose(seen[ours], case.memory[at + name], **FORWARD)
        return
    mid = case.arrays
    patches = mid["mid.patch_embed_out"]
    patches = patches.reshape(*patches.shape[:2], -1).swapaxes(1, 2)
    np.testing.assert_allclose(found["tokens"], patches, **FORWARD)
    np.testing.assert_allclose(found["temb"], mid["mid.temb"], **FORWARD)
    time = found["time"].reshape(found["time"].shape[0], -1)
    np.testing.assert_allclose(time, mid["mid.timestep_proj"], **FORWARD)
    text = mid["mid.text_embed_out"]
    np.testing.assert_allclose(found["text"][:, : text.shape[1]], text, **FORWARD)
    if "image" in found:
        np.testing.assert_allclose(found["image"], mid["mid.image_embed_out"], **FORWARD)
    for layer, seen in enumerate(found["blocks"]):
        np.testing.assert_allclose(seen["state"], mid[f"mid.block{layer}_out"], **FORWARD)


def test_rotary_tables(case):
    latent = case.inputs[0].shape[1:4]
    grid = tuple(n // p for n, p in zip(latent, case.model.patch, strict=True))
    cos, sin = rope_tables(grid, case.model.width // case.model.heads)
    for ours, name in ((cos, "mid.rope_cos"), (sin, "mid.rope_sin")):
        theirs = case.arrays[name][0, :, 0, ::2]
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_both_namings_round_trip_bitwise(case):
    for name in ("wan_diffusers", "wan"):
        table = TABLES.get(name)
        tensors = export_params(case.params, table)
        if name == "wan_diffusers":
            assert set(tensors) == set(case.tensors)
            for key, value in case.tensors.items():
                assert tensors[key].tobytes() == np.ascontiguousarray(value).tobytes(), key
        again = import_params(tensors, table, case.shapes)
        jax.tree.map(np.testing.assert_array_equal, again, case.params)


def test_original_names(reference):
    """The first case's names, translated by hand for the last block and what is around blocks."""
    case = WanCase(dict(np.load(reference("wan", "i2v_patch122.npz"))))
    ours = export_params(case.params, TABLES.get("wan"))
    last = case.model.depth - 1
    pairs = {
        "head.modulation": "scale_shift_table",
        "head.head.weight": "proj_out.weight",
        "time_projection.1.bias": "condition_embedder.time_proj.bias",
        "text_embedding.2.weight": "condition_embedder.text_embedder.linear_2.weight",
        "img_emb.proj.0.weight": "condition_embedder.image_embedder.norm1.weight",
        "img_emb.proj.3.weight": "condition_embedder.image_embedder.ff.net.2.weight",
        "img_emb.proj.4.bias": "condition_embedder.image_embedder.norm2.bias",
        f"blocks.{last}.modulation": f"blocks.{last}.scale_shift_table",
        f"blocks.{last}.norm3.bias": f"blocks.{last}.norm2.bias",
        f"blocks.{last}.self_attn.o.weight": f"blocks.{last}.attn1.to_out.0.weight",
        f"blocks.{last}.cross_attn.k_img.weight": f"blocks.{last}.attn2.add_k_proj.weight",
        f"blocks.{last}.cross_attn.norm_k_img.weight": f"blocks.{last}.attn2.norm_added_k.weight",
        f"blocks.{last}.ffn.2.bias": f"blocks.{last}.ffn.net.2.bias",
    }
    assert len(ours) == len(case.tensors)
    for original, theirs in pairs.items():
        np.testing.assert_array_equal(ours[original], case.tensors[theirs], err_msg=original)
