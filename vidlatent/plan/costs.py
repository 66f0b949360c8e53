"""What a program costs on a device: memory, operations, traffic, and the time they take at best.

Everything is an estimate made without running anything: bytes as the compiler allocated them,
operations as the program has them, collectives as the compiled text names them. Times are bounds:
each resource at its peak, and the slowest of them alone.
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

from vidlatent.errors import VidlatentError
from vidlatent.plan.flops import count_flops
from vidlatent.plan.hardware import Hardware
from vidlatent.plan.hlo import parse
from vidlatent.plan.program import DoesNotFit, Program

__all__ = ["bytes_on_a_device", "compile_program", "costs", "model_flops", "roofline", "trace"]

_QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def compile_program(
    program: Program, mesh: Mesh, effort: float = 0.0
) -> tuple[Any, Any, dict[str, float]]:
    """``(traced, compiled, seconds)`` of tracing, lowering and compiling for a mesh.

    For CPUs machine code is made without care: what is read off is settled before.

    Args:
      program: with abstract arguments.
      mesh: of real devices or of a topology's.
      effort: that the compiler spends on the speed of machine code, from -1; 0 is its own.

    Raises:
      DoesNotFit: the compiler ran out of the device's memory.
    """
    options: dict[str, Any] | None = {"exec_time_optimization_effort": effort} if effort else None
    if mesh.devices.flat[0].platform == "cpu":
        options = _QUICK
    begin = time.perf_counter()
    traced = trace(program, mesh)
    at_traced = time.perf_counter()
    try:
        with jax.set_mesh(mesh):
            lowered = traced.lower()
            at_lowered = time.perf_counter()
            compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise DoesNotFit(_first_lines(str(error)), _asked_for(str(error))) from error
    done = time.perf_counter()
    seconds = {
        "trace": at_traced - begin,
        "lower": at_lowered - at_traced,
        "compile": done - at_lowered,
    }
    return traced, compiled, seconds


def trace(program: Program, mesh: Mesh) -> Any:
    """The program with its operations, ``jaxpr``, before any compiler.

    Raises:
      VidlatentError: attention on GPUs is cuDNN's, and it is not installed.
    """
    try:
        with jax.set_mesh(mesh):
            return program.function.trace(*program.arguments)
    except RuntimeError as error:
        if "cuDNN not found" not in str(error):
            raise
        raise VidlatentError(
            "attention on a GPU is cuDNN's, which planning needs too: pip install "
            "nvidia-cudnn-cu12 (no GPU is needed)."
        ) from error


def _first_lines(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split())[:400]


def _asked_for(text: str) -> float:
    """Bytes in a compiler's complaint: ``Used 45.16G of 31.25G hbm`` or ``(320.00G) exceeds``."""
    found = re.search(r"Used ([\d.]+)([KMGT]?)|\(([\d.]+)([KMGT]?)\) exceeds", text)
    if not found:
        return math.nan
    number, unit = (found[1], found[2]) if found[1] else (found[3], found[4])
    return float(number) * _UNITS[unit]


def bytes_on_a_device(tree: Any) -> int:
    """Bytes of one device's share of ShapeDtypeStructs with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def costs(program: Program, traced: Any, compiled: Any, devices: int) -> dict[str, Any]:
    """``memory``, ``flops``, ``bytes`` and ``collectives`` of one device, and ``parameters``.

    The parameters are those of all devices, each counted once. Of ``memory``, ``total`` is what the
    program holds at once: arguments, results that do not take an argument's place, temporaries
    (activations) and code.
    """
    stats = compiled.memory_analysis()
    parts = {name: bytes_on_a_device(tree) for name, tree in program.parts.items()}
    memory = {
        "parts": {name: size for name, size in parts.items() if size},
        # An encoder does not read the decoder's parameters, but they are there.
        "arguments": max(stats.argument_size_in_bytes, bytes_on_a_device(program.arguments)),
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
            "program": count_flops(traced.jaxpr) / devices,
            "compiler": _known(analysis.get("flops")),
        },
        "bytes": {"program": module.traffic(), "compiler": _known(analysis.get("bytes accessed"))},
        "collectives": [dataclasses.asdict(entry) for entry in module.collectives()],
        "compiler_seconds": _known(analysis.get("optimal_seconds")),
    }


def _known(value: float | None) -> float | None:
    """None for what the compiler does not know: it then leaves it out or gives less than zero."""
    return value if value is not None and value >= 0 else None


def roofline(
    found: dict[str, Any], hardware: Hardware, model_flops: float
) -> dict[str, Any] | None:
    """Seconds that a run takes at least, by resource; None for hardware without figures.

    Args:
      found: what ``costs`` returned.
      hardware: a device.
      model_flops: operations of a device that the result needs, without those done twice to save
        memory; what ``mfu`` counts.
    """
    if not hardware.flops:
        return None
    # Where the compiler finds more than an even share, some work is done on several devices.
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
        "mfu_at_most": model_flops / hardware.flops / max(seconds[bound], 1e-12),
    }


def model_flops(
    config: ConfigDict, build: Callable[[ConfigDict], Program], traced: Any, mesh: Mesh
) -> float:
    """Operations of a device without those that are only repeated to save memory.

    Args:
      config: of the program.
      build: makes the program of a config; for one that repeats nothing.
      traced: the program.
      mesh: of the devices that share the work.
    """
    section = config.generator or config.model
    keys = {"remat": False, "stack": "scanned"}
    repeats = {key: value for key, value in keys.items() if key in section}
    if all(section[key] == value for key, value in repeats.items()):
        return count_flops(traced.jaxpr) / mesh.size
    plain = config.copy_and_resolve_references()
    with plain.unlocked():
        (plain.generator or plain.model).update(repeats)
    return count_flops(trace(build(plain), mesh).jaxpr) / mesh.size
