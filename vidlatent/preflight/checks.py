"""The checks of ``--mode=preflight``. Each gives rows of a table: what was found, what is needed.

All processes run all checks in the same order: some of them are collective operations.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from vidlatent.bench.device import measure_peaks, time_runs
from vidlatent.data.options import DataOptions
from vidlatent.data.sources.base import make_source
from vidlatent.data.sources.latents import LatentSource
from vidlatent.errors import VidlatentError
from vidlatent.files import dump_json
from vidlatent.models.load import resolve_dtype
from vidlatent.parallel.mesh import make_mesh, mesh_for_batches
from vidlatent.parallel.together import compare
from vidlatent.paths import as_path, is_remote
from vidlatent.plan.build import build_program, choose_bucket
from vidlatent.plan.costs import count_device_bytes
from vidlatent.plan.hardware import HARDWARE, Hardware, Topology
from vidlatent.train.identity import describe_run

__all__ = ["Row", "check_clocks", "check_code", "check_data", "check_devices", "check_links",
           "check_memory", "check_speed", "check_storage", "find_hardware", "worst"]  # fmt: skip

OK, WARNING, FAILED = "ok", "warning", "failed"
_LEAST_SPEED = 0.7  # of the middle of all processes: one slow chip slows down all
_LEAST_LINK = 0.3  # of the data sheet
_MOST_SKEW = 5.0  # seconds between clocks: certificates and the times in logs need no more
_DAY = 86_400
_STORAGE_BYTES = 64 << 20  # that each process writes
_MOST_SAVING = 0.2  # of the time between two saves
_HEADROOM = 0.9  # of a device's memory, for what is not the state


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
      check: what was looked at.
      found, needed: in words.
      verdict: 'ok', 'warning' or 'failed'.
      remedy: what to do unless it is 'ok'.
    """

    check: str
    found: str
    needed: str
    verdict: str
    remedy: str = ""


def _judge(good: bool, otherwise: str = FAILED) -> str:
    return OK if good else otherwise


def _gather(number: float) -> np.ndarray:
    """The numbers of all processes in float32, ``[processes]``."""
    return multihost_utils.process_allgather(np.float32(number)).reshape(-1)


def find_hardware() -> Hardware:
    """The row of the table for this machine's devices; one without rates if it is not known."""
    kind = jax.devices()[0].device_kind
    known = [entry for entry in HARDWARE.values() if kind in entry.kinds]
    return known[0] if known else Hardware(kind, jax.default_backend(), kinds=(kind,))


def check_devices(topology: Topology | None) -> list[Row]:
    """Kind and number of the devices, and that all processes have as many."""
    devices, kind = jax.device_count(), jax.devices()[0].device_kind
    counts = _gather(jax.local_device_count()).astype(int)
    found = f"{devices} {kind} in {jax.process_count()} processes"
    rows = [
        Row(
            "devices of a process",
            " ".join(map(str, sorted(set(counts.tolist())))),
            "the same for all",
            _judge(len(set(counts.tolist())) == 1),
            f"process {int(np.argmin(counts))} sees the fewest: look at that host",
        )
    ]
    if topology is None:
        return [Row("devices", found, "", OK), *rows]
    good = devices == topology.devices and kind in topology.hardware.kinds
    remedy = "start as many processes as the machine has hosts, or plan for this machine"
    return [Row("devices", found, str(topology), _judge(good), remedy), *rows]


def check_code(config: ConfigDict) -> list[Row]:
    """That all processes run the same code with the same config."""
    try:
        compare(describe_run(config), "start all processes from the same code and config")
    except VidlatentError as error:
        return [Row("code and config", str(error), "the same on all processes", FAILED, "see it")]
    return [Row("code and config", "the same on all processes", "", OK)]


def check_data(config: ConfigDict) -> list[Row]:
    """That all processes list the same clips; nobody looks inside, which takes long."""
    facts = _list_data(config)
    try:
        compare({"data": facts}, "let config.data.path show the same files to all processes")
    except VidlatentError as error:
        return [Row("data", str(error), "the same on all processes", FAILED, "see it")]
    if "unreadable" in facts:
        return [Row("data", facts["unreadable"], "clips", FAILED, "see it")]
    return [Row("data", f"{facts['clips']} clips on all processes", "", OK)]


def _list_data(config: ConfigDict) -> dict[str, Any]:
    """What this process sees of the data: its names and sizes, or why it sees nothing."""
    try:
        source = make_source(DataOptions.from_mapping(config.data.to_dict()), config.seed)
        entries = source.entries()
    except VidlatentError as error:
        # Said by all or compared: raised here it would leave the others waiting.
        return {"unreadable": str(error)}
    # Sizes without times of change, which differ between copies of one data set.
    listed: list[Any] = [(entry.name, entry.stamp[:1], entry.part) for entry in entries]
    if isinstance(source, LatentSource):
        listed.append(source.header.to_json())
    digest = hashlib.sha256(dump_json(listed, sort_keys=True).encode()).hexdigest()
    return {"clips": len(entries), "names and sizes": digest}


def check_clocks() -> list[Row]:
    """That the clocks of the hosts agree."""
    # All read theirs right after a barrier.
    multihost_utils.sync_global_devices("clocks")
    # Milliseconds within a day, as 32 bits hold them; the day may end between two readings.
    times = multihost_utils.process_allgather(np.int32(time.time() % _DAY * 1000)).reshape(-1)
    apart = (times - times[0] + _DAY * 500) % (_DAY * 1000) - _DAY * 500
    skew = float(apart.max() - apart.min()) / 1000
    verdict = _judge(skew <= _MOST_SKEW, WARNING)
    return [Row("clocks", f"{skew:.2f} s apart", f"at most {_MOST_SKEW:.0f} s", verdict, "use NTP")]


def check_speed(hardware: Hardware) -> list[Row]:
    """Matrix products on one device of each process."""
    rates = _gather(measure_peaks(jnp.bfloat16, repeats=3)["flops"])
    slowest = float(rates.min() / np.median(rates))
    share = f", {np.median(rates) / hardware.flops:.0%} of the data sheet" if hardware.flops else ""
    # Processes of one machine share its cores, and one of them may be busy.
    otherwise = WARNING if hardware.platform == "cpu" else FAILED
    return [
        Row(
            "matrix products",
            f"{np.median(rates) / 1e12:.3g} TFLOP/s{share}; slowest at {slowest:.0%} of the middle",
            f"slowest at {_LEAST_SPEED:.0%} or more",
            _judge(slowest >= _LEAST_SPEED, otherwise),
            f"replace the host of process {int(np.argmin(rates))}",
        )
    ]


def check_links(hardware: Hardware, size: int = 64 << 20) -> list[Row]:
    """Bytes a second at which a device sends in a sum over all devices."""
    count = jax.device_count()
    if count == 1:
        return [Row("links", "one device", "", OK)]
    if hardware.platform == "cpu":
        size = min(size, 4 << 20)
    mesh = make_mesh({"data": 1, "fsdp": -1, "context": 1, "tensor": 1})
    where = NamedSharding(mesh, PartitionSpec("fsdp"))
    per_device = size // 4
    rows = jax.jit(lambda: jnp.ones((count, per_device), jnp.float32), out_shardings=where)()
    total = jax.jit(
        lambda x: jnp.broadcast_to(x.sum(0), x.shape), out_shardings=where
    )  # a sum over devices, of which each keeps the whole
    seconds = min(time_runs(lambda _: total(rows), 1, 5).seconds)
    # A ring sends twice all but one part of the array.
    rate = float(_gather(2 * (count - 1) / count * size / seconds).min())
    value = float(jax.device_get(jax.jit(lambda x: x[0, 0])(total(rows))))
    if value != count:
        return [Row("links", f"a sum over devices is {value}", str(count), FAILED, "ask for help")]
    found = f"{rate / 1e9:.3g} GB/s a device"
    if not hardware.link:
        return [Row("links", found, "not in a data sheet", OK)]
    share = rate / hardware.link
    needed = f"{_LEAST_LINK:.0%} of {hardware.link / 1e9:.0f} GB/s or more"
    remedy = "look whether the fast network is used (NCCL_DEBUG=INFO), or the slice is whole"
    verdict = _judge(share >= _LEAST_LINK, WARNING)
    return [Row("links", f"{found}, {share:.0%} of the data sheet", needed, verdict, remedy)]


def check_memory(config: ConfigDict, hardware: Hardware) -> tuple[list[Row], int]:
    """That the training state fits; its bytes on one device."""
    config = config.copy_and_resolve_references()
    bucket = choose_bucket(config, ())
    mesh = mesh_for_batches(config.mesh, config.data.buckets)
    with config.unlocked():
        config.precision.compute = jnp.dtype(resolve_dtype(config)).name
    program = build_program(config, "train", mesh, bucket)
    held = count_device_bytes(program.arguments)
    stats = jax.local_devices()[0].memory_stats() or {}
    limit = stats.get("bytes_limit") or hardware.memory
    if not np.isfinite(limit):
        return [Row("memory", f"state {held / 2**30:.3g} GiB a device", "unknown", OK)], held
    found = f"state {held / 2**30:.3g} of {limit / 2**30:.3g} GiB a device"
    remedy = "activations come on top: see --mode=plan, and raise config.mesh.fsdp"
    verdict = _judge(held <= _HEADROOM * limit)
    return [Row("memory", found, f"at most {_HEADROOM:.0%}", verdict, remedy)], held


def check_storage(workdir: Any, held: int, interval: float) -> list[Row]:
    """That all processes can write to the workdir, and how long a save takes.

    Args:
      workdir: of the run.
      held: bytes of the state on one device.
      interval: seconds between saves; 0 if unknown.
    """
    folder = as_path(workdir)
    file = folder / f".preflight-{jax.process_index()}"
    seconds, failure = 0.0, ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        begin = time.perf_counter()
        _write(file, os.urandom(_STORAGE_BYTES))
        seconds = time.perf_counter() - begin
        file.unlink()
    except Exception as error:  # libraries of stores raise errors of all kinds
        failure = " ".join(str(error).split())[:100] or type(error).__name__
    failed = int(_gather(bool(failure)).sum())
    if failed:
        remedy = "mount the folder, or give the service account the right to write"
        found = f"{failed} processes cannot write ({failure or 'others say why'})"
        return [Row("storage", found, "all can write", FAILED, remedy)]
    rate = _STORAGE_BYTES / float(_gather(seconds).max())
    save = held * jax.local_device_count() / rate
    found = f"{rate / 2**20:.0f} MiB/s a process, so a save takes about {save:.0f} s"
    if not interval:
        return [Row("storage", found, "", OK)]
    remedy = "raise config.checkpoint.every, or use faster storage"
    needed = f"at most {_MOST_SAVING:.0%} of the {interval:.0f} s between saves"
    return [Row("storage", found, needed, _judge(save <= _MOST_SAVING * interval, WARNING), remedy)]


def _write(file: Any, data: bytes) -> None:
    with file.open("wb") as target:
        target.write(data)
        if not is_remote(file):
            target.flush()
            os.fsync(target.fileno())


def worst(rows: Sequence[Row]) -> str:
    """The gravest verdict."""
    verdicts: Mapping[str, int] = {OK: 0, WARNING: 1, FAILED: 2}
    return max((row.verdict for row in rows), key=verdicts.__getitem__)
