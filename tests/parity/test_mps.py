"""MPS against its published modules, every size and hyper-parameter read from the case."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlatent.models.pretrained import NETWORKS, network_shapes
from vidlatent.models.pretrained.clip.image import STD, center_seen, preprocess
from vidlatent.models.pretrained.clip.model import ClipVision
from vidlatent.models.pretrained.clip.text import ClipText
from vidlatent.models.pretrained.vit import ViTBlock
from vidlatent.models.rewards.mps.model import Mps
from vidlatent.models.rewards.mps.names import MPS_TABLE
from vidlatent.weights.importer import export_params, import_params
from vidlatent.weights.safetensors import load_safetensors

# Of the largest value: the case's README recommends these.
ARRAYS, GRADIENTS = 2e-5, 1e-4
E2E_ARRAYS, E2E_GRADIENTS = 3e-5, 2e-4


class Case:
    def __init__(self, reference):
        self.config = json.loads(reference("mps", "config.json").read_text())
        self.tensors = load_safetensors(reference("mps", "weights.safetensors"))
        self.io = dict(np.load(reference("mps", "io.npz")))
        self.e2e = dict(np.load(reference("mps", "e2e.npz")))
        self.module = module_of(self.config)
        side, length = self.module.vision.side, self.module.text.length
        given = jnp.zeros((1, side, side, 3)), *2 * [jnp.zeros((1, length), int)]
        shapes = jax.eval_shape(self.module.init, jax.random.key(0), *given)["params"]
        self.params = import_params(self.tensors, MPS_TABLE, shapes)

    def run(self, method, *args, **options):
        return self.module.apply({"params": self.params}, *args, method=method, **options)

    def read(self, threshold=None):
        threshold = self.config["threshold"] if threshold is None else threshold
        return self.run("read", self.io["text_ids"], self.io["condition_ids"], threshold)

    def rate(self, pixels, prompt):
        """From normalised pixels ``[B, H, W, 3]``."""

        def score(module, pixels, prompt):
            return module.rate(module.vision.encode(pixels, "projected"), prompt)

        return self.module.apply({"params": self.params}, pixels, prompt, method=score)


def module_of(config):
    vision, text, cross = (config[name] for name in ("vision_config", "text_config", "cross_model"))

    def shared(part):
        return {
            "width": part["hidden_size"],
            "depth": part["num_hidden_layers"],
            "heads": part["num_attention_heads"],
            "hidden": part["intermediate_size"],
            "quick": part["hidden_act"] == "quick_gelu",
            "eps": part["layer_norm_eps"],
            "projection": config["projection_dim"],
        }

    assert cross["dim"] == config["projection_dim"] and config["eos_rule"] == "argmax of ids"
    return Mps(
        ClipVision(**shared(vision), patch=vision["patch_size"], side=vision["image_size"]),
        ClipText(**shared(text), vocab=text["vocab_size"], length=text["max_position_embeddings"]),
        depth=cross["layer_num"],
        heads=cross["heads"],
        head_dim=cross["dim_head"],
        expansion=cross["ff_mult"],
    )


@pytest.fixture(scope="module")
def case(reference):
    return Case(reference)


def close(found, expected, tolerance=ARRAYS):
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def last(x):
    return np.moveaxis(x, 1, -1)


def test_texts_and_mask(case):
    io, prompt = case.io, case.read()
    close(prompt.tokens, io["text_tokens_proj"])
    close(prompt.embedding, io["text_eos_proj"])
    np.testing.assert_array_equal(prompt.kept, io["mask"][:, 0] == 0)
    # The ratio is not handed out: the mask changes exactly where the threshold passes it.
    ratio = io["sim_ratio"][:, 0]
    for threshold in np.quantile(ratio, [0.2, 0.5, 0.9]) + 1e-4:
        np.testing.assert_array_equal(case.read(threshold).kept, ratio > threshold)
    words = case.run(lambda module, ids: module.text(ids).projected[0], io["condition_ids"])
    close(words, io["condition_tokens_proj"])


def test_every_state_of_the_picture(case):
    io = case.io

    layers = {f"{kind}_{i}" for kind in ("cross", "own") for i in range(case.module.depth)}

    def kept(part, _):
        return isinstance(part, ViTBlock) or part.name in ("norm_pre", *layers)

    _, inner = case.module.apply(
        {"params": case.params},
        last(io["pixel_values"]),
        case.read(),
        method=lambda module, x, prompt: module.rate(module.vision.encode(x, "projected"), prompt),
        capture_intermediates=kept,
    )
    inner = inner["intermediates"]
    close(inner["vision"]["norm_pre"]["__call__"][0], io["vis_pre_layernorm"])
    for i in range(case.module.vision.depth):
        close(inner["vision"][f"blocks_{i}"]["__call__"][0], io[f"vis_layer_{i}"])
    for i in range(case.module.depth):
        close(inner[f"cross_{i}"]["__call__"][0], io[f"cross_{i}_cross"])
        close(inner[f"own_{i}"]["__call__"][0], io[f"cross_{i}_self"])
    close(inner[f"own_{i}"]["__call__"][0][:, 0], io["cls_feature"])
    tokens = case.run(
        lambda module, x: module.vision.encode(x, "projected"), last(io["pixel_values"])
    )
    close(tokens, io["image_tokens_proj"])


@pytest.mark.parametrize("threshold", ["0.3", "0.01"])
def test_scores(case, threshold):
    prompt = case.read(float(threshold))
    close(case.rate(last(case.io["pixel_values"]), prompt), case.io[f"score_thr{threshold}"])


def test_gradient_to_normalised_pixels(case):
    prompt = case.read()
    pixels = jnp.asarray(last(case.io["pixel_values"]))
    grad = jax.grad(lambda x: case.rate(x, prompt).sum())(pixels)
    expected = last(case.io["grad_pixel_values_of_sum_of_scores"])
    close(grad, expected, GRADIENTS)


def test_from_frames_to_scores_and_back(case):
    e2e = case.e2e
    np.testing.assert_array_equal(e2e["text_ids"], case.io["text_ids"])
    prompt, frames = case.read(), jnp.asarray(e2e["frames"] * 2 - 1)
    pixels = preprocess(frames, case.module.vision.side, "center")
    close(pixels, last(e2e["pixel_values"]), E2E_ARRAYS)
    close(case.run("score", frames, prompt), e2e["score"], E2E_ARRAYS)
    grad = jax.grad(lambda x: case.run("score", x, prompt).sum())(frames)
    close(grad, e2e["grad_frames"] / 2, E2E_GRADIENTS)  # frames count in [-1, 1] here
    seen = center_seen(*frames.shape[1:3], case.module.vision.side)
    assert not seen.all() and (np.asarray(grad)[:, ~seen] == 0).all()
    assert (e2e["grad_frames"][:, ~seen] == 0).all()


def test_pictures_as_pillow_makes_them(case):
    side = case.module.vision.side
    levels = 1 / 255 / np.array(STD)  # a level of 255, normalised
    numbers = [name for name in case.io if name.endswith(".image")]
    assert numbers
    for name in numbers:
        image = case.io[name].astype(np.float32)[None] / 127.5 - 1
        expected = np.moveaxis(case.io[name.replace("image", "pixel_values")], 0, -1)
        exact = np.asarray(preprocess(image, side, "center", "round"))[0]
        # float32 beside Pillow's integers: a tie may fall to the other side.
        wrong = np.abs(exact - expected) > 0.5 * levels
        assert wrong.mean() < 1e-3 and (np.abs(exact - expected) < 1.5 * levels).all()
        plain = np.asarray(preprocess(image, side, "center"))[0]
        assert np.abs(plain - expected).mean() < 6e-3


def test_rounding_with_a_gradient(case):
    side, frames = case.module.vision.side, jnp.asarray(case.e2e["frames"] * 2 - 1)

    def total(kind):
        weights = jnp.asarray(last(case.e2e["grad_pixel_values"]))
        return lambda x: (weights * preprocess(x, side, "center", kind)).sum()

    found = {
        kind: jax.value_and_grad(total(kind))(frames) for kind in ("none", "straight", "round")
    }
    np.testing.assert_allclose(found["straight"][0], found["round"][0], rtol=1e-5)
    np.testing.assert_array_equal(found["straight"][1], found["none"][1])
    assert not np.asarray(found["round"][1]).any() and np.asarray(found["none"][1]).any()


def test_scale_and_order_do_not_matter(case):
    """rewards.md G9: the size of either feature, and the order of the prompt's tokens."""
    prompt, x = case.read(), jnp.asarray(case.io["image_tokens_proj"])
    score = case.run("rate", x, prompt)
    larger = prompt._replace(embedding=3 * prompt.embedding)
    np.testing.assert_allclose(case.run("rate", x, larger), score, rtol=1e-6)
    order = np.random.default_rng(0).permutation(prompt.tokens.shape[1])
    moved = prompt._replace(tokens=prompt.tokens[:, order], kept=prompt.kept[:, order])
    np.testing.assert_allclose(case.run("rate", x, moved), score, rtol=2e-5)
    # What is masked is not read at all, and what is kept is.
    noise = jnp.where(prompt.kept[..., None], prompt.tokens, 100.0)
    np.testing.assert_array_equal(case.run("rate", x, prompt._replace(tokens=noise)), score)
    assert 0 < np.asarray(prompt.kept).sum() < prompt.kept.size
    everything = case.read(-1e9)
    assert np.asarray(everything.kept).all()


def test_names_there_and_back(case):
    exported = export_params(case.params, MPS_TABLE)
    buffers = case.tensors.keys() - exported.keys()
    assert all(name.endswith(("fn.norm.bias", "rotary_emb.inv_freq")) for name in buffers)
    assert exported.keys() <= case.tensors.keys()
    for name, tensor in exported.items():
        np.testing.assert_array_equal(tensor, case.tensors[name])


def test_published_numbers_of_parameters():
    shapes = network_shapes("mps")
    counts = {
        part: sum(leaf.size for leaf in jax.tree.leaves(tree)) for part, tree in shapes.items()
    }
    cross = sum(count for part, count in counts.items() if part.startswith(("cross_", "own_")))
    assert cross == 118_497_280 and counts["cross_0"] + counts["own_0"] == 29_624_320
    assert counts["vision"] == 630_766_080 + 1280 * 1024
    assert counts["text"] == 352_984_064 + 1024 * 1024
    assert sum(counts.values()) == 1_104_606_721
    assert NETWORKS.get("mps").module().vision.heads == 16


@pytest.mark.parametrize("name", ["vision_model", "text_model"])
def test_an_old_file_with_numbers_of_positions(case, name):
    old = case.tensors | {f"model.{name}.embeddings.position_ids": np.arange(3)[None]}
    jax.tree.map(
        np.testing.assert_array_equal,
        import_params(old, MPS_TABLE, case.params),
        case.params,
    )
