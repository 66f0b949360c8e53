"""``--mode=bench``: time and memory of a config's programs on the devices at hand.

Each program is the one that its job runs, called with random inputs, several of them in turn, and
timed until its result is ready. Rates are compared with the best matrix product and the best copy
of this device, measured in the same run. A share of the copy above one would mean that much of the
data stays in caches, and is shown as these words. The memory of a program is what the compiler
allocated; the peak beside it is that of the whole process so far, earlier programs included.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vidlatent.bench.device import measure_peaks, read_peak_memory, read_program_memory, time_runs
from vidlatent.errors import VidlatentError
from vidlatent.files import write_json
from vidlatent.models.load import resolve_dtype
from vidlatent.parallel.compilation import quick_options
from vidlatent.parallel.mesh import mesh_for_batches
from vidlatent.parallel.multihost import is_main
from vidlatent.paths import as_path
from vidlatent.plan.build import build_program, choose_bucket, list_programs
from vidlatent.plan.costs import count_model_flops, trace_program
from vidlatent.plan.hardware import GIB
from vidlatent.plan.hlo import parse
from vidlatent.plan.program import Program
from vidlatent.plan.search import override_keys
from vidlatent.report.page import write_report
from vidlatent.report.tables import markdown_table
from vidlatent.report.writers import read_metrics
from vidlatent.train.loop import train

__all__ = ["bench", "measure", "measure_loop"]

_OF_LOOP = ("steps_per_second", "frames_per_second", "data_wait_share")


def bench(config: ConfigDict, workdir: Path, output: str) -> int:
    """Measure ``config.bench.what``, print a table and write ``output`` as JSON.

    ``output`` is ``<workdir>/bench.json`` by default; a page with the same tables lies beside it.
    Returns the exit status.
    """
    bucket = choose_bucket(config, config.bench.bucket)
    mesh = mesh_for_batches(config.mesh, [bucket])
    dtype = jnp.dtype(resolve_dtype(config))
    # Of one device: a program's rate is that of one device's share of the work.
    peaks = measure_peaks(dtype)
    device = jax.devices()[0]
    result: dict[str, Any] = {
        "config": config.name,
        "preset": config.preset,
        "device": f"{mesh.size} x {device.device_kind}",
        "jax": jax.__version__,
        "compute": dtype.name,
        "bucket": list(bucket),
        "peaks": peaks,
        "programs": {},
    }
    for what in config.bench.what or list_programs(config):
        logging.info("measuring %s", what)
        if what == "loop":
            result["loop"] = measure_loop(config)
        else:
            result["programs"][what] = measure(config, what, mesh, bucket, peaks)
    if is_main():
        target = as_path(output) if output else workdir / "bench.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        write_json(target, result)
        page = target.with_suffix(".html")
        _write_page(page, result)
        print("\n\n".join([_describe(result), *_format_tables(result)]))
        logging.info("wrote %s and %s", target, page)
    return 0


def measure(
    config: ConfigDict, what: str, mesh: Mesh, bucket: tuple[int, ...], peaks: dict[str, float]
) -> dict[str, Any]:
    """Times, rates and memory of one program of ``plan.build.PROGRAMS``."""

    def build(config: ConfigDict) -> Program:
        return build_program(config, what, mesh, bucket)

    options = config.bench
    program = build(config)
    flops = count_model_flops(config, build, trace_program(program, mesh), mesh)
    with jax.set_mesh(mesh):
        compiled, seconds = _compile_twice(program)
        batches = [_draw_arguments(program, number) for number in range(max(1, options.inputs))]
        held = _make_initial(program)

        def run(number: int) -> Any:
            given = {**batches[number % len(batches)], **held}
            results = compiled(*(given[place] for place in range(len(program.arguments))))
            if program.carries is not None and program.carries[1] in held:
                result, argument = program.carries
                # The call took the buffer of its argument; the result is what the next call gets.
                held[argument] = results[result]
            return results

        times = time_runs(run, options.warmup, options.repeats)
    memory, of = read_peak_memory()
    rate = flops / times.median
    traffic = parse(compiled.as_text()).traffic() / times.median
    return {
        "about": program.about,
        **times.to_json(),
        "frames_per_second": program.frames / times.median,
        "tflop_of_a_device": flops / 1e12,
        "tflop_per_second": rate / 1e12,
        "share_of_matmul": rate / peaks["flops"],
        "gb_per_second": traffic / 1e9,
        "share_of_copy": traffic / peaks["bandwidth"],
        "compile": seconds,
        "peak_memory": memory,
        "peak_memory_of": of,
        "program_memory": read_program_memory(compiled),
    }


def _make_initial(program: Program) -> dict[int, Any]:
    """By position: arguments with a first value, and those that a call hands to the next."""
    made = {}
    for place, make in program.initial.items():
        where = jax.tree.map(lambda leaf: leaf.sharding, program.arguments[place])
        made[place] = jax.jit(make, out_shardings=where, compiler_options=quick_options())()
    if program.carries is not None:
        # A carried argument without a first value, such as the cache of a stream, starts random.
        argument = program.carries[1]
        if argument not in made and jax.tree.leaves(program.arguments[argument]):
            made[argument] = _draw_arrays(program.arguments[argument], 0)
    return made


def _draw_arguments(program: Program, seed: int) -> dict[int, Any]:
    free = set(range(len(program.arguments))) - set(program.initial)
    return {place: _draw_arrays(program.arguments[place], seed) for place in free}


def _draw_arrays(tree: Any, seed: int) -> Any:
    """Random arrays: uniform pixels, standard normal numbers; masks are ones."""
    leaves, structure = jax.tree.flatten(tree)

    def draw(number: int, leaf: Any) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(seed), number)
        if jnp.issubdtype(leaf.dtype, jnp.integer):
            # uint8 are pixels. Others are classes, lengths or seeds: 0 and 1 are always legal.
            most = 256 if leaf.dtype == jnp.uint8 else 2
            return jax.random.randint(key, leaf.shape, 0, most, jnp.int32).astype(leaf.dtype)
        if len(leaf.shape) == 1:  # masks, and diffusion times
            return jnp.ones(leaf.shape, leaf.dtype)
        return jax.random.normal(key, leaf.shape, leaf.dtype)

    def put(number: int, leaf: Any) -> jax.Array:
        # Made where it belongs: one device may have no room for the whole array.
        return jax.jit(lambda: draw(number, leaf), out_shardings=leaf.sharding)()

    return jax.tree.unflatten(structure, [put(n, leaf) for n, leaf in enumerate(leaves)])


def _compile_twice(program: Program) -> tuple[Any, dict[str, float]]:
    """The executable, and seconds of compiling it without and with the persistent cache."""
    with tempfile.TemporaryDirectory() as folder, _use_cache(folder):
        _, cold = _compile_timed(program)
        compilation_cache.reset_cache()  # else it remembers that the folder was empty
        # Else the second compilation would be answered from memory, not from the folder.
        jax.clear_caches()
        compiled, cached = _compile_timed(program)
    return compiled, {"cold_s": cold, "cached_s": cached}


def _compile_timed(program: Program) -> tuple[Any, float]:
    begin = time.perf_counter()
    compiled = program.function.lower(*program.arguments).compile()
    return compiled, time.perf_counter() - begin


@contextlib.contextmanager
def _use_cache(folder: str) -> Iterator[None]:
    """Keep all compiled programs in ``folder`` within the block."""
    settings = {
        "jax_compilation_cache_dir": folder,
        # By default programs that compile quickly are not kept.
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: jax.config.values[name] for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def measure_loop(config: ConfigDict) -> dict[str, Any]:
    """Speed of the training loop with its data over ``loop_steps`` steps, from its own log.

    The first log entry is left out, because it includes compilation.
    """
    steps, every = config.bench.loop_steps, config.train.log_every
    if steps < 3 * every:
        raise VidlatentError(
            f"config.bench.loop_steps={steps} gives too few log entries: set at least {3 * every}, "
            "three times config.train.log_every."
        )
    # Scoring and saving would count as part of the steps.
    short = {"train.steps": steps, "eval.every": 0, "checkpoint.every": 0}
    with tempfile.TemporaryDirectory() as folder:
        train(override_keys(config, short), Path(folder))
        curves = read_metrics(Path(folder) / "metrics.jsonl")
    found = {}
    for name in _OF_LOOP:
        values = curves[f"train/{name}"][1][1:]
        found[name] = {
            "median": statistics.median(values),
            "least": min(values),
            "most": max(values),
            "reports": len(values),
        }
    return found


def _write_page(path: Path, result: dict[str, Any]) -> None:
    """The tables as an HTML page."""
    peaks = result["peaks"]
    write_report(
        path,
        title=f"Speed of {result['config']} ({result['preset']})",
        subtitle=_describe(result),
        scores={
            "TFLOP/s in a matrix product": peaks["flops"] / 1e12,
            "GB/s in a copy": peaks["bandwidth"] / 1e9,
        },
        tables=_tables(result),
    )


def _describe(result: dict[str, Any]) -> str:
    peaks = result["peaks"]
    return (
        f"{result['config']} ({result['preset']}) on {result['device']}, {result['compute']}, jax "
        f"{result['jax']}; best of this device: {peaks['flops'] / 1e12:.3g} TFLOP/s in a matrix "
        f"product, {peaks['bandwidth'] / 1e9:.3g} GB/s in a copy."
    )


def _format_tables(result: dict[str, Any]) -> list[str]:
    return [markdown_table(rows, aligned=True) for rows in _tables(result).values()]


def _tables(result: dict[str, Any]) -> dict[str, list[dict[str, str]]]:
    """Rows by heading: one for each program, and for each figure of the training loop."""
    tables = {}
    if result["programs"]:
        tables["Programs"] = [_format_row(*item) for item in result["programs"].items()]
    if "loop" in result:
        tables["Training loop with its data"] = [
            {"figure": name.replace("_", " "), **_format_numbers(values)}
            for name, values in result["loop"].items()
        ]
    return tables


def _format_share(share: float, beyond: str) -> str:
    """A share of this device's best; ``beyond`` where a program measured more than that."""
    return f"{share:.1%}" if share <= 1 else beyond


def _format_numbers(values: dict[str, float]) -> dict[str, str]:
    return {name: f"{value:.4g}" for name, value in values.items()}


def _format_row(name: str, found: dict[str, Any]) -> dict[str, str]:
    return {
        "program": f"{name}: {found['about']}",
        "ms": f"{found['median_s'] * 1e3:.4g}",
        "spread": f"{found['spread']:.0%}",
        "frames/s": f"{found['frames_per_second']:.4g}",
        "TFLOP/s": f"{found['tflop_per_second']:.3g}",
        "of matmul": _format_share(found["share_of_matmul"], "all"),
        "of copy": _format_share(found["share_of_copy"], "more: in caches"),
        "GiB of the program": f"{found['program_memory'] / GIB:.2f}",
        f"most GiB of the {found['peak_memory_of']} so far": f"{found['peak_memory'] / GIB:.2f}",
        "compile s": f"{found['compile']['cold_s']:.3g}",
        "from cache": f"{found['compile']['cached_s']:.3g}",
    }
