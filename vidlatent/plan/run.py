"""``--mode=plan``: does a job fit a machine, and what does it cost there, without the machine.

The job's program is compiled ahead of time for a topology, and its memory, operations and
collectives are read off. If it does not fit, changes are tried, the smallest first, until one does.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vidlatent.parallel.mesh import make_mesh
from vidlatent.plan.build import bucket_of, build_program
from vidlatent.plan.costs import compile_program, costs, model_flops, roofline
from vidlatent.plan.hardware import GIB, Topology, parse_topology
from vidlatent.plan.program import DoesNotFit
from vidlatent.plan.report import report
from vidlatent.plan.search import changed, changes
from vidlatent.plan.topology import devices_of, has_devices, run_in_child

__all__ = ["attempt", "make_plan", "plan"]


def plan(config: ConfigDict, workdir: Path, topology: str, output: str) -> int:
    """Print what ``config.plan.what`` costs on ``topology``, and write it as JSON.

    Returns the exit status: 0 if it fits, 3 if nothing that was tried does. The file is ``output``,
    by default ``<workdir>/plan/<program>-<topology>.json``.
    """
    where = parse_topology(topology)
    name = f"{config.plan.what}-{str(where).replace(':', '-')}.json"
    target = Path(output or workdir / "plan" / name).resolve()
    if not has_devices(where):
        return run_in_child("plan", config, where, target)
    result = make_plan(config, where, devices_of(where))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(result, indent=1) + "\n")
    print(report(result))
    logging.info("wrote %s", target)
    return 0 if any(row["fits"] for row in result["attempts"]) else 3


def make_plan(config: ConfigDict, topology: Topology, devices: list[jax.Device]) -> dict[str, Any]:
    """What ``plan`` writes: the attempts, of which the last one fits unless none did.

    Raises:
      VidlatentError: the config cannot run at all, on whatever machine.
    """
    bucket = bucket_of(config, config.plan.bucket)
    config = _resolved(config, topology)
    limit = config.plan.memory_gib * GIB or topology.hardware.memory
    first = _tried(config, topology, devices, bucket, {}, limit)
    attempts = [first]
    if not first["fits"]:
        attempts += _search(config, topology, devices, bucket, limit, first)
    return {
        "config": config.name,
        "preset": config.preset,
        "program": config.plan.what,
        "topology": str(topology),
        "devices": topology.devices,
        "bucket": list(bucket),
        "compute": config.precision.compute,
        "effort": config.plan.effort,
        "limit": limit if math.isfinite(limit) else None,
        "jax": jax.__version__,
        "attempts": attempts,
    }


def _resolved(config: ConfigDict, topology: Topology) -> ConfigDict:
    """With the compute type that the topology's devices would choose."""
    if config.precision.compute != "auto":
        return config
    compute = "float32" if topology.hardware.platform == "cpu" else "bfloat16"
    return changed(config, {"precision.compute": compute})


def _search(
    config: ConfigDict,
    topology: Topology,
    devices: list[jax.Device],
    bucket: tuple[int, ...],
    limit: float,
    first: dict[str, Any],
) -> Iterable[dict[str, Any]]:
    """Attempts at smaller and larger changes, until one fits or ``config.plan.tries`` are over."""
    tries, latest = 0, first
    for overrides in changes(config, config.plan.what, first["mesh"], bucket):
        if tries == config.plan.tries:
            return
        if _hopeless(latest, overrides, limit):
            continue
        tries += 1
        logging.info("does not fit; trying %s", overrides)
        latest = _tried(changed(config, overrides), topology, devices, bucket, overrides, limit)
        yield latest
        if latest["fits"]:
            return


def _hopeless(latest: dict[str, Any], overrides: dict[str, Any], limit: float) -> bool:
    """Whether more pieces of the batch cannot be enough: temporaries shrink as pieces grow."""
    pieces = overrides.get("optim.accumulate", 1)
    before = latest["overrides"].get("optim.accumulate", 1)
    same = {**overrides, "optim.accumulate": 1} == {**latest["overrides"], "optim.accumulate": 1}
    if not same or not latest.get("memory"):
        return False
    memory = latest["memory"]
    fixed = memory["total"] - memory["temporaries"]
    return fixed + memory["temporaries"] * before / pieces > limit


def _tried(
    config: ConfigDict,
    topology: Topology,
    devices: list[jax.Device],
    bucket: tuple[int, ...],
    overrides: dict[str, Any],
    limit: float,
) -> dict[str, Any]:
    """One attempt, with why it does not fit."""
    mesh = make_mesh(config.mesh, devices)
    row: dict[str, Any] = {"overrides": overrides, "mesh": dict(mesh.shape)}
    try:
        row |= attempt(config, topology, mesh, bucket)
    except DoesNotFit as error:
        needed = None if math.isnan(error.needed) else error.needed
        return {**row, "fits": False, "why": str(error), "needed": needed}
    row["needed"] = row["memory"]["total"]
    row["fits"] = row["needed"] <= limit
    if not row["fits"]:
        row["why"] = f"{row['needed'] / GIB:.2f} GiB a device are more than {limit / GIB:.2f}"
    return row


def attempt(
    config: ConfigDict, topology: Topology, mesh: Mesh, bucket: tuple[int, ...]
) -> dict[str, Any]:
    """Compile a config's program for a mesh and read its costs.

    Raises:
      DoesNotFit: the compiler finds no room for it, or the mesh does not take this batch.
      VidlatentError: the model does not take this size.
    """

    def build(config: ConfigDict):
        return build_program(config, config.plan.what, mesh, bucket)

    program = build(config)
    traced, compiled, seconds = compile_program(program, mesh, config.plan.effort)
    found = costs(program, traced, compiled, mesh.size)
    needed = model_flops(config, build, traced, mesh)
    found["flops"]["model"] = needed
    return {
        "about": program.about,
        **found,
        "roofline": roofline(found, topology.hardware, needed),
        "frames": program.frames,
        "seconds": seconds,
    }
