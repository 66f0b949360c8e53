"""What a program costs on a device: memory, operations, memory traffic, and the least time.

Nothing is run. Bytes are those that the compiler allocated, operations are counted in the traced
program, collectives and traffic in the text of the compiled one. Times are lower bounds: each
resource works at its peak rate, and the slowest of them decides.
"""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vidlatent.config import is_generator
from vidlatent.errors import VidlatentError
from vidlatent.parallel.compilation import QUICKEST
from vidlatent.plan.flops import count_flops
from vidlatent.plan.hardware import Hardware
from vidlatent.plan.hlo import parse
from vidlatent.plan.program import DoesNotFit, Program

__all__ = [
    "compile_program",
    "compute_roofline",
    "count_device_bytes",
    "count_model_flops",
    "read_costs",
    "trace_program",
]

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def compile_program(
    program: Program, mesh: Mesh, effort: float = 0.0
) -> tuple[Any, Any, dict[str, float]]:
    """Trace, lower and compile for a mesh; returns ``(traced, compiled, seconds)``.

    For CPUs the last optimisations are skipped: what is read from the program is decided earlier.

    Args:
      program: with abstract arguments.
      mesh: of real devices, or of the devices that a topology describes.
      effort: XLA's ``exec_time_optimization_effort``: below 0 (to -1) it spends less time on fast
        code; 0 is its default.

    Raises:
      DoesNotFit: the compiler ran out of the device's memory.
    """
    options: dict[str, Any] | None = {"exec_time_optimization_effort": effort} if effort else None
    if mesh.devices.flat[0].platform == "cpu":
        options = QUICKEST
    begin = time.perf_counter()
    traced = trace_program(program, mesh)
    at_traced = time.perf_counter()
    try:
        with jax.set_mesh(mesh):
            lowered = traced.lower()
            at_lowered = time.perf_counter()
            compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        # Any other failure is a bug, and should show as one.
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise DoesNotFit(_first_lines(str(error)), _parse_requested_bytes(str(error))) from error
    done = time.perf_counter()
    seconds = {
        "trace": at_traced - begin,
        "lower": at_lowered - at_traced,
        "compile": done - at_lowered,
    }
    return traced, compiled, seconds


def trace_program(program: Program, mesh: Mesh) -> Any:
    """Trace the program; the result's ``jaxpr`` has its operations before compilation.

    Raises:
      VidlatentError: it uses cuDNN's attention, and cuDNN is not installed.
    """
    try:
        with jax.set_mesh(mesh):
            return program.function.trace(*program.arguments)
    except RuntimeError as error:
        if "cuDNN not found" not in str(error):
            raise
        raise VidlatentError(
            "attention on a GPU uses cuDNN, which planning needs too: pip install "
            "nvidia-cudnn-cu12 (no GPU is needed)."
        ) from error


def _first_lines(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split())[:400]


def _parse_requested_bytes(text: str) -> float:
    """Bytes in an out-of-memory message: ``Used 45.16G of 31.25G hbm``, ``(320.00G) exceeds``."""
    found = re.search(r"Used ([\d.]+)([KMGT]?)|\(([\d.]+)([KMGT]?)\) exceeds", text)
    if not found:
        return math.nan
    number, unit = (found[1], found[2]) if found[1] else (found[3], found[4])
    return float(number) * _UNITS[unit]


def count_device_bytes(tree: Any) -> int:
    """Bytes of one device's share of ShapeDtypeStructs with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def read_costs(program: Program, traced: Any, compiled: Any, devices: int) -> dict[str, Any]:
    """``memory``, ``flops``, ``bytes`` and ``collectives`` of one device, and ``parameters``.

    ``parameters`` counts those of the whole model once. ``memory["total"]`` is what the program
    holds at once: arguments, results that do not reuse an argument's buffer, temporaries
    (activations) and code.
    """
    stats = compiled.memory_analysis()
    parts = {name: count_device_bytes(tree) for name, tree in program.parts.items()}
    memory = {
        "parts": {name: size for name, size in parts.items() if size},
        # The compiler drops arguments that are not read, such as a decoder's parameters while
        # encoding, but they take up memory all the same.
        "arguments": max(stats.argument_size_in_bytes, count_device_bytes(program.arguments)),
        "outputs": stats.output_size_in_bytes,
        "outputs_in_place": stats.alias_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "code": stats.generated_code_size_in_bytes,
    }
    kept = memory["outputs"] - memory["outputs_in_place"]
    memory["total"] = memory["arguments"] + kept + memory["temporaries"] + memory["code"]
    analysis = compiled.cost_analysis() or {}
    module = parse(compiled.as_text())
    return {
        "parameters": sum(math.prod(x.shape) for x in jax.tree.leaves(program.parts["parameters"])),
        "memory": memory,
        "flops": {
            # The traced program is that of all devices, the compiled one that of a single device.
            "program": count_flops(traced.jaxpr) / devices,
            "compiler": _none_if_unknown(analysis.get("flops")),
        },
        "bytes": {
            "program": module.traffic(),
            "compiler": _none_if_unknown(analysis.get("bytes accessed")),
        },
        "collectives": [dataclasses.asdict(entry) for entry in module.collectives()],
        "compiler_seconds": _none_if_unknown(analysis.get("optimal_seconds")),
    }


def _none_if_unknown(value: float | None) -> float | None:
    """None where the compiler has no figure: it leaves the entry out or makes it negative."""
    return value if value is not None and value >= 0 else None


def compute_roofline(
    found: dict[str, Any], hardware: Hardware, model_flops: float
) -> dict[str, Any] | None:
    """Least seconds of a run, by resource; None for hardware without known peak rates.

    Args:
      found: what ``read_costs`` returned.
      hardware: of one device.
      model_flops: operations of a device without those that remat repeats, for the MFU.
    """
    if not hardware.flops:
        return None
    # The compiler counts more than an even share where several devices repeat the same work.
    flops = max(found["flops"]["program"], found["flops"]["compiler"] or 0.0)
    seconds = {
        "compute": flops / hardware.flops,
        "memory": found["bytes"]["program"] / hardware.bandwidth,
        "interconnect": sum(entry["sent"] for entry in found["collectives"]) / hardware.link,
    }
    bound = max(seconds, key=lambda name: seconds[name])
    return {
        **seconds,
        "at_least": seconds[bound],
        "bound": bound,
        "one_after_the_other": sum(seconds.values()),
        # An empty program takes no time: no division by zero.
        "mfu_at_most": model_flops / hardware.flops / max(seconds[bound], 1e-12),
    }


def count_model_flops(
    config: ConfigDict, build: Callable[[ConfigDict], Program], traced: Any, mesh: Mesh
) -> float:
    """Operations of a device without those that remat repeats to save memory.

    Args:
      config: of the program.
      build: builds the program of a config; called with a config without remat.
      traced: the program as it is, used if it has no remat.
      mesh: of the devices that share the work.
    """
    name = "generator" if is_generator(config) else "model"
    section = config[name]
    # The settings that repeat nothing, for models that have them.
    keys = {"remat": False, "stack": "scanned"}
    repeats = {key: value for key, value in keys.items() if key in section}
    # Nothing is repeated as it is: no need to trace a second time.
    if all(section[key] == value for key, value in repeats.items()):
        return count_flops(traced.jaxpr) / mesh.size
    plain = config.copy_and_resolve_references()
    with plain.unlocked():
        plain[name].update(repeats)
    return count_flops(trace_program(build(plain), mesh).jaxpr) / mesh.size
