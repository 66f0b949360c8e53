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

from vidlatent.layers.conv import Conv
from vidlatent.parallel.mesh import AXES, make_mesh
from vidlatent.parallel.sharding import batch_sharding, constrain, shardings

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


@pytest.mark.parametrize(("side", "outputs"), [(4, 32), (4, 16), (8, 32)])
def test_small_frames_meet_a_gathered_kernel(side, outputs):
    """Frames of a few rows: with a kernel that stays divided by its inputs the output is wrong."""
    mesh = make_mesh(dict(zip(AXES, (1, 2, 2, 2), strict=True)))
    x = jax.random.normal(jax.random.key(0), (4, 3, side, side, 8))
    layer = Conv(outputs, (1, 3, 3))
    params = layer.init(jax.random.key(1), x)

    def loss(params, x):
        y, _ = layer.apply(params, constrain(x, ("batch", "time", "height", "width", "channel")))
        return jnp.sin(y).sum(), y

    step = jax.grad(loss, has_aux=True)  # gradients, and the output itself
    expected = step(params, x)
    with jax.set_mesh(mesh):
        placed = shardings(params, mesh)
        assert placed["params"]["kernel"].spec == P(None, None, None, "fsdp", None)
        given = jax.device_put((params, x), (placed, batch_sharding(mesh)))
        found = jax.jit(step)(*given)
    for ours, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        scale = max(1.0, float(np.abs(wanted).max()))
        np.testing.assert_allclose(ours, wanted, atol=1e-5 * scale)


@pytest.mark.parametrize(
    ("sizes", "batch", "side", "window"),
    [
        ((1, 2, 2, 1), 2, 2, (3, 3, 3)),
        ((1, 2, 2, 1), 1, 2, (1, 3, 3)),  # a batch that is not sharded
        ((1, 2, 2, 2), 4, 4, (1, 5, 5)),
        ((1, 1, 4, 1), 1, 4, (3, 3, 3)),
    ],
)
def test_devices_with_fewer_rows_than_the_window(sizes, batch, side, window):
    """Left alone, XLA splits the window's rows and sums over too many devices."""
    mesh = make_mesh(dict(zip(AXES, sizes, strict=True)), jax.devices()[: np.prod(sizes)])
    x = jax.random.normal(jax.random.key(0), (batch, 2, side, 3, 8))
    layer = Conv(8, window)
    params = layer.init(jax.random.key(1), x)

    def loss(params, x):
        # The output is not pinned here: whatever follows decides its place.
        y, _ = layer.apply(params, constrain(x, ("batch", "time", "height", "width", "channel")))
        return jnp.sin(y).sum(), y

    step = jax.grad(loss, has_aux=True)
    expected = step(params, x)
    with jax.set_mesh(mesh):
        given = jax.device_put(params, shardings(params, mesh)), x
        found = jax.jit(step)(*given)
    for ours, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        scale = max(1.0, float(np.abs(wanted).max()))
        np.testing.assert_allclose(ours, wanted, atol=1e-5 * scale)
