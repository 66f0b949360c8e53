"""CLIP's text encoder against transformers, every size read from the case."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlatent.errors import VidlatentError
from vidlatent.models.pretrained.clip.names import CLIP_TEXT_TRANSFORMERS_TABLE
from vidlatent.models.pretrained.clip.text import ClipText
from vidlatent.models.pretrained.vit import ViTBlock
from vidlatent.weights.importer import export_params, import_params
from vidlatent.weights.safetensors import load_safetensors

TOLERANCE = 1e-5  # of the largest value


def text_of(config, **fields):
    """The module of a config of transformers."""
    end = config.get("eos_token_id", 2)
    return ClipText(
        vocab=config["vocab_size"],
        length=config["max_position_embeddings"],
        width=config["hidden_size"],
        depth=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        hidden=config["intermediate_size"],
        quick=config["hidden_act"] == "quick_gelu",
        end=-1 if end == 2 else end,
        eps=config["layer_norm_eps"],
        **fields,
    )


@pytest.fixture(params=["quick_gelu_legacy_eos", "gelu_true_eos"])
def case(request, reference):
    """Module, parameters, tensors and arrays."""
    config = json.loads(reference("clip_text", f"{request.param}.config.json").read_text())
    tensors = load_safetensors(reference("clip_text", f"{request.param}.weights.safetensors"))
    arrays = dict(np.load(reference("clip_text", f"{request.param}.io.npz")))
    module = text_of(config, projection=config["projection_dim"])
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 2), int))["params"]
    return module, import_params(tensors, CLIP_TEXT_TRANSFORMERS_TABLE, shapes), tensors, arrays


def close(found, expected, where=None):
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    error = np.abs(found - expected)
    error = error if where is None else error[where]
    assert error.max() <= TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize("masked", [False, True])
def test_every_state(case, masked):
    module, params, _, arrays = case
    tokens, mask = arrays["input_ids"], arrays["attention_mask"]
    kind, where = ("masked.", mask > 0) if masked else ("nomask.", None)
    states, inner = module.apply(
        {"params": params},
        tokens,
        mask if masked else None,
        capture_intermediates=lambda part, _: isinstance(part, ViTBlock),
    )
    embedded = params["token_embed"][tokens] + params["pos_embed"][: tokens.shape[1]]
    close(embedded, arrays[f"{kind}hidden_0"])
    for i in range(module.depth):
        (found,) = inner["intermediates"][f"blocks_{i}"]["__call__"]
        close(found, arrays[f"{kind}hidden_{i + 1}"], where)
    close(states.tokens, arrays[f"{kind}last_hidden_state"], where)
    close(states.pooled, arrays[f"{kind}pooler_output"])
    close(states.embedding, arrays[f"{kind}text_embeds"])
    # What is projected at the end mark is the embedding.
    ends = np.abs(np.asarray(states.projected) - np.asarray(states.embedding)[:, None]).max(-1)
    assert (ends.min(axis=1) == 0).all()


def test_a_token_sees_no_later_one(case):
    module, params, _, arrays = case
    tokens = arrays["input_ids"].copy()
    before = module.apply({"params": params}, tokens).tokens
    tokens[:, 4] = (tokens[:, 4] + 1) % module.vocab
    after = module.apply({"params": params}, tokens).tokens
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert (np.abs(np.asarray(before - after))[:, 4:].max(axis=(1, 2)) > 1e-3).all()


def test_where_a_text_ends(case):
    """By the largest number, or by the first end mark: told apart where a larger number is."""
    module, params, _, arrays = case
    tokens = arrays["input_ids"]
    by_largest = module.clone(end=-1).apply({"params": params}, tokens).pooled
    by_mark = module.clone(end=int(tokens.max())).apply({"params": params}, tokens).pooled
    np.testing.assert_array_equal(by_largest, by_mark)
    if module.end >= 0:
        # The case has a row with a larger number before the end mark.
        assert not np.array_equal(module.apply({"params": params}, tokens).pooled, by_largest)


def test_names_there_and_back(case):
    _, params, tensors, _ = case
    exported = export_params(params, CLIP_TEXT_TRANSFORMERS_TABLE)
    assert exported.keys() == tensors.keys()
    for name, tensor in exported.items():
        np.testing.assert_array_equal(tensor, tensors[name])


def test_longer_texts_are_refused(case):
    module, params, _, _ = case
    tokens = np.zeros((1, module.length + 1), np.int32)
    with pytest.raises(VidlatentError, match=f"texts of {module.length + 1} tokens: CLIP reads"):
        module.apply({"params": params}, tokens)
