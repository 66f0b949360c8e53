"""Every registered model's parameters against the sharding rules (``parallel.sharding``)."""

import re

import jax
import jax.numpy as jnp
import pytest

from tests.helpers import tiny_tokenizers
from tests.helpers.generator_nets import KINDS
from tests.helpers.generator_nets import build as build_tiny_generator
from vidlatent.latents.space import abstract_generator
from vidlatent.models.discriminators import DISCRIMINATORS, build_discriminator
from vidlatent.models.generators import GENERATORS
from vidlatent.models.load import abstract_params
from vidlatent.models.pretrained import NETWORKS, network_shapes
from vidlatent.models.tokenizers import MODELS, build
from vidlatent.parallel.mesh import make_mesh
from vidlatent.parallel.paths import path_name
from vidlatent.parallel.sharding import find_rule, shardings
from vidlatent.train.tasks.tokenizer import TokenizerTask

_WAN = {"name": "wan_vae", "latent_channels": 4, "width": 4, "blocks": 1}
TOKENIZERS = {
    **tiny_tokenizers.MODELS,
    "wan21": {**_WAN, "multipliers": (1, 2, 4), "temporal_down": (0, 1)},
    "wan22": {
        **_WAN,
        "width": 16,
        "decoder_width": 16,
        "latent_channels": 16,
        "multipliers": (1, 1),
        "temporal_down": (0,),
        "pixel_patch": 2,
        "shortcuts": True,
    },
}

DISCRIMINATOR_FIELDS = {
    "patch3d": {"width": 4},
    "patch2d": {"width": 4, "norm": "spectral"},
    "multiscale3d": {"widths": (4, 6), "scales": 2},
    "stylegan3d": {"widths": (4, 6), "hidden": 8},
}
# Outside of encoder and decoder, kernels with axes before inputs and outputs that are not the
# window of a convolution: layers of a scan, and heads.
STACKED = r"((.*/)?(blocks|temporal_blocks|spatial_blocks)/|.*self_attn/[qk]/)"


def list_leaves(tree):
    return [(path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def check(tree):
    """Check what the rules must never do, whatever a parameter is called."""
    kernels = 0
    for name, leaf in list_leaves(tree):
        axes = find_rule(name, leaf.ndim)
        if not name.endswith("kernel"):
            assert axes == (), f"{name}: only kernels are split"
            continue
        kernels += 1
        assert axes and len(axes) <= leaf.ndim, f"{name}: a kernel that no rule places"
        patches = re.search(r"(patch|content)_embedding/kernel$", name)
        if leaf.ndim == 5 and not patches:
            assert axes == ("fsdp", None), f"{name}: a convolution is not split by its outputs"
        elif leaf.ndim > 2 and not patches and not re.match(r"(.*/)?(encoder|decoder)/", name):
            assert re.match(STACKED, name), f"{name} {leaf.shape}: a matrix, or a convolution?"
    assert kernels


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizers(name):
    params = abstract_params(build(TOKENIZERS[name]))
    check(params)
    # In tokenizers the tensor axis shards height, so it must not shard their parameters.
    for path, leaf in list_leaves(params):
        assert "tensor" not in str(find_rule(path, leaf.ndim)), path


def test_convolutions_are_placed_alike_wherever_they_stand():
    """A tokenizer whose convolutions are not under ``encoder`` and ``decoder``."""
    for name in ("stem/conv/kernel", "encoder/conv/kernel", "grow1/up/conv_0/kernel", "kernel"):
        assert find_rule(name, 5) == ("fsdp", None)


@pytest.mark.parametrize("kind", KINDS)
def test_generators(kind):
    params = abstract_generator(build_tiny_generator(kind))
    check(params)
    split = [name for name, leaf in list_leaves(params) if "tensor" in find_rule(name, leaf.ndim)]
    assert len(split) > 4  # attention and feed-forward layers


@pytest.mark.parametrize("name", DISCRIMINATORS.names())
def test_discriminators_are_kept_whole(name):
    discriminator = build_discriminator({"name": name, **DISCRIMINATOR_FIELDS[name]})
    video = jax.ShapeDtypeStruct((1, 4, 24, 24, 3), jnp.float32)

    def init(video):
        stats = discriminator.init_stats()
        return discriminator.init(jax.random.key(0), video, stats, True)["params"]

    params = jax.eval_shape(init, video)
    assert TokenizerTask.players["discriminator"].whole
    mesh = make_mesh({"data": 1, "fsdp": 2, "context": 2, "tensor": 2})
    state = {"discriminator": {"params": params, "opt": [{"mu": params}]}}
    placed = shardings(state, mesh, whole=("discriminator",))
    assert all(where.is_fully_replicated for where in jax.tree.leaves(placed))


TINY = [name for name in NETWORKS.names() if name.endswith("_tiny")]


@pytest.mark.parametrize("name", TINY)
def test_pretrained_networks(name):
    check(network_shapes(name))


def list_own(registry):
    """Names of the package's own entries; other tests add some that stay for their process."""
    entries = {name: registry.get(name) for name in registry.names()}
    makers = {n: e[0] if isinstance(e, tuple) else e for n, e in entries.items()}
    return {n for n, maker in makers.items() if maker.__module__.startswith("vidlatent.")}


def test_every_registered_model_is_here():
    assert {fields["name"] for fields in TOKENIZERS.values()} == list_own(MODELS)
    assert {fields["name"] for fields in KINDS.values()} == list_own(GENERATORS)
    assert set(DISCRIMINATOR_FIELDS) == list_own(DISCRIMINATORS)
    # A tiny network of each class; larger ones consist of the same modules.
    kinds = {name: type(NETWORKS.get(name).module(dtype=jnp.float32)) for name in NETWORKS.names()}
    assert {kinds[name] for name in TINY} == set(kinds.values())
