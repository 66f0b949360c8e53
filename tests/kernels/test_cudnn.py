"""Attention on NVIDIA GPUs: what is chosen, lowered and compiled, without any GPU.

Lowering needs jax alone. Compiling needs the packages jax-cuda12-plugin, jax-cuda12-pjrt and
nvidia-cudnn-cu12; nothing of it is run.
"""

import functools
import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as fused

from tests.kernels.forms import check, devices, normal
from vidlatent.errors import VidlatentError
from vidlatent.kernels import attention as attention_module
from vidlatent.kernels.attention import attention, attention_form

FORWARD, BACKWARD = "__cudnn$fmhaSoftmax(", "__cudnn$fmhaSoftmaxBackward("


def capability(monkeypatch, number):
    """As if a GPU of this compute capability were here, and cuDNN with it."""
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91002)
    monkeypatch.setattr(attention_module, "_capability", lambda: number)
    monkeypatch.setattr(
        fused,
        "check_compute_capability",
        lambda text: number is not None and number >= tuple(map(int, text.split("."))),
    )


def run(q, k, v, lengths=None):
    """Values and gradients."""
    form = functools.partial(attention, lengths=lengths, platform="gpu")
    value, back = jax.vjp(form, q, k, v)
    return value, back(value)


def shapes(queries, keys, dim, dtype=jnp.bfloat16):
    q, k = (jax.ShapeDtypeStruct((2, n, 4, dim), dtype) for n in (queries, keys))
    return q, k, k


@pytest.mark.parametrize(
    "queries, keys, dim, lengths",
    [(512, 512, 64, False), (77, 257, 80, False), (130, 77, 128, True), (128, 33, 256, False)],
)
def test_lowered_with_padding_where_a_length_is_odd(monkeypatch, queries, keys, dim, lengths):
    capability(monkeypatch, (9, 0))
    given = shapes(queries, keys, dim)
    given += (jax.ShapeDtypeStruct((2,), jnp.int32),) if lengths else ()
    text = jax.jit(run).trace(*given).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count(f"custom_call @{FORWARD}") == text.count(f"custom_call @{BACKWARD}") == 1
    mask = "PADDING" if lengths or keys % 2 else "NO_MASK"
    assert f"\\22mask_type\\22: \\22{mask}\\22" in text
    padded = [f"tensor<2x{n + n % 2}x4x{dim}xbf16>" for n in (queries, keys)]
    assert all(shape in text for shape in padded)


def test_lowered_for_eight_devices(monkeypatch):
    """Tokens are exchanged for heads and back, and cuDNN runs on each device's share."""
    capability(monkeypatch, (9, 0))
    with jax.set_mesh(devices(data=2, context=2, tensor=2)):
        traced = jax.jit(run).trace(*shapes(256, 256, 128))
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count(f"custom_call @{FORWARD}") == text.count(f"custom_call @{BACKWARD}") == 1
    assert text.count("stablehlo.all_to_all") == 8 and "tensor<1x256x1x128xbf16>" in text


def test_half_precision_counts_the_keys_of_an_odd_length(monkeypatch):
    """The arguments for cuDNN, computed by jax.nn's plain form instead; gradients too."""
    plain = jax.nn.dot_product_attention

    def stand_in(*arrays, implementation, **rest):
        assert implementation == "cudnn" and all(a.shape[1] % 2 == 0 for a in arrays)
        return plain(*arrays, implementation="xla", **rest)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    inputs = tuple(normal(i, 2, n, 2, 16) for i, n in enumerate((35, 33, 33)))

    def both(form, *arrays):
        """Without and with lengths, one above the other."""
        run = functools.partial(attention, implementation=form)
        return jnp.concatenate([run(*arrays), run(*arrays, lengths=np.array([33, 5]))])

    check(functools.partial(both, "cudnn"), functools.partial(both, "xla"), inputs, "bfloat16")


@pytest.mark.parametrize(
    "number, widest", [((7, 5), 0), ((0, 0), 0), ((8, 0), 128), ((9, 0), 256), (None, 128)]
)
def test_what_the_gpu_cannot_do_takes_the_plain_form(monkeypatch, number, widest):
    capability(monkeypatch, number)
    for dim in (64, 128, 192, 256, 264):
        q = jnp.zeros((1, 128, 1, dim), jnp.bfloat16)
        form = attention_form(q, platform="gpu")
        assert form.name == ("cudnn" if dim <= widest else "xla")
        if dim > widest:
            assert "compute capability" in form.why or dim > 256
            with pytest.raises(VidlatentError, match="take 'xla' or 'auto'"):
                attention_form(q, implementation="cudnn", platform="gpu")
    assert attention_form(jnp.zeros((1, 128, 1, 68), jnp.bfloat16), platform="gpu").name == "xla"


# FSVideo's transformer to itself and to an image, DiT-XL's heads: queries, keys, width.
PUBLISHED = ((7440, 7440, 128), (7440, 257, 128), (1860, 1860, 72))


@pytest.mark.slow
def test_compiled_for_a_hopper_gpu():
    """Forward and backward of published sizes each come out as one call of cuDNN.

    On eight GPUs tokens are traded for heads and back, of which four arrays each way; nothing is
    gathered.
    """
    if not importlib.util.find_spec("jax_cuda12_plugin"):
        pytest.skip("compiling for a GPU needs jax-cuda12-plugin and jax-cuda12-pjrt")
    try:
        cudnn = Path(next(iter(importlib.import_module("nvidia.cudnn").__path__)))
    except ModuleNotFoundError:
        pytest.skip("compiling attention for a GPU needs nvidia-cudnn-cu12")
    libraries = filter(None, (str(cudnn / "lib"), os.environ.get("LD_LIBRARY_PATH")))
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": os.pathsep.join(libraries),
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "0",
        "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "XLA_FLAGS": "--xla_gpu_autotune_level=0",
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.test_cudnn"],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    *alone, traded, gathers = done.stdout.split()
    assert alone == ["1"] * 2 * (len(PUBLISHED) + 1) and (traded, gathers) == ("8", "0")


def main() -> None:
    """Compile for H200s and print how often cuDNN is called, forward and backward, by sizes.

    And in the end how many exchanges and gathers there are on eight of them.
    """
    from vidlatent.parallel.mesh import make_mesh
    from vidlatent.plan.hardware import parse_topology
    from vidlatent.plan.topology import get_devices

    for count, sizes in (*((1, sizes) for sizes in PUBLISHED), (8, PUBLISHED[0])):
        ways = 2 if count == 8 else 1
        axes = {"data": ways, "fsdp": 1, "context": ways, "tensor": ways}
        mesh = make_mesh(axes, get_devices(parse_topology(f"h200:{count}")))
        spec = jax.sharding.PartitionSpec("data", "context", "tensor")
        where = jax.sharding.NamedSharding(mesh, spec)
        given = (jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where) for a in shapes(*sizes))
        with jax.set_mesh(mesh):
            text = jax.jit(run).lower(*given).compile().as_text()
        for name in ("fmhaSoftmax", "fmhaSoftmaxBackward"):
            print(text.count(f'custom_call_target="__cudnn${name}"'))
    print(text.count(" all-to-all-start("), text.count("all-gather"))


if __name__ == "__main__":
    main()
