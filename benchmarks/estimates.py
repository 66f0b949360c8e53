"""What the TPU compiler makes of a transformer's layer and of a decoder's blocks, form by form.

    python -m benchmarks.estimates [--chips v5p,v6e] [--tokens 7440] [--width 5120]

Nothing is run: the programs are compiled for one chip ahead of time, and the compiler's own figures
are printed, its estimate of the seconds and the bytes it counts. They are no measurements. They
tell forms apart inside the real layer, where a kernel that wins alone may lose: XLA fuses what
stands around its own products, and nothing around ours.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# What is compiled ahead of time cannot be read back from a cache.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "0"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from vidlatent.dist.mesh import make_mesh  # noqa: E402
from vidlatent.io.tables import markdown_table  # noqa: E402
from vidlatent.kernels.conv3d import conv3d  # noqa: E402
from vidlatent.kernels.dispatch import prefer  # noqa: E402
from vidlatent.layers.norm import ChannelNorm  # noqa: E402
from vidlatent.layers.rope import rope_tables  # noqa: E402
from vidlatent.models.dit.block import WanBlock  # noqa: E402
from vidlatent.tools.hardware import parse_topology  # noqa: E402
from vidlatent.tools.plan_topology import devices_of  # noqa: E402

HALF = jnp.bfloat16
Program = tuple[Callable[..., Any], tuple[Any, ...]]


def shape(*sizes: int, dtype: Any = HALF) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


def layer(tokens: int, width: int, backward: bool) -> Program:
    """A block of FSVideo's transformer, its text and image kept."""
    heads = width // 128
    block = WanBlock(width, heads, 27 * width // 10, True, residual_dtype="bfloat16", dtype=HALF)
    tables = rope_tables((1, 1, tokens), 128)
    x, time_ = shape(1, tokens, width), shape(1, 6, width, dtype=jnp.float32)
    pairs = {
        name: (shape(1, count, heads, 128), shape(1, count, heads, 128))
        for name, count in (("text", 512), ("image", 257))
    }
    embedded = {name: shape(1, 1, width) for name in pairs}
    params = jax.eval_shape(
        lambda key: block.init(key, *_zeros((x, None, time_, embedded)), tables)["params"],
        jax.random.key(0),
    )
    params = jax.tree.map(lambda leaf: shape(*leaf.shape), params)

    def forward(params, x, mixture, time_, pairs):
        return block.apply({"params": params}, x, mixture, time_, pairs, tables, method="attend")

    def both(*arguments):
        value, back = jax.vjp(forward, *arguments)
        return back(value)

    return (both if backward else forward), (params, x, x, time_, pairs)


def _zeros(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), tree)


def chain(channels: int, size: tuple[int, int, int], form: str) -> Program:
    """Three residual blocks: pixel norm, SiLU, causal convolution, twice."""
    norm = ChannelNorm(dtype=HALF)

    def forward(x, kernels, scales):
        for k, (first, second) in enumerate(kernels):
            h = x
            for kernel, scale in ((first, scales[2 * k]), (second, scales[2 * k + 1])):
                h = jax.nn.silu(norm.apply({"params": scale}, h))
                h = jnp.concatenate([h[:, :1], h[:, :1], h], axis=1)
                pad = ((0, 0), (1, 1), (1, 1))
                h = conv3d(h, kernel, padding=pad, implementation=form)
            x = x + h
        return x

    kernel = shape(3, 3, 3, channels, channels)
    scale = {name: shape(channels, dtype=jnp.float32) for name in ("scale", "bias")}
    return forward, (shape(1, *size, channels), [(kernel, kernel)] * 3, [scale] * 6)


def programs(tokens: int, width: int) -> Iterator[tuple[str, str, dict[str, str], Program]]:
    """``(what, form, preferences, program)``."""
    plain = {"attention": "splash", "qk_norm_rope": "xla", "layer_mix": "xla"}
    forms = {
        "plain, XLA's attention": {**plain, "attention": "xla"},
        "splash attention": plain,
        "splash, own norm and rotation": {**plain, "qk_norm_rope": "pallas"},
    }
    for backward in (False, True):
        what = f"layer, {tokens} tokens, forward" + (" and backward" if backward else "")
        for form, preferred in forms.items():
            yield what, form, preferred, layer(tokens, width, backward)
    for channels, size in ((128, (16, 192, 320)), (512, (8, 96, 160))):
        what = f"residual chain, {channels} channels, {'x'.join(map(str, size))}"
        for form in ("native", "fold2d"):
            yield what, form, {}, chain(channels, size, form)


def estimate(program: Program, mesh: Any, preferred: dict[str, str]) -> dict[str, Any]:
    function, arguments = program
    begin = time.perf_counter()
    with jax.set_mesh(mesh), prefer(**preferred):
        whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        placed = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), arguments
        )
        compiled = jax.jit(function).lower(*placed).compile()
    cost = compiled.cost_analysis()
    milliseconds = round(1e3 * cost["optimal_seconds"], 2)
    return {
        # Below zero where copies overlap: the compiler's account, not a time. Compare the bytes.
        "estimated ms": milliseconds if milliseconds > 0 else None,
        "GB": round(cost["bytes accessed"] / 1e9, 2),
        "temporaries GB": round(compiled.memory_analysis().temp_size_in_bytes / 1e9, 2),
        "compile s": round(time.perf_counter() - begin, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--chips", default="v5p,v6e")
    parser.add_argument("--tokens", type=int, default=7440)
    parser.add_argument("--width", type=int, default=5120)
    parser.add_argument("--only", default="", help="part of what to compile, such as 'chain'")
    parser.add_argument("--json", default="", help="file for the rows")
    options = parser.parse_args()
    smallest = {"v5p": "v5p:1x1x1", "v5e": "v5e:1x1", "v6e": "v6e:1x1"}
    rows = []
    for chip in options.chips.split(","):
        mesh = make_mesh(
            {"data": 1, "fsdp": 1, "context": 1, "tensor": 1},
            devices_of(parse_topology(smallest[chip]))[:1],
        )
        for what, form, preferred, program in programs(options.tokens, options.width):
            if options.only in what:
                row = {"chip": chip, "what": what, "form": form}
                rows.append(row | estimate(program, mesh, preferred))
                print(json.dumps(rows[-1]), flush=True)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"jax": jax.__version__, "rows": rows}, file, indent=1)
    print(markdown_table(rows, aligned=True))


if __name__ == "__main__":
    main()
