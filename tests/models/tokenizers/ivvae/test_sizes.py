"""Parameter counts and names of the released sizes and the baselines, without making any."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlatent.errors import VidlatentError
from vidlatent.models.tokenizers import build
from vidlatent.models.tokenizers.ivvae.names import IVVAE_TABLE, PLAIN_TABLE, RELEASED
from vidlatent.weights.importer import export_names, export_params, import_params

# Released file: parameters, SHA-256 of its sorted "name shape" lines.
DIGESTS = {
    "ivvae_z4_dim64": (
        107_170_842,
        "59e3cdebad4399d0622460fb06b9bc4785409624b3e26dfeb0e9e71e54c23e3e",
    ),
    "ivvae_z8_dim64": (
        107_379_150,
        "ab3df6c5de62d5ce98777216577a2e291a471068b43d0c0228a139abadd5e0e0",
    ),
    "ivvae_z16_dim64": (
        107_798_550,
        "5cf5e048e057d8ae65ca05f453f76cef6c990214f1fa4f8f6258f2e6441dee67",
    ),
    "ivvae_z16_dim96": (
        241_854_742,
        "eeaa0c668e2345f4ca68bf1605722aa95369a16fd30bd571688a0d3c2cd9c598",
    ),
}


def shapes_of(**fields):
    model = build({"name": "ivvae", **fields})
    video = jax.ShapeDtypeStruct((1, 1, 8, 8, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), video)["params"]


def count(tree):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def digest(names):
    lines = (f"{name} {','.join(map(str, shape))}" for name, shape in sorted(names.items()))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@pytest.mark.parametrize("name", RELEASED)
def test_released_files(name):
    shapes = shapes_of(**RELEASED[name])
    names = export_names(shapes, IVVAE_TABLE)
    assert (count(shapes), len(names)) == (DIGESTS[name][0], 362)
    assert digest(names) == DIGESTS[name][1]
    # The quant convolutions, which sit between the published encoder and decoder, are in ours.
    if name == "ivvae_z16_dim64":
        assert count(shapes["encoder"]) - count(shapes["encoder"]["quant"]) == 45_465_824
        assert count(shapes["decoder"]) - count(shapes["decoder"]["post_quant"]) == 62_331_398


@pytest.mark.parametrize(
    ("variant", "channels", "width", "parameters"),
    [
        ("causal", 16, 96, 126_892_531),
        ("causal", 8, 96, 126_642_699),
        ("gcconv", 16, 96, 126_892_531),
        ("ktc", 8, 64, 103_913_326),
        ("ktc_causal", 8, 64, 103_913_326),
        ("volumes", 8, 64, 135_701_070),
        ("volumes_plain", 8, 64, 132_235_246),
    ],
)
def test_ablations_and_baselines(variant, channels, width, parameters):
    shapes = shapes_of(variant=variant, latent_channels=channels, width=width)
    assert count(shapes) == parameters
    names = export_names(shapes, PLAIN_TABLE if variant in ("causal", "gcconv") else IVVAE_TABLE)
    assert len(names) == len(jax.tree.leaves(shapes))


@pytest.mark.parametrize(
    ("variant", "table"),
    [
        ("ivvae", IVVAE_TABLE),
        ("volumes", IVVAE_TABLE),
        ("ktc", IVVAE_TABLE),
        ("causal", PLAIN_TABLE),
    ],
)
def test_weights_go_out_and_come_back(variant, table):
    shapes = shapes_of(variant=variant, latent_channels=4, width=2, blocks=1)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)
    tensors = export_params(params, table)
    again = import_params(tensors, table, shapes)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    tensors.pop("decoder.head.0.gamma")
    with pytest.raises(VidlatentError, match="1 missing: decoder/head_0/gamma"):
        import_params(tensors, table, shapes)
