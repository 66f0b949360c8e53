"""T5, UMT5 and CLIP's image encoder against the numbers of their published code."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlatent.models.pretrained.clip.model import ClipVision
from vidlatent.models.pretrained.t5.model import (
    T5Encoder,
    distance_buckets,
)
from vidlatent.weights.importer import count_known, export_params, import_params
from vidlatent.weights.tables import TABLES

TOLERANCE = {"atol": 2e-5, "rtol": 1e-4}
QUICK = {"xla_backend_optimization_level": 0}  # each program runs once


def case_of(reference, name):
    arrays = dict(np.load(reference("encoders", f"{name}.npz")))
    tensors = {name[3:]: value for name, value in arrays.items() if name.startswith("sd.")}
    return arrays, json.loads(str(arrays["config_json"])), tensors


@pytest.fixture(scope="module", params=["umt5", "t5_v11_gated", "t5_v10_relu"])
def t5_case(request, reference):
    arrays, config, tensors = case_of(reference, request.param)
    module = T5Encoder(
        config["vocab_size"],
        config["d_model"],
        config["num_layers"],
        config["num_heads"],
        config["d_kv"],
        config["d_ff"],
        gated=config["feed_forward_proj"].startswith("gated"),
        own_bias=config["cls"].startswith("UMT5"),
        buckets=config["relative_attention_num_buckets"],
        farthest=config["relative_attention_max_distance"],
        eps=config["layer_norm_epsilon"],
    )
    tokens = jnp.asarray(arrays["in.input_ids"], jnp.int32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), tokens)["params"]
    params = import_params(tensors, TABLES.get("t5_transformers"), shapes)
    return module, params, tensors, arrays


def test_t5(t5_case):
    module, params, _, arrays = t5_case
    tokens = jnp.asarray(arrays["in.input_ids"], jnp.int32)
    mask = jnp.asarray(arrays["in.attention_mask"], jnp.int32)
    both = jax.jit(
        lambda p: (
            module.apply({"params": p}, tokens, mask, all_states=True),
            module.apply({"params": p}, tokens[:1, : arrays["out.nomask_cut"].shape[1]]),
        ),
        compiler_options=QUICK,
    )
    states, cut = both(params)
    real = np.asarray(mask, bool)
    for found, expected in zip(states, arrays["mid.hidden_states"], strict=True):
        np.testing.assert_allclose(np.asarray(found)[real], expected[real], **TOLERANCE)
    expected = arrays["out.last_hidden_state"]
    np.testing.assert_allclose(np.asarray(states[-1])[real], expected[real], **TOLERANCE)
    # A masked text is the text cut to its length.
    np.testing.assert_allclose(cut, arrays["out.nomask_cut"], **TOLERANCE)


def test_t5_position_bias(t5_case):
    module, params, _, arrays = t5_case
    expected = arrays["mid.position_bias_layer0"]
    places = distance_buckets(expected.shape[-1], module.buckets, module.farthest)
    found = np.moveaxis(params["blocks_0"]["relative_bias"][places], -1, 0)
    np.testing.assert_array_equal(found[None], expected)


def test_t5_names(t5_case):
    module, params, tensors, _ = t5_case
    exported = export_params(params, TABLES.get("t5_transformers"))
    assert set(tensors) - set(exported) == {"encoder.embed_tokens.weight"}  # tied, written once
    for name, tensor in exported.items():
        np.testing.assert_array_equal(tensor, tensors[name])
    whole = tensors | {"decoder.block.0.layer.0.layer_norm.weight": np.ones(3), "lm_head.weight": 0}
    back = import_params(whole, TABLES.get("t5_transformers"), params)
    jax.tree.map(np.testing.assert_array_equal, back, params)
    if module.own_bias:
        named = export_params(params, TABLES.get("umt5_wan"))
        last = f"blocks.{module.depth - 1}.pos_embedding.embedding.weight"
        assert {"token_embedding.weight", last} < set(named)
        assert count_known(named, TABLES.get("t5_transformers")) == 0
        jax.tree.map(
            np.testing.assert_array_equal,
            import_params(named, TABLES.get("umt5_wan"), params),
            params,
        )


@pytest.fixture(scope="module", params=["clip_vision_gelu", "clip_vision_quickgelu"])
def clip_case(request, reference):
    arrays, config, tensors = case_of(reference, request.param)
    module = ClipVision(
        config["hidden_size"],
        config["num_hidden_layers"],
        config["num_attention_heads"],
        config["intermediate_size"],
        config["patch_size"],
        config["image_size"],
        config["projection_dim"],
        quick={"gelu": False, "quick_gelu": True}[config["hidden_act"]],
        resizing="whole",
    )
    pixels = jnp.asarray(np.moveaxis(arrays["in.pixel_values"], 1, -1))
    shapes = jax.eval_shape(module.init, jax.random.key(0), pixels)["params"]
    return module, import_params(tensors, TABLES.get("clip_transformers"), shapes), tensors, arrays


def test_clip(clip_case):
    module, params, _, arrays = clip_case
    pixels = jnp.asarray(np.moveaxis(arrays["in.pixel_values"], 1, -1))
    cases = {
        "penultimate": arrays["out.penultimate_hidden_state"],
        "last": arrays["out.last_hidden_state"],
        "patches": arrays["out.last_hidden_state"][:, 1:],
        "pooled": arrays["out.pooler_output"],
        "embedding": arrays["out.image_embeds"],
    }
    every = jax.jit(
        lambda p, x: [module.apply({"params": p}, x, name, method="encode") for name in cases],
        compiler_options=QUICK,
    )
    for found, (name, expected) in zip(every(params, pixels), cases.items(), strict=True):
        np.testing.assert_allclose(found, expected, **TOLERANCE, err_msg=name)


def test_clip_names_of_all_releases(clip_case):
    _, params, tensors, _ = clip_case
    exported = export_params(params, TABLES.get("clip_transformers"))
    assert set(exported) == set(tensors)
    for name, tensor in exported.items():
        np.testing.assert_array_equal(tensor, tensors[name])
    for naming, fused in (
        ("clip_openclip", "visual.transformer.resblocks.0.attn.in_proj_weight"),
        ("clip_wan", "visual.transformer.0.attn.to_qkv.weight"),
    ):
        table = TABLES.get(naming)
        named = export_params(params, table)
        width = params["cls_token"].shape[-1]
        assert named[fused].shape == (3 * width, width)
        back = import_params(named, table, params)
        jax.tree.map(np.testing.assert_array_equal, back, params)
