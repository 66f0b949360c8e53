"""Joining the processes of one run: who announces them, and how JAX finds the others.

The first of these that announces more than one process counts:

1. ``JAX_COORDINATOR_ADDRESS``, ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``, which the JobSets of
   ``launch/gke.py`` and ``launch/local.py`` set;
2. Open MPI, SLURM, TPU pods on GKE (one slice or several) and TPU VMs, whose addresses and numbers
   JAX's own detection reads.

Without any, the process is alone. A run whose processes do not find each other would train as many
models in one folder, so whatever is announced must be found.
"""

from __future__ import annotations

import dataclasses
import os
import re
import socket
import sys
import threading
from collections.abc import Callable, Mapping

import jax
from absl import logging
from jax._src import cloud_tpu_init  # whether this is a TPU host has no public name

from vidlatent.errors import VidlatentError

__all__ = ["Announced", "check_joined", "explain_missing", "find_announced", "join"]

_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_EARLIER_SECONDS = 1.0  # before JAX's own timeout, which aborts the process without a sentence


@dataclasses.dataclass(frozen=True)
class Announced:
    """Processes that a launcher has announced.

    Attributes:
      by: the launcher, in words.
      processes: how many, more than one.
      method: JAX's name of its detection; ``'deactivate'`` if address and number are known here.
      seen: the variables that say so.
      address: ``host:port`` of process 0, if known here.
      process: the number of this one, if known here.
      devices: which local GPUs this process takes; empty for all, None for JAX's choice.
    """

    by: str
    processes: int
    method: str
    seen: Mapping[str, str]
    address: str | None = None
    process: int | None = None
    devices: tuple[int, ...] | None = None

    def __str__(self) -> str:
        seen = " ".join(f"{name}={value}" for name, value in self.seen.items())
        return f"{self.processes} processes announced by {self.by} ({seen})"


def find_announced(
    environment: Mapping[str, str], ask_tpu_vm: Callable[[], int] | None = None
) -> Announced | None:
    """What the environment says about other processes; None if this one is alone.

    Args:
      environment: variables by name.
      ask_tpu_vm: returns how many hosts a TPU VM's metadata name; by default JAX asks them.

    Raises:
      VidlatentError: variables that contradict each other, or a part of those that are needed.
    """
    if any(environment.get(name) for name in _VARIABLES):
        return _of_variables(environment)
    ask_tpu_vm = ask_tpu_vm or _count_hosts_of_tpu_vm
    for find in (_of_open_mpi, _of_slurm, _of_tpu_pod):
        if found := find(environment):
            return found
    if _may_use_tpu(environment) and not _hosts_of_slice(environment) and (count := ask_tpu_vm()):
        if count > 1:
            return Announced("the metadata of this TPU VM", count, "gcetpu", {})
    return None


def _of_variables(environment: Mapping[str, str]) -> Announced | None:
    seen = {name: environment[name] for name in _VARIABLES if environment.get(name)}
    numbers = {n: _read_count(environment, n) for n in _VARIABLES[1:] if environment.get(n)}
    count = numbers.get("JAX_NUM_PROCESSES")
    if count == 1 and not numbers.get("JAX_PROCESS_ID"):
        return None  # told to be alone, whatever else the environment says
    missing = [name for name in _VARIABLES if name not in seen]
    if missing:
        raise VidlatentError(
            f"{', '.join(seen)} set without {', '.join(missing)}: a run over "
            "several processes needs all three variables."
        )
    address, process = seen["JAX_COORDINATOR_ADDRESS"], numbers["JAX_PROCESS_ID"]
    assert count is not None
    if not 0 <= process < count:
        raise VidlatentError(
            f"JAX_PROCESS_ID={process} with JAX_NUM_PROCESSES={count}: processes are numbered from "
            "0 to one less than their number."
        )
    if not re.fullmatch(r".+:\d+", address):
        raise VidlatentError(
            f"JAX_COORDINATOR_ADDRESS={address}: give host and port of process 0, as in host:8476."
        )
    return Announced("the variables JAX_*", count, "deactivate", seen, address, process)


def _of_open_mpi(environment: Mapping[str, str]) -> Announced | None:
    count = _read_count(environment, "OMPI_COMM_WORLD_SIZE", 1)
    if count < 2:
        return None
    names = ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK")
    seen = _pick(environment, names)
    if "OMPI_MCA_orte_hnp_uri" not in environment:
        raise VidlatentError(
            f"Open MPI announces {count} processes ({_say(seen)}) without OMPI_MCA_orte_hnp_uri, "
            "by which JAX finds process 0 (Open MPI 5 does not set it): set "
            "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID."
        )
    devices = _share_devices(
        environment,
        _read_count(environment, "OMPI_COMM_WORLD_LOCAL_RANK"),
        _read_count(environment, "OMPI_COMM_WORLD_LOCAL_SIZE", 0),
    )
    return Announced("Open MPI", count, "ompi", seen, devices=devices)


def _of_slurm(environment: Mapping[str, str]) -> Announced | None:
    count = _read_count(environment, "SLURM_NTASKS", 1)
    if count < 2:
        return None
    needed = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
    seen = _pick(environment, ("SLURM_NTASKS", *needed))
    missing = [name for name in needed if name not in environment]
    if missing:
        raise VidlatentError(
            f"SLURM announces {count} processes ({_say(seen)}) without {', '.join(missing)}: start "
            "the program by srun; for a single process, srun --ntasks=1 or JAX_NUM_PROCESSES=1."
        )
    local = _read_count(environment, "SLURM_LOCALID")
    devices = _share_devices(environment, local, _count_tasks_here(environment, count))
    return Announced("SLURM", count, "slurm", seen, devices=devices)


def _count_tasks_here(environment: Mapping[str, str], tasks: int) -> int:
    """How many tasks of the SLURM step run on this node; 0 if nothing says so."""
    # '8(x3),4' for three nodes of 8 and one of 4, in the order of SLURM_NODEID.
    told = environment.get("SLURM_STEP_TASKS_PER_NODE", "")
    each: list[int] = []
    for number, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", told):
        each += [int(number)] * int(times or 1)
    node = _read_count(environment, "SLURM_NODEID", 0)
    if node < len(each):
        return each[node]
    nodes = _read_count(environment, "SLURM_STEP_NUM_NODES", 0)
    return tasks // nodes if nodes and tasks % nodes == 0 else 0


def _share_devices(
    environment: Mapping[str, str], local: int, processes: int
) -> tuple[int, ...] | None:
    """The GPUs of process ``local`` of so many on one host, as JAX numbers them.

    JAX's own rule gives each process the GPU of its local number. That is wrong for one process a
    host, which takes all, and where the launcher shows each process its own GPU only.
    """
    if environment.get("JAX_LOCAL_DEVICE_IDS") or processes == 0:
        return None
    told = environment.get("CUDA_VISIBLE_DEVICES")
    visible = len(told.split(",")) if told else None
    if processes == 1 or visible == 1:
        return ()
    if visible is None:
        return None
    if visible % processes:
        raise VidlatentError(
            f"{processes} processes on this host share {visible} GPUs (CUDA_VISIBLE_DEVICES="
            f"{told}): start one process a host, one a GPU, or a number that divides them."
        )
    share = visible // processes
    return tuple(range(local * share, (local + 1) * share))


def _hosts_of_slice(environment: Mapping[str, str]) -> list[str]:
    names = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    return names.split(",") if names else []


def _of_tpu_pod(environment: Mapping[str, str]) -> Announced | None:
    hosts = _hosts_of_slice(environment)
    # Without names of hosts the slices are those of TPU VMs, whose metadata are asked.
    if not hosts or not _may_use_tpu(environment):
        return None
    slices = _read_count(environment, "MEGASCALE_NUM_SLICES", 1)
    if len(hosts) * slices < 2:
        return None
    names = ["TPU_WORKER_ID", "TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES"]
    names += ["MEGASCALE_NUM_SLICES", "MEGASCALE_SLICE_ID", "MEGASCALE_COORDINATOR_ADDRESS"]
    seen = _pick(environment, names)
    needed = ["TPU_WORKER_ID", *(names[4:] if slices > 1 else ())]
    missing = [name for name in needed if not environment.get(name)]
    if missing:
        raise VidlatentError(
            f"{len(hosts)} TPU hosts in {slices} slices are announced ({_say(seen)}) without "
            f"{', '.join(missing)}: start one pod a host, as launch/gke.py does."
        )
    return Announced("GKE", len(hosts) * slices, "gketpu", seen)


def _may_use_tpu(environment: Mapping[str, str]) -> bool:
    platforms = environment.get("JAX_PLATFORMS", "")
    return not platforms or "tpu" in platforms


def _count_hosts_of_tpu_vm() -> int:
    """How many hosts the metadata of a TPU VM name; 0 elsewhere."""
    if not cloud_tpu_init.running_in_cloud_tpu_vm:
        return 0
    from jax._src.clusters.cloud_tpu_cluster import GceTpuCluster

    try:
        return GceTpuCluster.get_process_count() if GceTpuCluster.is_env_present() else 0
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        # Requests' errors are OSErrors: a TPU in a container without the metadata server.
        logging.warning("The metadata of this TPU do not say whether it has other hosts: %s", error)
        return 0


def _read_count(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name) or ("" if default is None else str(default))
    if not re.fullmatch(r"\s*\d+\s*", text):
        raise VidlatentError(f"{name}={text}: a whole number is expected.")
    return int(text)


def _pick(environment: Mapping[str, str], names) -> dict[str, str]:
    return {name: environment[name] for name in names if name in environment}


def _say(seen: Mapping[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in seen.items())


def join(join_timeout: int = 300, silence_timeout: int = 45) -> Announced | None:
    """Join the run that the environment announces; returns None, and does nothing, alone.

    Args:
      join_timeout: seconds that all processes have to start.
      silence_timeout: of ``together.watch``; JAX is given longer, since its own check aborts the
        process.

    Raises:
      VidlatentError: as ``find_announced`` does, or what is announced cannot be found.
    """
    announced = find_announced(os.environ)
    if announced is None:
        return None
    if announced.method == "gketpu" and not cloud_tpu_init.running_in_cloud_tpu_vm:
        # JAX would join them all the same, and train on their CPUs.
        raise VidlatentError(
            f"{announced}, but JAX finds no TPU on this host: install the extra 'tpu', or set "
            "JAX_PLATFORMS=cpu for a process of its own."
        )
    logging.info("joining %s", announced)
    in_time = _end_before_jax_aborts(announced, join_timeout)
    try:
        jax.distributed.initialize(
            announced.address,
            announced.processes,
            announced.process,
            list(announced.devices) if announced.devices is not None else None,
            cluster_detection_method=announced.method,
            initialization_timeout=join_timeout,
            heartbeat_timeout_seconds=max(100, 2 * silence_timeout),
        )
    except (ValueError, RuntimeError, ImportError, OSError) as error:
        raise VidlatentError(
            f"{announced}, but they were not found by JAX ({error}): see docs/clusters.md for what "
            "each kind of cluster needs, or set the three variables JAX_COORDINATOR_ADDRESS, "
            "JAX_NUM_PROCESSES and JAX_PROCESS_ID."
        ) from error
    finally:
        in_time.cancel()
    return announced


def _end_before_jax_aborts(announced: Announced, seconds: int) -> threading.Timer:
    """A timer that says who is missing and ends the process, which JAX would abort."""

    def end() -> None:
        print(f"error: {explain_missing(announced, seconds)}", file=sys.stderr, flush=True)
        os._exit(2)

    timer = threading.Timer(max(seconds - _EARLIER_SECONDS, 0.5), end)
    timer.daemon = True
    timer.start()
    return timer


def explain_missing(announced: Announced, seconds: int) -> str:
    """Who did not come in time, as far as it can be told: process 0, or some of the others."""
    from jax._src import distributed

    address, me = distributed.global_state.coordinator_address, distributed.global_state.process_id
    if address is None:
        who = "the address of process 0 was not found"
    elif me == 0:
        who = (
            f"process 0 waits at {address}, and some of 1 to {announced.processes - 1} are missing"
        )
    elif _answers(address):
        who = (
            f"process 0 at {address} answers, so some other than {me} of 1 to "
            f"{announced.processes - 1} are missing"
        )
    else:
        who = f"process 0 at {address} does not answer process {me}"
    return (
        f"{announced}, and not all of them joined within {seconds} s: {who}; look at the logs of "
        "those, or raise config.processes.join_timeout."
    )


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=0.3).close()
    except OSError:
        return False
    return True


def check_joined(announced: Announced | None) -> None:
    """Refuse to go on as one process where several are announced; asks JAX for its devices.

    Raises:
      VidlatentError: JAX counts other processes than are announced.
    """
    if announced is not None and jax.process_count() != announced.processes:
        raise VidlatentError(
            f"{announced}, but JAX finds {jax.process_count()} on {jax.default_backend()}: they "
            "would write into one workdir without knowing of each other. Check the drivers and "
            "JAX_PLATFORMS, or set JAX_NUM_PROCESSES=1 for a process of its own."
        )
