"""Which shardings of a convolution XLA computes correctly.

``parallel.sharding`` uses only the layouts tested here. Others are known to be wrong (see there),
so a change of the rules has to add its layout to this list first.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vidlatent.parallel.mesh import AXES, make_mesh

ROWS = ("data", "fsdp")
HEIGHT = ("context", "tensor")


def value_and_grads(x, kernel, stride, where=None):
    def pinned(x):
        return x if where is None else jax.lax.with_sharding_constraint(x, where)

    def loss(x, kernel):
        y = jax.lax.conv_general_dilated(
            pinned(x),
            kernel,
            (stride, stride),
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return jnp.sin(pinned(y)).sum()

    return jax.value_and_grad(loss, (0, 1))(x, kernel)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel_spec", [P(), P(None, None, "fsdp", None)])
@pytest.mark.parametrize("sizes", [(2, 2, 2, 1), (1, 2, 2, 2), (1, 4, 1, 2)])
@pytest.mark.parametrize("spec", [P(ROWS, HEIGHT), P(ROWS)])
def test_layout_is_right(stride, kernel_spec, sizes, spec):
    mesh = make_mesh(dict(zip(AXES, sizes, strict=True)))
    x = jax.random.normal(jax.random.key(0), (4, 16, 12, 8))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 8, 16)) / 8
    placed = NamedSharding(mesh, spec), NamedSharding(mesh, kernel_spec)
    sharded = jax.jit(
        lambda x, kernel: value_and_grads(x, kernel, stride, placed[0]),
        in_shardings=placed,
        out_shardings=(None, placed),
    )
    expected = value_and_grads(x, kernel, stride)
    for found, wanted in zip(
        jax.tree.leaves(sharded(x, kernel)), jax.tree.leaves(expected), strict=True
    ):
        scale = max(1.0, float(np.abs(wanted).max()))
        np.testing.assert_allclose(found, wanted, atol=1e-5 * scale)
