"""Loss and gradients of IV-VAE are the same on eight devices as on one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlatent.models.tokenizers import build
from vidlatent.parallel.mesh import AXES, make_mesh
from vidlatent.parallel.multihost import to_global
from vidlatent.parallel.sharding import batch_sharding, shardings

pytestmark = pytest.mark.slow

MODEL = build(
    {
        "name": "ivvae",
        "latent_channels": 4,
        "width": 4,
        "multipliers": (1, 2),
        "blocks": 1,
        "temporal_down": (0,),
        "pac_dilations": (0, 1, 3),
    }
)


def objective(params, video):
    restored, posterior = MODEL.apply({"params": params}, video)
    divergence = jnp.square(posterior.mean) + jnp.exp(posterior.logvar) - posterior.logvar
    return jnp.mean(jnp.abs(restored - video)) + 1e-2 * jnp.mean(divergence)


def run(params, video, sizes):
    """Loss and gradients on a mesh of these sizes."""
    devices = jax.devices()[: int(np.prod(sizes))]
    mesh = make_mesh(dict(zip(AXES, sizes, strict=True)), devices)
    placed = shardings(params, mesh)
    with jax.set_mesh(mesh):
        video = to_global({"video": video}, batch_sharding(mesh))["video"]
        # Compiling is what takes time.
        step = jax.jit(
            jax.value_and_grad(objective),
            out_shardings=(None, placed),
            compiler_options={"xla_backend_optimization_level": 0},
        )
        return jax.device_get(step(jax.device_put(params, placed), video))


@pytest.fixture(scope="module")
def setting():
    # Every sharded layout needs a batch and heights that divide by its axes.
    video = np.random.default_rng(0).uniform(-1, 1, (8, 3, 32, 24, 3)).astype(np.float32)
    rng = np.random.default_rng(1)

    def draw(leaf):
        size = max(1, np.prod(leaf.shape[:-1]))
        return (rng.standard_normal(leaf.shape) / np.sqrt(size)).astype(np.float32)

    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), video[:1])["params"]
    return jax.tree.map(draw, shapes), video


@pytest.fixture(scope="module")
def single(setting):
    return run(*setting, sizes=(1, 1, 1, 1))


# Batch over data and fsdp, height over context and tensor, kernels along their inputs over fsdp.
@pytest.mark.parametrize("sizes", [(2, 2, 2, 1), (1, 2, 2, 2)])
def test_eight_devices_equal_one(setting, single, sizes):
    loss, grads = run(*setting, sizes=sizes)
    np.testing.assert_allclose(loss, single[0], rtol=1e-5)
    # Sums over the whole batch cancel: rounding is relative to an array's largest entry.
    for a, b in zip(jax.tree.leaves(single[1]), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(b, a, atol=2e-5 * max(1.0, np.abs(a).max()))
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(grads)) > 1e-3
