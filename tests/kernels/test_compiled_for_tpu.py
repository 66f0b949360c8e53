"""Every kernel's form for TPUs compiled ahead of time: small, and at sizes of published models.

No TPU is needed or asked for, the compiler alone, which is the package libtpu. What it refuses
(blocks that do not tile, scratch memory that is not there) interpret mode lets pass.
"""

import functools

import jax
import jax.numpy as jnp
import pytest

from vidlatent.kernels.attention import attention
from vidlatent.kernels.conv3d import conv3d
from vidlatent.kernels.dispatch import prefer
from vidlatent.kernels.layer_mix import layer_mix
from vidlatent.kernels.qk_norm_rope import qk_norm_rope
from vidlatent.kernels.upconv import subpixel_conv
from vidlatent.parallel.mesh import make_mesh

HALF, FULL = jnp.bfloat16, jnp.float32
PLANE = ((0, 0), (1, 1), (1, 1))


def shape(*sizes, dtype=HALF):
    return jax.ShapeDtypeStruct(sizes, dtype)


def forward_and_backward(function, *arguments):
    """Values alone, as sampling asks for them, and values with the gradients of all arguments."""

    def run(*arrays):
        value, back = jax.vjp(function, *arrays)
        return function(*arrays), back(value)

    return run, arguments


def attend(queries, keys, heads, dim, dtype=HALF):
    q, k = shape(1, queries, heads, dim, dtype=dtype), shape(1, keys, heads, dim, dtype=dtype)
    return forward_and_backward(attention, q, k, k)


def norm_rope(tokens, heads, dim, dtype=HALF):
    table = shape(tokens, dim // 2, dtype=FULL)

    def run(x, scale, cos, sin):
        return qk_norm_rope(x, scale, (cos, sin), heads)

    x, scale = shape(1, tokens, heads * dim, dtype=dtype), shape(heads * dim, dtype=FULL)
    return forward_and_backward(run, x, scale, table, table)


def mix(depth, tokens, width, dtype=HALF):
    """A mixture and its gradients; what the layer memory's own VJP is made of is in there."""

    def run(states, weights, end):
        value, back = jax.vjp(lambda *arrays: layer_mix(*arrays, 0, end), states, weights)
        return layer_mix(states, weights, 0, end), back(value)

    states = shape(depth, 1, tokens, width, dtype=dtype)
    return run, (states, shape(1, tokens, depth, dtype=FULL), shape(dtype=jnp.int32))


def fold(frames, height, width, channels):
    def run(x, kernel):
        return conv3d(x, kernel, padding=PLANE)

    x = shape(1, frames + 2, height, width, channels)
    return forward_and_backward(run, x, shape(3, 3, 3, channels, channels))


def double(frames, height, width, channels, outputs):
    def run(x, kernel):
        return subpixel_conv(lambda part, pad: conv3d(x, part, padding=((0, 0), *pad)), kernel)

    x = shape(1, frames + 2, height, width, channels)
    return forward_and_backward(run, x, shape(3, 3, 3, channels, outputs))


# Kernels of ours or of JAX, and convolutions in forms that the compiler is given whole.
SMALL = {
    "attention": lambda: attend(200, 77, 1, 64),
    "norm and rotation": lambda: norm_rope(40, 2, 128),
    "layer memory": lambda: mix(3, 40, 128),
    "folded convolution": lambda: fold(2, 8, 16, 128),
    "doubling convolution": lambda: double(2, 8, 16, 128, 64),
}
# FSVideo's transformer on 7,440 tokens, and a block of its decoder; DiT-XL's heads of 72 channels.
PUBLISHED = {
    "attention to itself": lambda: attend(7440, 7440, 40, 128),
    "attention to an image": lambda: attend(7440, 257, 40, 128),
    "attention, 72 channels": lambda: attend(1860, 1860, 16, 72, FULL),
    # Other widths; the widest at the largest blocks that they take.
    "attention, 80 channels": lambda: attend(7440, 7440, 2, 80, FULL),
    "attention, 192 channels": lambda: attend(7440, 1860, 2, 192),
    "attention, 256 channels": lambda: attend(8192, 8192, 2, 256),
    "attention, 256 channels in float32": lambda: attend(7680, 7680, 2, 256, FULL),
    "norm and rotation": lambda: norm_rope(7440, 40, 128),
    "layer memory": lambda: mix(40, 7440, 5120),
    "folded convolution": lambda: fold(16, 192, 320, 128),
    "doubling convolution": lambda: double(8, 96, 160, 256, 128),
}
KERNELS = [name for name in PUBLISHED if "convolution" not in name]


CHIPS = ("v5e:1x1", "v5p:1x1x1")


def compiled(program, devices, tokens=()):
    """The program's text before and after the compiler, second axes spread as ``tokens`` says."""
    function, arguments = program()
    sizes = {"data": 1, "fsdp": 1, "context": len(devices), "tensor": 1}
    mesh = make_mesh(sizes, devices)
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*tokens))
    with jax.set_mesh(mesh):
        placed = (jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where) for a in arguments)
        lowered = jax.jit(function).lower(*placed)
        return lowered.as_text(), lowered.compile().as_text()


def check(name, programs, devices):
    before, after = compiled(programs[name], devices)
    if "convolution" in name:  # time is no axis of any convolution
        assert "[b, 0, 1, f]" in before and "[b, 0, 1, 2, f]" not in before
    else:  # forms are chosen by the mesh: nobody named them
        assert after.count("tpu_custom_call") >= 2


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("topology", CHIPS)
def test_small(name, topology, topology_devices):
    check(name, SMALL, topology_devices(topology))


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("topology", CHIPS)
def test_published(name, topology, topology_devices):
    check(name, PUBLISHED, topology_devices(topology))


@pytest.mark.slow
def test_tokens_over_four_chips(topology_devices):
    """Tokens are exchanged for heads and back, forward and backward; nothing is gathered."""
    program = functools.partial(attend, 1920, 1920, 40, 128)
    _, after = compiled(program, topology_devices("v5p:2x2x1"), (None, "context"))
    assert "tpu_custom_call" in after and "all-to-all" in after and "all-gather" not in after


@pytest.mark.parametrize("name", KERNELS)
def test_published_lowered(name):
    """Without that package: blocks of a shape that no TPU takes show up already here."""
    function, arguments = PUBLISHED[name]()
    allowed = jax.export.DisabledSafetyCheck.custom_call("tpu_custom_call")
    with prefer(attention="splash", qk_norm_rope="pallas", layer_mix="pallas"):
        exported = jax.export.export(
            jax.jit(function), platforms=["tpu"], disabled_checks=[allowed]
        )(*arguments)
    assert "tpu_custom_call" in exported.mlir_module()
