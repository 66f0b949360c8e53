"""Mesh sizes, and the shardings of parameters and activations."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from vidlatent.errors import VidlatentError
from vidlatent.parallel import sharding as rules
from vidlatent.parallel.mesh import AXES, make_mesh, mesh_for_batches, resolve_sizes
from vidlatent.parallel.multihost import local_rows, to_global


def sizes(data=1, fsdp=1, context=1, tensor=1):
    return dict(zip(AXES, (data, fsdp, context, tensor), strict=True))


def test_wildcard_fills_up():
    assert resolve_sizes(sizes(fsdp=-1), 8) == (1, 8, 1, 1)
    assert resolve_sizes(sizes(data=2, fsdp=-1, tensor=2), 8) == (2, 2, 1, 2)


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        (sizes(data=3), "there are 8"),
        (sizes(data=3, fsdp=-1), "there are 8"),
        (sizes(data=-1, fsdp=-1), "at most one"),
        (sizes(data=0), "positive"),
    ],
)
def test_impossible_meshes(wanted, says):
    with pytest.raises(VidlatentError, match=says):
        resolve_sizes(wanted, 8)


@pytest.mark.parametrize(
    ("wanted", "batches", "shape"),
    [
        (sizes(fsdp=-1), [16, 8], (1, 8, 1, 1)),
        (sizes(fsdp=-1), [4], (1, 4, 1, 1)),
        (sizes(fsdp=-1), [12, 6], (1, 2, 1, 1)),
        (sizes(data=2, fsdp=-1), [6], (2, 1, 1, 1)),
        (sizes(data=-1, context=2), [1], (1, 1, 2, 1)),
        (sizes(fsdp=-1), [], (1, 8, 1, 1)),
    ],
)
def test_small_batches_leave_devices_idle(wanted, batches, shape):
    mesh = mesh_for_batches(wanted, [(9, 64, 64, batch) for batch in batches])
    assert tuple(mesh.shape.values()) == shape


@pytest.mark.parametrize(
    "wanted", [sizes(data=8), sizes(data=4, fsdp=-1), sizes(data=8, context=-1)]
)
def test_batches_that_no_mesh_of_the_asked_kind_divides(wanted):
    with pytest.raises(VidlatentError, match="batches of 2, 6 clips"):
        mesh_for_batches(wanted, [(9, 64, 64, 6), (1, 64, 64, 2)])


def test_axis_types_are_auto():
    mesh = make_mesh(sizes(fsdp=-1))
    assert mesh.axis_types == (AxisType.Auto,) * 4


def test_param_rules_by_path():
    mesh = make_mesh(sizes(fsdp=4, tensor=2))
    shape = jax.ShapeDtypeStruct
    tree = {
        "params": {"conv": {"kernel": shape((3, 3, 3, 8, 6), "float32")}},
        "opt": ({"mu": {"conv": {"kernel": shape((3, 3, 3, 3, 6), "float32")}}},),
        "ema": {"decoder": {"conv": {"kernel": shape((3, 3, 3, 8, 6), "float32")}}},
        "dense": {"kernel": shape((8, 6), "float32")},
        "other": {"params": {"dense": {"kernel": shape((8, 6), "float32")}}},
        "blocks": {
            "o": {"kernel": shape((2, 16, 6), "float32")},
            "fc2": {"kernel": shape((2, 12, 6), "float32")},
        },
        "bias": shape((8,), "float32"),
        "step": shape((), "int32"),
    }
    placed = jax.tree.map(lambda s: s.spec, rules.shardings(tree, mesh, whole=("other",)))
    # Convolutions are never sharded by outputs, wherever they are.
    assert placed["params"]["conv"]["kernel"] == P(None, None, None, "fsdp", None)
    # three input channels cannot be sharded 4 ways
    assert placed["opt"][0]["mu"]["conv"]["kernel"] == P(None, None, None, None, None)
    assert placed["ema"]["decoder"]["conv"]["kernel"] == P(None, None, None, "fsdp", None)
    assert placed["dense"]["kernel"] == P("fsdp", "tensor")
    assert placed["other"]["params"]["dense"]["kernel"] == P(None, None)
    # twelve cannot be sharded 8 ways, but 4 ways
    assert placed["blocks"]["o"]["kernel"] == P(None, ("tensor", "fsdp"), None)
    assert placed["blocks"]["fc2"]["kernel"] == P(None, "fsdp", None)
    assert placed["bias"] == P(None) or placed["bias"] == P()
    assert placed["step"] == P()


def test_constrain_needs_no_mesh_and_uses_one():
    x = jnp.zeros((4, 5, 8, 8, 3))
    names = ("batch", "time", "height", "width", "channel")
    assert rules.constrain(x, names) is x
    mesh = make_mesh(sizes(data=2, fsdp=2, context=2))
    with jax.set_mesh(mesh):
        y = jax.jit(lambda x: rules.constrain(x * 1, names))(x)
    assert y.sharding.is_equivalent_to(
        NamedSharding(mesh, P(("data", "fsdp"), None, "context")), x.ndim
    )


def test_rows_go_out_and_come_back():
    mesh = make_mesh(sizes(data=2, fsdp=2, context=2))
    rows = jnp.arange(24).reshape(8, 3)
    placed = to_global({"x": rows}, rules.batch_sharding(mesh))["x"]
    assert (local_rows(placed) == rows).all()
