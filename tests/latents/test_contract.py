"""The latent space: what it compares, how it normalises, what of a tokenizer it is made of."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.tiny_tokenizers import MODELS, tokenizer
from vidlatent import config as configs
from vidlatent.errors import VidlatentError
from vidlatent.latents.contract import LatentSpace, chunk_latents, require_same
from vidlatent.latents.digest import hash_encoder
from vidlatent.models.tokenizers import build
from vidlatent.parallel.mesh import AXES, make_mesh
from vidlatent.parallel.paths import path_name
from vidlatent.spec import FrameRule, LatentSpec

SPEC = LatentSpec("toy", 2, 4, 8, 8, FrameRule(1, 4), scale=0.5, shift=1.0)
SPACE = LatentSpace(SPEC, (0.5, -1.0), (2.0, 4.0), encoder="aa", cut="", weights="w")


def changed(**fields):
    return dataclasses.replace(SPACE, **fields)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (changed(), ""),
        # How a tokenizer was configured and which decoder goes with it does not count.
        (changed(tokenizer="another", weights="v"), ""),
        (changed(spec=SPEC.in_chunks((5, 2), "chunks")), ""),
        (changed(spec=dataclasses.replace(SPEC, scale=3.0, dtype="bfloat16")), ""),
        (changed(cut=None), ""),
        (changed(encoder=""), ""),
        (changed(encoder="", weights="v"), "weights w and v"),
        (changed(encoder="bb"), "encoders aa and bb"),
        (changed(spec=dataclasses.replace(SPEC, name="tea")), "another kind"),
        (changed(spec=dataclasses.replace(SPEC, h=16)), "another kind"),
        (changed(cut="tiles"), "frames cut not at all and tiles"),
        (changed(mean=(0.5, -1.1)), "other means and standard deviations$"),
        (LatentSpace.of_spec(SPEC, encoder="aa"), "deviations, of statistics and of spec"),
        (LatentSpace.of_spec(SPEC, "none", encoder="aa"), ", of statistics and of none"),
    ],
)
def test_two_spaces_are_compared_by_one_call(other, words):
    found = SPACE.find_difference(other)
    assert bool(found) == bool(words)
    if not words:
        require_same(SPACE, other, "the set", "the run", "do that")
        return
    message = r"^the set has latents of toy .2 channels, 4x8x8, encoder aa., the run those of .*"
    with pytest.raises(VidlatentError, match=message + r"\): do that\.$"):
        require_same(SPACE, other, "the set", "the run", "do that")
    with pytest.raises(VidlatentError, match=words.rstrip("$")):
        require_same(SPACE, other, "the set", "the run", "do that")
    about_moments = "deviations" in words or "statistics" in words
    assert bool(SPACE.find_difference(other, moments=False)) != about_moments


def test_latents_are_normalised_and_brought_back():
    latent = np.random.default_rng(0).normal(size=(2, 3, 4, 4, 2)).astype(np.float32)
    seen = SPACE.standardise(latent)
    np.testing.assert_allclose(seen, (latent - [0.5, -1.0]) / [2.0, 4.0], rtol=1e-6)
    np.testing.assert_allclose(SPACE.restore(seen), latent, rtol=1e-5, atol=1e-6)
    scaled = LatentSpace.of_spec(SPEC).standardise(latent)
    np.testing.assert_allclose(scaled, 0.5 * (latent - 1.0), rtol=1e-6)
    np.testing.assert_array_equal(LatentSpace.of_spec(SPEC, "none").standardise(latent), latent)
    constant = SPACE.with_moments([1.0, 2.0], [0.0, 4.0])
    assert constant.std == (1.0, 4.0)


def test_each_latent_frame_of_a_chunk_has_its_own_moments():
    spec = SPEC.in_chunks((5, 1), "chunks")
    assert chunk_latents(spec) == 2 and chunk_latents(SPEC) == 0
    mean, std = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1.0, 2.0], [4.0, 8.0]])
    space = dataclasses.replace(SPACE, spec=spec).with_moments(mean, std)
    latent = np.random.default_rng(0).normal(size=(2, 5, 3, 3, 2)).astype(np.float32)
    seen = np.asarray(space.standardise(latent))
    for t in range(5):
        want = (latent[:, t] - mean[t % 2]) / std[t % 2]
        np.testing.assert_allclose(seen[:, t], want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(space.restore(seen), latent, rtol=1e-5, atol=1e-5)
    # A single latent frame begins a chunk.
    np.testing.assert_allclose(space.standardise(latent[:, :1]), seen[:, :1])
    assert LatentSpace.from_json(json.loads(json.dumps(space.to_json()))) == space
    with pytest.raises(VidlatentError, match="2 latent frames do not fit.*chunk_positions=False"):
        dataclasses.replace(space, spec=SPEC)


def test_a_space_of_an_older_version_is_read():
    """Without encoder and kind: a set's moments, or the spec's scale and shift."""
    stored = {
        name: SPACE.to_json()[name] for name in ("spec", "mean", "std", "tokenizer", "weights")
    }
    found = LatentSpace.from_json(stored)
    assert found == changed(encoder="", cut=None) and found.normalisation == "statistics"
    plain = LatentSpace.of_spec(SPEC)
    stored |= {"mean": list(plain.mean), "std": list(plain.std)}
    assert LatentSpace.from_json(stored).normalisation == "spec"


def moved(params, part):
    """The parameters with one value of the first leaf under ``part`` changed."""
    left = [part]

    def change(path, leaf):
        if not left or not path_name(path).startswith(part):
            return leaf
        left.pop()
        leaf = leaf.copy()
        leaf.flat[0] += 0.25
        return leaf

    found = jax.tree_util.tree_map_with_path(change, params)
    assert not left, part
    return found


@pytest.mark.parametrize(
    ("name", "encodes"),
    [
        ("dcae", ("encoder/",)),
        ("fsae", ("encoder/",)),
        ("fsae_standard", ("encoder/",)),
        ("fsae_lite", ("encoder/",)),
        ("ivvae", ("encoder/",)),
        ("promag", ("encoder/", "bottleneck/encoder/")),
        ("promag_grown", ("encoder/", "bottleneck/encoder/", "grow1/encoder/")),
        ("promag_joined", ("encoder/", "image/encoder/", "image/bottleneck/")),
        ("magvit2", ("encoder/",)),
        ("reducio", ("encoder/volume/", "encoder/quant/", "encoder/frame/")),
    ],
)
def test_the_digest_is_that_of_what_encodes(name, encodes):
    model, params = tokenizer(name)
    digest = hash_encoder(model, params)
    for part in encodes:
        assert hash_encoder(model, moved(params, part)) != digest, part
    decodes = {"promag": ("bottleneck/decoder/",), "promag_grown": ("grow1/decoder/",)}
    for part in ("decoder/", *decodes.get(name, ())):
        assert hash_encoder(model, moved(params, part)) == digest, part
    # What is held in a narrower type, on other devices or in another container is the same.
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params)
    assert hash_encoder(model, half) == digest
    assert hash_encoder(model, jax.tree.map(lambda x: x.astype(np.float64), params)) == digest


def test_digests_do_not_depend_on_shards_but_on_settings():
    model, params = tokenizer("fsae")
    digest = hash_encoder(model, params)
    mesh = make_mesh({**dict.fromkeys(AXES, 1), "fsdp": 2}, jax.devices()[:2])
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    spread = jax.tree.map(
        lambda x: jax.device_put(x, rows) if x.shape[0] % 2 == 0 else jnp.asarray(x), params
    )
    assert hash_encoder(model, spread) == digest
    assert hash_encoder(build({**MODELS["fsae"], "time_padding": "zeros"}), params) != digest
    # Compute and recomputation change nothing.
    same = build({**MODELS["fsae"], "remat": True, "up_form": "subpixel"}, jnp.bfloat16)
    assert hash_encoder(same, params) == digest
    assert hash_encoder(build({**MODELS["fsae"], "time_padding": "replicate"}), params) == digest


@pytest.mark.parametrize(
    ("preset", "kind"),
    [
        ("fsvideo_dit:paper", "statistics"),
        ("promag_dit:paper,stage=2,k=16", "statistics"),
        ("latte:paper", "spec"),
        ("reducio_dit:paper,stage=2", "none"),
    ],
)
def test_presets_normalise_as_their_papers(preset, kind):
    assert configs.load(preset).latents.normalisation == kind
