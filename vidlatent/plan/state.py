"""What a training step holds between its calls, by shapes alone: ``config.plan.what=state``.

Nothing is compiled, so that machines whose compiler is not installed can be planned in seconds. The
state, the frozen networks and the batch are counted exactly, and the gradients of the network that
has most. Activations are not: what is left of a device's memory must hold them. Only decoder and
rewards of a step by rewards are estimated too, from the traced program: they may hold most of all.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import logging
from jax.sharding import AbstractMesh
from ml_collections import ConfigDict

from vidlatent.errors import VidlatentError
from vidlatent.files import write_json
from vidlatent.parallel.mesh import AXES, resolve_sizes
from vidlatent.paths import as_path
from vidlatent.plan.build import build_program, choose_bucket
from vidlatent.plan.costs import count_device_bytes
from vidlatent.plan.hardware import GIB, Topology, parse_topology
from vidlatent.plan.program import DoesNotSpread, Program
from vidlatent.plan.rewarded import REWARDED, estimate_judging
from vidlatent.plan.search import override_keys, propose_changes, propose_judging
from vidlatent.report.tables import markdown_table

__all__ = ["STATE", "count_state", "find_change", "plan_state"]

STATE = "state"  # value of config.plan.what
# Keys of all networks that can be trained by adapters.
_LORA = ("optim.lora.rank", "distill.optim.lora.rank")
_RANK = 128
_MOST = 16  # times as many devices are tried


def plan_state(config: ConfigDict, workdir: Path, topologies: str, output: str) -> int:
    """Print what each machine holds, and the smallest change where it does not fit; write JSON.

    Args:
      config: of a training run; ``config.plan`` names what is not there yet.
      workdir: of the file, unless ``output`` names it: ``<workdir>/plan/state.json``.
      topologies: one or several with commas, such as ``h100:8,h100:64,v5p:8x8x4``.

    Returns:
      The exit status: 0 if it fits every machine as it is, else 3.
    """
    bucket = choose_bucket(config, config.plan.bucket)
    # The devices of this machine would say what "auto" is.
    if config.precision.compute == "auto":
        config = override_keys(config, {"precision.compute": "bfloat16"})
    rows = []
    for text in topologies.split(","):
        where = parse_topology(text)
        rows.append(count_state(config, where, bucket))
        fits = rows[-1]["fits"]
        if config.task == "refl":
            # What streaming saves is asked of every plan.
            rows.append(count_state(config, where, bucket, {"refl.stream": not config.refl.stream}))
        if not fits:
            rows += find_change(config, where, bucket)
    target = as_path(output or workdir / "plan" / f"{STATE}.json").resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    result = {"config": config.name, "preset": config.preset, "bucket": list(bucket), "rows": rows}
    write_json(target, result)
    print(format_state(result))
    logging.info("wrote %s", target)
    return 0 if all(row["fits"] for row in rows if not row["changes"]) else 3


def count_state(
    config: ConfigDict,
    topology: Topology,
    bucket: tuple[int, ...],
    changes: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Bytes of one device by part, with ``changes`` of the config, and whether they fit.

    The mesh is that of the config. If it cannot divide the batch, several devices share a clip.

    Raises:
      VidlatentError: no mesh of these devices divides the batch.
    """
    changes = changes or {}
    program, mesh = _build(override_keys(config, changes), topology, bucket)
    parts = {name: count_device_bytes(tree) for name, tree in program.parts.items()}
    parts["batch and other arguments"] = count_device_bytes(program.arguments) - sum(parts.values())
    parts["gradients"] = _count_gradients(program)
    if config.task in REWARDED:
        *size, batch = bucket
        changed = override_keys(config, changes)
        ways = mesh.shape["data"] * mesh.shape["fsdp"] * changed.optim.accumulate
        parts["decoder and rewards"] = estimate_judging(changed, (*size, max(1, batch // ways)))
    limit = config.plan.memory_gib * GIB or topology.hardware.memory
    total = sum(parts.values())
    return {
        "topology": str(topology),
        "mesh": dict(mesh.shape),
        "changes": changes,
        "parts": {name: size for name, size in parts.items() if size},
        "total": total,
        "limit": limit if math.isfinite(limit) else None,
        "fits": total <= limit,
        "about": program.about,
    }


def find_change(
    config: ConfigDict, topology: Topology, bucket: tuple[int, ...]
) -> list[dict[str, Any]]:
    """The rows that were tried for a step that does not fit; the last one fits, if any does.

    Pieces of the batch come first, where decoder and rewards are counted, and adapters, which need
    no other machine, then twice as many devices and so on, as long as the batch spreads over them.
    """
    keys = [key for key in _LORA if _has(config, key)]
    tried: list[dict[str, Any]] = []
    pieces: dict[str, Any] = {}
    for more in _propose_pieces(config, topology, bucket):
        pieces |= more
        tried.append(count_state(config, topology, bucket, dict(pieces)))
        if tried[-1]["fits"]:
            return tried
    tried.append(count_state(config, topology, bucket, {**pieces, **dict.fromkeys(keys, _RANK)}))
    times = 2
    while not tried[-1]["fits"] and times <= _MOST:
        *grid, last = topology.grid
        larger = dataclasses.replace(topology, grid=(*grid, last * times))
        try:
            row = count_state(config, larger, bucket, pieces)
        except VidlatentError as error:
            logging.info("no more devices are tried: %s", error)
            break
        tried.append({**row, "changes": {**pieces, "topology": str(larger)}})
        times *= 2
    return tried


def _propose_pieces(
    config: ConfigDict, topology: Topology, bucket: tuple[int, ...]
) -> Iterator[dict[str, Any]]:
    """Keys by which a step by rewards judges less at a time: one video, then a piece of it."""
    if config.task == "grpo":
        yield from propose_judging(config)
    if config.task == "refl":
        sizes = dict(zip(AXES, resolve_sizes(config.mesh, topology.devices), strict=True))
        each = bucket[3] // (sizes["data"] * sizes["fsdp"])
        if each > config.optim.accumulate:
            yield {"optim.accumulate": each}


def _has(config: ConfigDict, key: str) -> bool:
    """Whether the step trains a network by this key."""
    node: Any = config
    for name in key.split("."):
        if name not in node:
            return False
        node = node[name]
    return not key.startswith("distill.") or config.task == "distill_score"


def _build(
    config: ConfigDict, topology: Topology, bucket: tuple[int, ...]
) -> tuple[Program, AbstractMesh]:
    def build(config: ConfigDict) -> tuple[Program, AbstractMesh]:
        # Shapes and shardings need no devices, which is all that a program is built from.
        mesh: Any = AbstractMesh(resolve_sizes(config.mesh, topology.devices), AXES)
        return build_program(config, "train", mesh, bucket), mesh

    try:
        return build(config)
    except DoesNotSpread as error:
        sizes = dict(zip(AXES, resolve_sizes(config.mesh, topology.devices), strict=True))
        changes = next(propose_changes(config, "train", sizes, bucket), None)
        if changes is None:
            raise VidlatentError(f"--topology={topology}: {error}") from error
        return build(override_keys(config, changes))


def _count_gradients(program: Program) -> int:
    """Of the network with most trained parameters: one network is updated at a time."""
    beside = program.parts.get("networks beside it", {})
    trained = [part["params"] for part in beside.values() if "opt" in part]
    return max(map(count_device_bytes, (program.parts["parameters"], *trained)))


def format_state(result: dict[str, Any]) -> str:
    """The table of machines, with a sentence about what is not in it."""
    rows = result["rows"]
    names = list(dict.fromkeys(name for row in rows for name in row["parts"]))
    cells = []
    for row in rows:
        changes = " ".join(_show(key, value) for key, value in row["changes"].items())
        axes = (f"{axis} {size}" for axis, size in row["mesh"].items() if size > 1)
        sizes = {name: _gib(row["parts"].get(name, 0)) for name in names}
        cells.append(
            {
                "machine": row["topology"],
                "changed": changes or "as it is",
                "mesh": ", ".join(axes) or "one device",
                **sizes,
                "total": _gib(row["total"]),
                "of": row["limit"] and _gib(row["limit"]),
                "fits": "yes" if row["fits"] else "no",
            }
        )
    judged = "decoder and rewards" in names
    kept = "of activations only those of decoder and rewards are estimated, by tracing"
    return (
        f"{result['config']} ({result['preset']}): {rows[0]['about']}. GiB of one device, by "
        "shapes: nothing was compiled or run, and "
        f"{kept if judged else 'activations are not counted'}.\n\n"
        + markdown_table(cells, aligned=True)
    )


def _show(key: str, value: Any) -> str:
    return f"--topology={value}" if key == "topology" else f"--config.{key}={value}"


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}"
