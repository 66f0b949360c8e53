"""Devices of a topology that need not exist: programs are compiled for them ahead of time."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
from jax.experimental import topologies
from ml_collections import ConfigDict

from vidlatent import config as configs
from vidlatent.errors import VidlatentError
from vidlatent.plan.hardware import Topology

__all__ = ["get_devices", "has_devices", "run_in_child"]

# Tell libtpu not to look for a TPU, and not to lock itself against other processes.
_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
_CHILD = "VIDLATENT_PLANS_HERE"
_GPUS_OF_A_NODE = 8  # of an HGX board of H100 or H200, connected by NVLink


def has_devices(topology: Topology) -> bool:
    """Whether this process, as it was started, can compile for the topology."""
    if topology.hardware.platform == "cpu":
        return jax.default_backend() == "cpu" and jax.device_count() >= topology.devices
    # XLA and the GPU plugin read their environment when they start, so only a child that was
    # started with it (`run_in_child`) can compile for GPUs.
    return jax.config.values["jax_platforms"] == "cpu" and (
        topology.hardware.platform == "tpu" or _CHILD in os.environ
    )


def get_devices(topology: Topology) -> list[jax.Device]:
    """The topology's devices, for ``make_mesh``. Call it only if ``has_devices`` is true.

    Raises:
      VidlatentError: the compiler is not installed, or does not know the topology.
    """
    platform = topology.hardware.platform
    if platform == "cpu":
        return jax.devices()[: topology.devices]
    try:
        if platform == "tpu":
            _require_module(topology, ("libtpu",), "pip install -e '.[plan]', the extra of plans")
            os.environ.update({key: os.environ.get(key, value) for key, value in _TPU.items()})
            # libtpu takes whole hosts only, which have several chips unless told otherwise.
            hosts = {"chips_per_host_bounds": [1, 1, 1]} if topology.devices == 1 else {}
            return topologies.get_topology_desc(str(topology), platform="tpu", **hosts).devices
        _require_module(
            topology,
            ("jax_cuda12_plugin", "jax_cuda13_plugin"),
            "pip install jax-cuda12-plugin and jax-cuda12-pjrt of jax's own version",
        )
        nodes = -(-topology.devices // _GPUS_OF_A_NODE)
        return topologies.get_topology_desc(
            topology.hardware.name,
            platform="cuda",
            # Slices x hosts x GPUs of a host.
            topology=f"1x{nodes}x{topology.devices // nodes}",
            target_config=_describe_gpu(topology),
        ).devices
    except (RuntimeError, NotImplementedError) as error:
        raise VidlatentError(f"--topology={topology}: {error}") from error


def _require_module(topology: Topology, modules: tuple[str, ...], remedy: str) -> None:
    if not any(importlib.util.find_spec(module) for module in modules):
        raise VidlatentError(
            f"--topology={topology} needs the compiler for it, and no such device: {remedy}."
        )


def _describe_gpu(topology: Topology) -> str:
    """XLA's description of a Hopper GPU (a text proto), with figures of its data sheet."""
    hardware = topology.hardware
    return f"""
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 12 minor: 9 }}
device_description_str: "{hardware.kinds[0]}"
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448 threads_per_core_limit: 2048
  core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: {hardware.bandwidth:.0f} l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: {hardware.memory:.0f}
  cuda_compute_capability {{ major: 9 }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
"""


def run_in_child(mode: str, config: ConfigDict, topology: Topology, output: Path) -> int:
    """Run the mode in a new process that is started for the topology; returns its exit status."""
    if _CHILD in os.environ:
        raise VidlatentError(f"--topology={topology}: JAX does not start for it on this machine.")
    environment = {**os.environ, **_TPU, "JAX_PLATFORMS": "cpu", _CHILD: "1"}
    # Programs that were compiled ahead of time cannot be read back from the cache.
    if topology.hardware.platform != "cpu":
        environment["JAX_ENABLE_COMPILATION_CACHE"] = "0"
    flags = environment.get("XLA_FLAGS", "")
    if topology.hardware.platform == "cpu":
        flags += f" --xla_force_host_platform_device_count={topology.devices}"
    if topology.hardware.platform == "gpu":
        # Autotuning times kernels on a GPU, and there is none.
        flags += " --xla_gpu_autotune_level=0"
        environment["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"  # there is no driver to check
        environment.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    environment["XLA_FLAGS"] = flags.strip()
    # The package may run from a checkout without being installed.
    package = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, (package, environment.get("PYTHONPATH")))
    )
    with tempfile.TemporaryDirectory() as folder:
        # The child takes the config from a workdir, with all that was set on the command line.
        configs.write(config, Path(folder))
        command = [sys.executable, "-m", "vidlatent.main", f"--mode={mode}"]
        command += [f"--workdir={folder}", f"--topology={topology}", f"--output={output}"]
        return subprocess.call(command, env=environment)
