"""Frozen networks: sharded, in the dtypes they declare, from files and from workdirs."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.micro import Micro
from tests.helpers.tiny_tokenizers import tokenizer
from vidlatent.checkpoint.manager import Checkpointer
from vidlatent.config import load
from vidlatent.errors import VidlatentError
from vidlatent.models.frozen import describe_frozen, hold_in, load_frozen
from vidlatent.models.load import abstract_params, smallest_video
from vidlatent.models.pretrained import network_shapes, random_params
from vidlatent.models.pretrained.load import load_network_params, read_network
from vidlatent.parallel.mesh import AXES, make_mesh
from vidlatent.parallel.multihost import place_as, to_global
from vidlatent.parallel.paths import path_name
from vidlatent.parallel.sharding import batch_sharding, shardings, with_shardings
from vidlatent.train.program import describe_state, jit_train_step
from vidlatent.train.state import random_key
from vidlatent.train.tasks.tokenizer import TokenizerTask


def mesh_of(*sizes):
    devices = jax.devices()[: int(np.prod(sizes))]
    return make_mesh(dict(zip(AXES, sizes, strict=True)), devices)


def run(task, sizes):
    """Loss, gradient norm and the frozen networks of a step on a mesh of these sizes."""
    mesh = mesh_of(*sizes)
    rng = np.random.default_rng(0)
    batch = {
        "video": rng.integers(0, 256, (4, 2, 16, 16, 3), np.uint8),
        "mask": np.ones(4, np.float32),
    }
    with jax.set_mesh(mesh):
        frozen = load_frozen(task.frozen, mesh)
        where = jax.tree.map(lambda leaf: leaf.sharding, describe_state(task, 0, mesh))
        state = jax.jit(task.init, out_shardings=where)(random_key(0, "params"))
        arrays = to_global(batch, batch_sharding(mesh))
        step = jit_train_step(task, state, frozen, mesh, 10)
        _, report = step(state, arrays, frozen, np.float32(10))
    return float(report["loss"]), float(report["grad_norm"]), frozen


def test_networks_of_losses_are_split_and_the_step_is_that_of_one_device():
    config = load("tests/tiny.py")
    with config.unlocked():
        config.loss = {"l1": 1.0, "lpips_tiny": 1.0}
        config.data.buckets = ((2, 16, 16, 4),)
    task = TokenizerTask(config, Micro())
    (loss, norm, whole), (sharded_loss, sharded_norm, frozen) = (
        run(task, sizes) for sizes in ((1, 1, 1, 1), (1, 2, 2, 2))
    )
    np.testing.assert_allclose(sharded_loss, loss, rtol=1e-5)
    np.testing.assert_allclose(sharded_norm, norm, rtol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(frozen), jax.device_get(whole))
    split = [
        path_name(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(frozen)
        if leaf.addressable_shards[0].data.size < leaf.size
    ]
    assert any(name.startswith("lpips_tiny/slice2") for name in split), split
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(frozen))


@pytest.mark.parametrize("name", ["fsae_lite", "ivvae", "promag_joined", "reducio"])
def test_kernels_of_a_tokenizer_are_kept_in_the_compute_type(name):
    """Kernels that layers cast to bfloat16 are kept in it, and no result changes."""
    model, params = tokenizer(name)
    model = model.clone(dtype=jnp.bfloat16)
    video = jnp.asarray(
        np.random.default_rng(0).uniform(-1, 1, smallest_video(model.latent_spec)), jnp.float32
    )

    def encode(params):
        return model.apply({"params": params}, video, method="encode")[0].mean

    held = hold_in(model.dtype, abstract_params(model), encode)
    low = [
        path_name(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(held)
        if leaf.dtype == jnp.bfloat16
    ]
    kernels = [path for path in low if path.endswith("kernel")]
    assert len(kernels) > 5 and not [path for path in low if path.endswith(("scale", "gamma"))]
    # Not compiled: a compiler may leave out roundings to bfloat16.
    np.testing.assert_array_equal(encode(place_as(params, held)), encode(params))
    assert hold_in(jnp.float32, abstract_params(model), encode) == abstract_params(model)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """As from a run that trained the network: the EMA weights are loaded."""
    folder = tmp_path_factory.mktemp("network")
    params = random_params("lpips_tiny", 3)
    with contextlib.closing(Checkpointer(folder / "checkpoints", every=0)) as checkpoints:
        state = {"step": np.int32(0), "ema": jax.tree.map(jnp.asarray, params)}
        checkpoints.save(0, state, iterator={}, spec=None, config_hash="", force=True)
    return folder, params


def test_a_network_is_read_from_a_workdir_onto_its_devices(workdir):
    folder, params = workdir
    mesh = mesh_of(1, 2, 2, 2)
    shapes = network_shapes("lpips_tiny")
    wanted = with_shardings(shapes, shardings(shapes, mesh))
    found = load_network_params("lpips_tiny", folder, wanted)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), params)
    assert jax.tree.map(lambda leaf: leaf.sharding, found) == jax.tree.map(
        lambda leaf: leaf.sharding, wanted
    )
    again = read_network("lpips_tiny", [folder])
    jax.tree.map(np.testing.assert_array_equal, again, params)
    with pytest.raises(VidlatentError, match="config.networks.dinov2_tiny=.*another model"):
        read_network("dinov2_tiny", [folder])


def test_what_is_planned_is_what_is_loaded():
    config = load("tests/tiny.py")
    with config.unlocked():
        config.loss = {"l1": 1.0, "lpips_tiny": 1.0}
    task, mesh = TokenizerTask(config, Micro()), mesh_of(1, 2, 2, 2)

    def describe(tree):
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), tree)

    planned, loaded = describe_frozen(task.frozen, mesh), load_frozen(task.frozen, mesh)
    assert describe(planned) == describe(loaded)
