"""VideoAlign as a reward: which text it reads, what it is shown, what it refuses."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlatent.config import get_defaults
from vidlatent.errors import VidlatentError
from vidlatent.models.frozen import load_frozen
from vidlatent.models.pretrained import random_params
from vidlatent.models.pretrained.load import convert_network
from vidlatent.models.rewards.videoalign.template import INSTRUCTION
from vidlatent.parallel.mesh import make_mesh
from vidlatent.rewards import make_rewards
from vidlatent.weights.importer import export_params
from vidlatent.weights.safetensors import load_safetensors, save_safetensors
from vidlatent.weights.tables import TABLES

NAME = "videoalign_tiny"
OPTIONS = {"network": NAME, "tokenizer": "words", "least_pixels": 784, "most_pixels": 1568}


def make(networks=(), dtype=jnp.float32, **options):
    config = get_defaults("rewards", "test")
    config.networks.update(dict(networks))
    config.rewards.videoalign.update({**OPTIONS, **options})
    return make_rewards(("videoalign",), config, dtype=dtype)


def video_of(seed, shape=(1, 5, 24, 32, 3)):
    return np.random.default_rng(seed).uniform(-0.9, 0.9, shape).astype(np.float32)


def run(chosen, params, video, prompts, **given):
    prompt = chosen.encode({}, chosen.tokenize(prompts))
    frozen = {"reward_videoalign": params}
    return jax.jit(functools.partial(chosen.score, **given))(frozen, video, prompt)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of the tiny network without a template."""
    path = tmp_path_factory.mktemp("weights") / "plain.safetensors"
    tensors = export_params(random_params(NAME, 5), TABLES.get("videoalign"))
    save_safetensors(tensors, path)
    return path


def test_the_stored_template_is_read(tmp_path, weights, caplog):
    text = tmp_path / "text.txt"
    text.write_text(INSTRUCTION.replace("sharp", "tack-sharp"))
    stored = tmp_path / "stored.safetensors"
    convert_network(NAME, [weights], stored, template=str(text), tokenizer="words")
    params, video = random_params(NAME, 5), video_of(0)
    scores = {}
    with caplog.at_level(logging.WARNING):
        for name, networks, options in (
            ("ours", {NAME: str(weights)}, {}),
            ("stored", {NAME: str(stored)}, {}),
            ("named", {NAME: str(weights)}, {"template": str(text)}),
        ):
            caplog.clear()
            chosen = make(networks, **options)
            # Nobody takes the scores of our own wording for the published ones.
            assert ("not the published ones" in caplog.text) == (name == "ours")
            found = run(chosen, params, video, ["red"], fps=8.0)
            scores[name] = np.stack(list(found.values()))
    np.testing.assert_array_equal(scores["stored"], scores["named"])
    assert (scores["stored"] != scores["ours"]).any()


def test_the_first_frame_is_read_where_the_template_shows_it():
    plain, shown = make(), make(picture=True)
    assert not plain.reads_first and shown.reads_first
    params, video = random_params(NAME, 5), video_of(1)
    with pytest.raises(VidlatentError, match="none is given: it is for image-to-video"):
        run(shown, params, video, ["red"], fps=8.0)
    a, b = (
        run(shown, params, video, ["red"], fps=8.0, first=x) for x in (video[:, 0], video[:, 1])
    )
    assert all((a[name] != b[name]).all() for name in a)


def test_a_head_of_three_outputs_and_files_in_parts(tmp_path, weights):
    tensors = load_safetensors(weights)
    name = "rm_head.weight"
    tensors[name] = tensors[name] * np.float32([[1], [2], [3]])
    head, rest = tmp_path / "head.safetensors", tmp_path / "rest.safetensors"
    save_safetensors({name: tensors.pop(name)}, head)
    save_safetensors(tensors, rest)
    video, found = video_of(3), {}
    for key, path in {"one": str(weights), "three": f"{rest},{head}"}.items():
        chosen = make({NAME: path}, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        frozen = load_frozen(chosen.frozen, make_mesh(get_defaults("rewards", "test").mesh))
        found[key] = run(chosen, frozen["reward_videoalign"], video, ["red"], fps=8.0)
    for factor, score in enumerate(("vq", "mq", "ta"), 1):
        one, three = (found[key][f"videoalign_{score}"] for key in ("one", "three"))
        np.testing.assert_allclose(three, factor * one, rtol=1e-5)


def test_an_empty_path_says_what_to_fetch():
    chosen = make({"videoalign": ""}, network="videoalign")
    with pytest.raises(VidlatentError, match="config.networks.videoalign is empty.*model.pth"):
        chosen.frozen["reward_videoalign"].load(None)


def test_nearly_all_parameters_are_kept_in_the_compute_dtype():
    (network,) = make(dtype=jnp.bfloat16).frozen.values()
    leaves = jax.tree.leaves(network.abstract)
    kept = sum(leaf.size for leaf in leaves if leaf.dtype == jnp.bfloat16)
    # Norms and the head stay float32.
    assert kept > 0.97 * sum(leaf.size for leaf in leaves)


@pytest.mark.parametrize(
    ("options", "given", "sentence"),
    [
        (
            {"tokenizer": "none.json"},
            {},
            "rewards.videoalign.tokenizer: no tokenizer at none",
        ),
        ({"template": "none.txt"}, {}, "none.txt: there is no such file"),
        ({"network": "videoalign_small"}, {}, "did you mean 'videoalign"),
        ({"positions": "both"}, {"fps": 8.0}, "use sequential or axes"),
        ({"longest": 40}, {"fps": 8.0}, "5 frames at 8 a second gives VideoAlign .* tokens"),
        ({}, {"fps": 0.0}, "a known rate"),
    ],
)
def test_what_it_refuses(options, given, sentence):
    with pytest.raises(VidlatentError, match=sentence):
        run(make(**options), random_params(NAME, 5), video_of(2), ["red"], **given)
