"""Every generator gives the same output and gradients on eight devices as on one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.generator_nets import KINDS, build, inputs, parameters
from vidlatent.parallel.mesh import AXES, make_mesh
from vidlatent.parallel.paths import path_name
from vidlatent.parallel.sharding import batch_sharding, shardings

QUICK = {"xla_backend_optimization_level": 0}  # each program runs once
EIGHT = (1, 2, 2, 2)  # data, fsdp, context, tensor


def found(model, params, given, sizes):
    devices = jax.devices()[: int(np.prod(sizes))]
    mesh = make_mesh(dict(zip(AXES, sizes, strict=True)), devices)

    def loss(params, noisy, *rest):
        out = model.apply({"params": params}, noisy, *rest, method="denoise")
        return jnp.mean(jnp.sin(out)), out

    with jax.set_mesh(mesh):
        params = jax.device_put(params, shardings(params, mesh))
        given = jax.device_put(given, batch_sharding(mesh))
        run = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        return jax.device_get(jax.jit(run, compiler_options=QUICK)(params, *given))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [k for k in KINDS if not k.endswith("_label")] + ["wan_label"])
def test_eight_devices_equal_one(kind):
    # Four samples: two on each half of the mesh.
    model = build(kind, depth=4)
    given = inputs(model, batch=4)
    params = parameters(model, *given)
    one, eight = (jax.tree.leaves(found(model, params, given, s)) for s in ((1, 1, 1, 1), EIGHT))
    for a, b in zip(one, eight, strict=True):
        np.testing.assert_allclose(b, a, atol=1e-5 * max(1.0, np.abs(a).max()))


def test_parameters_are_split():
    """Kernels of stacked blocks are sharded over both axes that shard parameters."""
    mesh = make_mesh(dict(zip(AXES, EIGHT, strict=True)), jax.devices()[:8])
    for kind in ("wan", "latte", "reducio_dit", "promag_dit"):
        model = build(kind)
        placed = shardings(parameters(model, *inputs(model)), mesh)
        kernels = {
            path_name(path): sharding.spec
            for path, sharding in jax.tree_util.tree_flatten_with_path(placed["blocks"])[0]
            if path[-1].key == "kernel"
        }
        last = {path for path in kernels if path.split("/")[-2] in ("o", "fc2")}
        assert len(kernels) >= 4 and len(last) >= 2
        # The layer axis comes first, and some kernels split their outputs into heads.
        for path, spec in kernels.items():
            split = (("tensor", "fsdp"), None) if path in last else ("fsdp", "tensor")
            assert spec[:3] == (None, *split), (kind, path)
