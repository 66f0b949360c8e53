"""Upsampler and refiner on eight devices: the gradients of one, with frozen networks in shares."""

import jax
import numpy as np
import pytest

from tests.helpers.generator_runs import QUICK
from tests.helpers.second_half import VIDEOS, make_parts, refiner_config, upsampler_config
from vidlatent.latents.channels import follow_latents
from vidlatent.models.frozen import describe_frozen, load_frozen
from vidlatent.parallel.mesh import AXES, make_mesh
from vidlatent.parallel.multihost import to_global
from vidlatent.parallel.sharding import batch_sharding, shardings
from vidlatent.train.tasks.base import make_task

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_device")]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    make_parts(folder)
    return folder


def mesh_of(*sizes):
    devices = jax.devices()[: int(np.prod(sizes))]
    return make_mesh(dict(zip(AXES, sizes, strict=True)), devices)


# Clips as pixels, so that the tokenizer is frozen beside the others.
def refiner_task(places):
    return make_task(follow_latents(refiner_config(places, **VIDEOS)))


def upsampler_task(places):
    return make_task(follow_latents(upsampler_config(places, **VIDEOS)))


def step_on(mesh, task, params, batch):
    """Loss and gradients of one training step, with the frozen networks loaded onto the mesh."""
    placed, rows = shardings(params, mesh), batch_sharding(mesh)

    def loss(params, batch, frozen):
        return task.compute_loss(params, batch, frozen, 0, 0)[0]

    with jax.set_mesh(mesh):
        frozen = load_frozen(task.frozen, mesh)
        step = jax.jit(
            jax.value_and_grad(loss),
            in_shardings=(placed, rows, None),
            out_shardings=(None, placed),
            compiler_options=QUICK,
        )
        found = step(jax.device_put(params, placed), to_global(batch, rows), frozen)
        return jax.tree.map(np.asarray, found)


@pytest.mark.parametrize("make", [upsampler_task, refiner_task])
def test_eight_devices_get_the_gradients_of_one(places, make):
    """Batch over fsdp 2, tokens and rows over context 2, kernels over tensor 2."""
    task, rng = make(places), np.random.default_rng(0)
    shapes = jax.eval_shape(task.init, jax.random.key(0))["params"]
    params = jax.tree.map(
        lambda leaf: (0.2 * rng.normal(size=leaf.shape)).astype(leaf.dtype), shapes
    )
    batch = {
        "video": rng.integers(0, 256, (4, 5, 16, 16, 3), dtype=np.uint8),
        "mask": np.ones(4, np.float32),
        "label": rng.integers(0, 2, 4).astype(np.int32),
    }
    one, many = (
        step_on(mesh, task, params, batch) for mesh in (mesh_of(1, 1, 1, 1), mesh_of(1, 2, 2, 2))
    )
    np.testing.assert_allclose(many[0], one[0], rtol=1e-5)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(one[1]))
    assert largest > 1e-3
    for path, leaf in jax.tree_util.tree_leaves_with_path(one[1]):
        name = jax.tree_util.keystr(path)
        other = many[1]
        for key in path:
            other = other[key.key]
        np.testing.assert_allclose(other, leaf, atol=1e-5 * largest, err_msg=name)


def test_frozen_networks_are_held_in_shares(places):
    """Base, upsampler and tokenizer lie on an fsdp mesh as the rules say, with the same values."""
    task, one, four = refiner_task(places), mesh_of(1, 1, 1, 1), mesh_of(1, 4, 1, 1)
    whole, shared = (load_frozen(task.frozen, mesh) for mesh in (one, four))
    assert {"base", "upsampler", "tokenizer"} <= set(shared)
    wanted = describe_frozen(task.frozen, four)
    for name, network in shared.items():
        kernels = held = 0
        for (path, leaf), plan, exact in zip(
            jax.tree_util.tree_leaves_with_path(network),
            jax.tree.leaves(wanted[name]),
            jax.tree.leaves(whole[name]),
            strict=True,
        ):
            assert leaf.sharding.is_equivalent_to(plan.sharding, leaf.ndim), path
            np.testing.assert_array_equal(leaf, exact)
            if "kernel" in jax.tree_util.keystr(path):
                kernels += leaf.size
                held += leaf.addressable_shards[0].data.size
        # Inputs that four do not divide (3 colours, 9 channels) are whole on every device.
        assert kernels / 4 <= held < kernels / 2, name
