"""What generation costs on one H200, from its ceilings to whole evaluations of the network.

    python -m benchmarks.h200                        every row, some 20 minutes
    python -m benchmarks.h200 --only attention,nfe   sections by name
    python -m benchmarks.h200 --size=small           the same rows at toy size, on any machine

Rows come in the order of their worth and are written to ``--output`` one by one, so that an
interrupted run keeps what it has; no row starts after ``--minutes``. A prediction was worked out
from compiled programs and data sheets before anything was measured; it stands beside the
measurement and never in its place. ``share`` is the measured rate over the ceiling of the same run:
of the matrix product for rows with operations, of the copy for rows with bytes.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from vidlatent.io.tables import markdown_table
from vidlatent.kernels.attention import attention
from vidlatent.kernels.conv3d import conv3d
from vidlatent.kernels.fp8 import fp8_product, quantised
from vidlatent.kernels.layer_mix import layer_mix
from vidlatent.kernels.qk_norm_rope import qk_norm_rope
from vidlatent.layers.modulation import normalised
from vidlatent.layers.rope import rope_tables
from vidlatent.models.dit import build_generator
from vidlatent.tools.bench_device import device_peaks, peak_memory, timed
from vidlatent.typing import VidlatentError

HALF = jnp.bfloat16


@dataclasses.dataclass(frozen=True)
class Row:
    """Something to time.

    Attributes:
      name: what it is.
      make: ``() -> (function, arguments)``; the function is jitted here.
      flops, bytes: of one run, the least that must be done; 0 where it does not count.
      predicted: milliseconds, or None.
      runs: of one time stamp, so that short programs outlast their launch.
    """

    name: str
    make: Callable[[], tuple[Callable[..., jax.Array], tuple[Any, ...]]]
    flops: float = 0.0
    bytes: float = 0.0
    predicted: float | None = None
    runs: int = 1


def normal(*shape: int, dtype: Any = HALF, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, dtype)


# -- sections: size (1 whole, less for a toy) -> rows --------------------------------------------


def products(scale: int) -> Iterator[Row]:
    """Matrix products of a layer: bfloat16, and 8 bits."""
    predicted = {(1860, 5120): 0.20, (3720, 5120): 0.30, (7440, 5120): 0.53}
    for rows in (1860, 3720, 7440):
        for width, out in ((5120, 5120), (5120, 13824), (13824, 5120)):
            m, k, n = rows // scale, width // scale, out // scale

            def half(m=m, k=k, n=n):
                return jnp.dot, (normal(m, k), normal(k, n, seed=1))

            def eighth(m=m, k=k, n=n):
                kernel = jax.jit(quantised)(normal(k, n, seed=1))
                return lambda x, w: fp8_product(x, w, HALF), (normal(m, k), kernel)

            time_ms = predicted.get((rows, width)) if out == 5120 else None
            title = f"product {m} x {k} x {n}"
            yield Row(title, half, flops=2 * m * k * n, predicted=time_ms, runs=20)
            yield Row(f"{title}, fp8", eighth, flops=2 * m * k * n, runs=20)


def attentions(scale: int) -> Iterator[Row]:
    """Attention forward, and forward with backward."""
    cases = [  # batch, queries, keys, heads, head width, predicted ms forward, both
        (2, 1860, 1860, 40, 128, 0.24, None),
        (1, 7440, 7440, 40, 128, 1.95, 7.6),
        (1, 7440, 512, 40, 128, 0.15, None),
        (1, 7440, 257, 40, 128, 0.08, None),
        (1, 4096, 4096, 16, 72, None, None),
    ]
    for batch, queries, keys, heads, dim, forward, both in cases:
        queries, keys, heads = queries // scale, max(1, keys // scale), max(1, heads // scale)
        flops = 4.0 * batch * queries * keys * heads * dim

        def make(shape=(batch, queries, keys, heads, dim), form="auto", backward=False):
            b, n, m, k, d = shape
            q, *kv = (normal(b, size, k, d, seed=i) for i, size in enumerate((n, m, m)))

            def run(q, k, v):
                return attention(q, k, v, implementation=form).astype(HALF)

            def gradients(q, k, v):
                value, back = jax.vjp(run, q, k, v)
                return sum(jnp.sum(g, dtype=jnp.float32) for g in back(value))

            return (gradients if backward else run), (q, *kv)

        title = f"attention {batch} x {queries} to {keys}, {heads} x {dim}"
        yield Row(title, make, flops, predicted=forward, runs=5)
        plain = functools.partial(make, form="xla")
        yield Row(f"{title}, plain form", plain, flops, runs=2)
        back = functools.partial(make, backward=True)
        yield Row(f"{title}, with gradients", back, 3.5 * flops, predicted=both, runs=2)


def elementwise(scale: int) -> Iterator[Row]:
    """What stands between the products: bytes decide."""
    count, width, heads = 7440 // scale, 5120 // scale, 40 // min(scale, 40)
    size = 2.0 * count * width

    def layer_norm():
        return lambda x: normalised(x).astype(HALF), (normal(1, count, width),)

    def norm_rope():
        tables = rope_tables((1, 1, count), width // heads)
        scale = jnp.ones((width,))
        return (lambda x: qk_norm_rope(x, scale, tables, heads)), (normal(1, count, width),)

    def mix():
        states = normal(40, 1, count, width)
        weights = jax.nn.softmax(normal(1, count, 40, dtype=jnp.float32))
        return (lambda s, w: layer_mix(s, w, 0, 20).astype(HALF)), (states, weights)

    def mix_static():
        states = normal(40, 1, count, width)
        weights = jax.nn.softmax(normal(1, count, 40, dtype=jnp.float32))
        return (lambda s, w: layer_mix(s[:20], w[..., :20], 0, 20).astype(HALF)), (states, weights)

    yield Row("layer norm", layer_norm, bytes=2 * size, predicted=0.038, runs=50)
    yield Row("queries: norm, rotation, heads", norm_rope, bytes=2 * size, predicted=0.072, runs=50)
    yield Row("layer memory, 20 of 40 slots", mix, bytes=21 * size, predicted=0.74, runs=10)
    yield Row("layer memory, 20 slots alone", mix_static, bytes=21 * size, predicted=0.37, runs=10)


def convolutions(scale: int) -> Iterator[Row]:
    """A residual chain's convolution in its forms; decides what 'auto' means on GPUs."""
    for frames, height, width, channels in ((16, 192, 320, 128), (8, 96, 160, 512)):
        height, width, channels = height // scale, width // scale, channels // scale
        flops = 2.0 * 27 * frames * height * width * channels**2
        for form in ("native", "fold2d", "taps"):

            def make(shape=(1, frames + 2, height, width, channels), form=form):
                kernel = normal(3, 3, 3, shape[-1], shape[-1], seed=1)
                padding = ((0, 0), (1, 1), (1, 1))
                return (
                    lambda x, k: conv3d(x, k, padding=padding, implementation=form),
                    (normal(*shape), kernel),
                )

            title = f"convolution {frames} x {height} x {width} x {channels}, {form}"
            yield Row(title, make, flops, runs=10)


def evaluations(scale: int) -> Iterator[Row]:
    """Evaluations of FSVideo's transformer, random weights made on the device."""
    base, refiner = (31, 6, 10), (31, 12, 20)
    # Kept keys and values; operations of linear layers, self- and cross-attention.
    for title, grid, batch, predicted, flops in (
        ("base, with guidance", base, 2, 171.0, 97.0e12),
        ("refiner", refiner, 1, 361.0, 227.9e12),
    ):
        if scale > 1:
            grid, flops = (3, 2, 2), 0.0

        def make(grid=grid, batch=batch):
            return network(scale, grid, batch)

        yield Row(f"one evaluation, {title}", make, flops, predicted=predicted)


def network(scale: int, grid: tuple[int, int, int], batch: int) -> tuple[Any, tuple[Any, ...]]:
    """The transformer as a sampler calls it, bfloat16 all through but for its islands."""
    small = {"width": 64, "depth": 3, "heads": 4, "hidden": 96, "text_dim": 32, "image_dim": 32}
    model = build_generator(
        {
            "name": "wan",
            "stack": "scanned",
            "remat": False,
            "residual_dtype": "bfloat16",
            **(small if scale > 1 else {}),
        },
        HALF,
    )
    noisy = normal(batch, *grid, model.latent_channels)
    conditions = {
        "text": {
            "states": normal(batch, 512, model.text_dim),
            "length": jnp.full((batch,), 77, jnp.int32),
        },
        "image": normal(batch, 257, model.image_dim),
        "first": normal(batch, 1, *grid[1:], model.condition_channels),
    }
    time_ = jnp.full((batch,), 500.0)
    shapes = jax.eval_shape(
        lambda key: model.init(key, noisy, time_, conditions, method="denoise"), jax.random.key(0)
    )["params"]

    @jax.jit
    def parameters(key):
        leaves, tree = jax.tree.flatten(shapes)
        keys = jax.random.split(key, len(leaves))
        made = [
            0.02 * jax.random.normal(k, leaf.shape, HALF)
            for k, leaf in zip(keys, leaves, strict=True)
        ]
        return jax.tree.unflatten(tree, made)

    params = parameters(jax.random.key(0))
    kept = jax.jit(lambda p: model.apply({"params": p}, conditions, method="keep"))(params)

    def run(params, noisy, kept):
        return model.apply(
            {"params": params}, noisy, time_, conditions, kept=kept, method="denoise"
        )

    return run, (params, noisy, kept)


SECTIONS = {
    "products": products,
    "attention": attentions,
    "elementwise": elementwise,
    "convolutions": convolutions,
    "nfe": evaluations,
}


# -- measuring -----------------------------------------------------------------------------------


def measure(row: Row, peaks: dict[str, float], repeats: int) -> dict[str, Any]:
    """One line of the table."""
    function, arguments = row.make()
    program = jax.jit(function).lower(*arguments).compile()

    def burst(_):
        return [program(*arguments) for _ in range(row.runs)]

    times = timed(burst, 2, repeats)
    seconds = times.median / row.runs
    ceiling = (row.flops / peaks["flops"]) or (row.bytes / peaks["bandwidth"])
    spread = times.to_json()["spread"]
    return {
        "row": row.name,
        "ms": _short(1e3 * seconds),
        "predicted ms": row.predicted,
        "TFLOP/s": _short(row.flops / seconds / 1e12) if row.flops else None,
        "GB/s": _short(row.bytes / seconds / 1e9) if row.bytes else None,
        "share": _short(ceiling / seconds) if ceiling else None,
        "spread": _short(spread),
        "peak GB": _short(peak_memory()[0] / 1e9),
    }


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def totals(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A video of FSVideo: 60 evaluations of the base in pairs, 8 of the refiner (2.5)."""
    found = {line["row"]: line["ms"] for line in lines if "ms" in line}
    base = found.get("one evaluation, base, with guidance")
    refiner = found.get("one evaluation, refiner")
    if base is None or refiner is None:
        return []
    total = 30 * base + 8 * refiner
    return [{"row": "60 + 8 evaluations, from the rows above", "ms": _short(total)}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=("full", "small"), default="full")
    parser.add_argument("--only", default="", help=f"of {', '.join(SECTIONS)}")
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--output", default="h200.json")
    options = parser.parse_args()
    wanted = options.only.split(",") if options.only else list(SECTIONS)
    if unknown := set(wanted) - set(SECTIONS):
        parser.error(f"no section is called {', '.join(sorted(unknown))}")
    end = time.monotonic() + 60 * options.minutes
    peaks = device_peaks(HALF)
    result: dict[str, Any] = {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "size": options.size,
        "ceilings": {"TFLOP/s": peaks["flops"] / 1e12, "GB/s": peaks["bandwidth"] / 1e9},
        "rows": [],
    }
    print(json.dumps({**result, "rows": None}))
    for name in wanted:
        for row in SECTIONS[name](1 if options.size == "full" else 20):
            if options.size == "small":  # nobody predicted those
                row = dataclasses.replace(row, predicted=None)
            if time.monotonic() > end:
                line = {"row": row.name, "note": "not measured: out of time"}
            else:
                line = attempt(row, peaks, options.repeats)
            result["rows"].append(line)
            print(json.dumps(line), flush=True)
            Path(options.output).write_text(json.dumps(result, indent=1))
    result["rows"] += totals(result["rows"])
    Path(options.output).write_text(json.dumps(result, indent=1))
    print(markdown_table(result["rows"], aligned=True))


def attempt(row: Row, peaks: dict[str, float], repeats: int) -> dict[str, Any]:
    """``measure``, or why that was impossible: the other rows are not lost with this one."""
    try:
        return measure(row, peaks, repeats)
    except (VidlatentError, jax.errors.JaxRuntimeError, NotImplementedError, ValueError) as error:
        return {"row": row.name, "note": f"failed: {str(error).splitlines()[0][:120]}"}


if __name__ == "__main__":
    main()
