"""``--mode=plan``: whether a job fits a machine, and what it costs there, without that machine.

The job's program is compiled ahead of time for a topology. Its memory, operations and collectives
are read from the compiled program. If it does not fit, or the mesh cannot divide the batch, changes
of the config are tried, those that cost least speed first, until one fits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vidlatent.files import write_json
from vidlatent.parallel.mesh import make_mesh
from vidlatent.paths import as_path
from vidlatent.plan.build import build_program, choose_bucket
from vidlatent.plan.cascade import CASCADE, plan_cascade
from vidlatent.plan.costs import compile_program, compute_roofline, count_model_flops, read_costs
from vidlatent.plan.hardware import GIB, Topology, parse_topology
from vidlatent.plan.program import DoesNotFit, DoesNotSpread
from vidlatent.plan.report import format_flags, format_plan, write_page
from vidlatent.plan.search import override_keys, propose_changes
from vidlatent.plan.state import STATE, plan_state
from vidlatent.plan.topology import get_devices, has_devices, run_in_child

__all__ = ["compile_and_cost", "make_plan", "plan"]


def plan(config: ConfigDict, workdir: Path, topology: str, output: str) -> int:
    """Print what ``config.plan.what`` costs on ``topology``, and write it as JSON.

    The file is ``output``, by default ``<workdir>/plan/<program>-<topology>.json``; a page with the
    same tables lies beside it.

    Returns:
      The exit status: 0 if the program fits, with or without changes, and 3 if it does not.
    """
    if config.plan.what == CASCADE:
        return plan_cascade(config, workdir, topology, output)
    if config.plan.what == STATE:
        return plan_state(config, workdir, topology, output)
    where = parse_topology(topology)
    name = f"{config.plan.what}-{str(where).replace(':', '-')}.json"
    target = as_path(output or workdir / "plan" / name).resolve()
    # JAX fixes its devices when it starts, so others than this process has need a new process.
    if not has_devices(where):
        return run_in_child("plan", config, where, target)
    result = make_plan(config, where, get_devices(where))
    target.parent.mkdir(parents=True, exist_ok=True)
    write_json(target, result)
    page = target.with_suffix(".html")
    write_page(page, result)
    print(format_plan(result))
    logging.info("wrote %s and %s", target, page)
    return 0 if any(row["fits"] for row in result["attempts"]) else 3


def make_plan(config: ConfigDict, topology: Topology, devices: list[jax.Device]) -> dict[str, Any]:
    """The result that ``plan`` writes. The last of its attempts fits, unless none does.

    Raises:
      VidlatentError: the config cannot run on any machine.
    """
    bucket = choose_bucket(config, config.plan.bucket)
    config = _resolve_compute_type(config, topology)
    # 0 stands for all of the device's memory.
    limit = config.plan.memory_gib * GIB or topology.hardware.memory
    first = _try(config, topology, devices, bucket, {}, limit)
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
        "steps": config.train.steps if config.plan.what == "train" else None,
        "jax": jax.__version__,
        "attempts": attempts,
    }


def _resolve_compute_type(config: ConfigDict, topology: Topology) -> ConfigDict:
    """Replace ``precision.compute=auto`` by what the topology's devices would choose."""
    if config.precision.compute != "auto":
        return config
    # `auto` would ask the devices of this machine, not those of the topology.
    compute = "float32" if topology.hardware.platform == "cpu" else "bfloat16"
    return override_keys(config, {"precision.compute": compute})


def _search(
    config: ConfigDict,
    topology: Topology,
    devices: list[jax.Device],
    bucket: tuple[int, ...],
    limit: float,
    first: dict[str, Any],
) -> Iterable[dict[str, Any]]:
    """Try changes until one fits, at most ``config.plan.tries`` of them; yields each attempt."""
    tries, latest = 0, first
    for overrides in propose_changes(config, config.plan.what, first["mesh"], bucket):
        if tries == config.plan.tries:
            return
        # Left out without compiling, which is what a try costs.
        if _is_hopeless(latest, overrides, limit):
            continue
        tries += 1
        short = latest["short_of"] == "devices"
        why = "the batch does not spread over the devices" if short else "it does not fit"
        logging.info("%s; trying %s", why, format_flags(overrides))
        latest = _try(override_keys(config, overrides), topology, devices, bucket, overrides, limit)
        yield latest
        if latest["fits"]:
            return


def _is_hopeless(latest: dict[str, Any], overrides: dict[str, Any], limit: float) -> bool:
    """Whether cutting the batch into more pieces cannot save enough, judged by the last attempt.

    Only temporaries shrink, in proportion to the pieces; parameters and optimizer state stay.
    """
    pieces = overrides.get("optim.accumulate", 1)
    before = latest["overrides"].get("optim.accumulate", 1)
    same = {**overrides, "optim.accumulate": 1} == {**latest["overrides"], "optim.accumulate": 1}
    if not same or not latest.get("memory"):
        return False
    memory = latest["memory"]
    fixed = memory["total"] - memory["temporaries"]
    return fixed + memory["temporaries"] * before / pieces > limit


def _try(
    config: ConfigDict,
    topology: Topology,
    devices: list[jax.Device],
    bucket: tuple[int, ...],
    overrides: dict[str, Any],
    limit: float,
) -> dict[str, Any]:
    """One attempt: its costs, whether it fits, and if not, why and what it is short of."""
    mesh = make_mesh(config.mesh, devices)
    row: dict[str, Any] = {"overrides": overrides, "mesh": dict(mesh.shape)}
    try:
        row |= compile_and_cost(config, topology, mesh, bucket)
    except DoesNotSpread as error:
        why = str(error)
        return {**row, "fits": False, "short_of": "devices", "why": why, "needed": None}
    except DoesNotFit as error:
        needed = None if math.isnan(error.needed) else error.needed
        why = str(error)
        return {**row, "fits": False, "short_of": "memory", "why": why, "needed": needed}
    row["needed"] = row["memory"]["total"]
    row["fits"] = row["needed"] <= limit
    if not row["fits"]:
        row["short_of"] = "memory"
        row["why"] = f"{row['needed'] / GIB:.2f} GiB a device are more than {limit / GIB:.2f}"
    return row


def compile_and_cost(
    config: ConfigDict, topology: Topology, mesh: Mesh, bucket: tuple[int, ...]
) -> dict[str, Any]:
    """Compile a config's program for a mesh and read its costs.

    Raises:
      DoesNotFit: the compiler ran out of memory.
      DoesNotSpread: the mesh cannot divide this batch.
      VidlatentError: the model does not accept videos of this size.
    """

    # Also called with another config: the same without remat, for the model's own operations.
    def build(config: ConfigDict):
        return build_program(config, config.plan.what, mesh, bucket)

    program = build(config)
    # Compilers say nothing for minutes, and libtpu begins with lines that look like errors.
    logging.info("compiling for %s: %s ...", topology, program.about)
    traced, compiled, seconds = compile_program(program, mesh, config.plan.effort)
    found = read_costs(program, traced, compiled, mesh.size)
    needed = count_model_flops(config, build, traced, mesh)
    found["flops"]["model"] = needed
    return {
        "about": program.about,
        **found,
        "roofline": compute_roofline(found, topology.hardware, needed),
        "frames": program.frames,
        "seconds": seconds,
    }
