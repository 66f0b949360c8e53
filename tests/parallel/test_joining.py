"""Every kind of cluster by its variables, with JAX's own detection and without a cluster."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from jax._src import distributed
from jax._src.clusters import cloud_tpu_cluster, cluster

from vidlatent.errors import VidlatentError
from vidlatent.parallel import joining

ROOT = Path(__file__).parent.parent.parent
JAX = {
    "JAX_COORDINATOR_ADDRESS": "first:8476",
    "JAX_NUM_PROCESSES": "4",
    "JAX_PROCESS_ID": "3",
}
SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "node[007-008,012],other",
    "SLURM_NTASKS": "16",
    "SLURM_PROCID": "11",
    "SLURM_LOCALID": "3",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
}
FOUR_A_NODE = {"SLURM_STEP_TASKS_PER_NODE": "4(x2)"}
ONE_A_NODE = {
    **SLURM,
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
}
POD = {"TPU_WORKER_ID": "3", "TPU_WORKER_HOSTNAMES": "t-0,t-1,t-2,t-3"}
SLICES = {
    **POD,
    "MEGASCALE_NUM_SLICES": "2",
    "MEGASCALE_SLICE_ID": "1",
    "MEGASCALE_COORDINATOR_ADDRESS": "run-slice-0-0.run:8081",
}
MPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
}
MPI_ADDRESS = f"10.96.0.1:{61440 + (1531576320 >> 12) % 4096}"
GPUS = {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}
# JAX: (job % 4096) + 61440 is SLURM's port; (job >> 12) % 4096 + 61440 that of Open MPI.
FOUND = {
    "variables": (JAX, "first:8476", 4, 3, ""),
    "variables win over SLURM": ({**SLURM, **JAX}, "first:8476", 4, 3, ""),
    "slurm, a process a GPU": (SLURM, "node007:61441", 16, 11, "3"),
    "slurm, a process a GPU, all shown": ({**SLURM, **GPUS}, "node007:61441", 16, 11, "3"),
    "slurm, a process a GPU, bound to it": (
        {**SLURM, "CUDA_VISIBLE_DEVICES": "0"},
        "node007:61441",
        16,
        11,
        "",
    ),
    "slurm, a process a node": (ONE_A_NODE, "node007:61441", 2, 1, ""),
    "slurm, a process a node, all shown": ({**ONE_A_NODE, **GPUS}, "node007:61441", 2, 1, ""),
    "slurm, two GPUs a process": (
        {**SLURM, **GPUS, "SLURM_NTASKS": "8", "SLURM_PROCID": "7", **FOUR_A_NODE},
        "node007:61441",
        8,
        7,
        "6,7",
    ),
    "slurm, the tasks by nodes": (
        {k: v for k, v in ONE_A_NODE.items() if k != "SLURM_STEP_TASKS_PER_NODE"},
        "node007:61441",
        2,
        1,
        "",
    ),
    "slurm, one host": ({**SLURM, "SLURM_STEP_NODELIST": "gpu3"}, "gpu3:61441", 16, 11, "3"),
    "open mpi": (MPI, MPI_ADDRESS, 4, 2, "0"),
    "open mpi before slurm": ({**SLURM, **MPI}, MPI_ADDRESS, 4, 2, "0"),
    "gke, one slice": (POD, "t-0:8482", 4, 3, ""),
    "gke, addresses": (
        {"TPU_WORKER_ID": "1", "TPU_PROCESS_ADDRESSES": "a:8471,b:8471"},
        "a:8482",
        2,
        1,
        "",
    ),
    "gke, two slices": (SLICES, "run-slice-0-0.run:8482", 8, 7, ""),
    "gke, two slices of one host": (
        {**SLICES, "TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost"},
        "run-slice-0-0.run:8482",
        2,
        1,
        "",
    ),
}


@pytest.fixture
def joined(monkeypatch):
    """``join`` in an environment; returns what JAX would connect to."""

    def join(environment, on_tpu=False, metadata=None):
        for name in list(os.environ):
            if name.startswith(("JAX_", "SLURM_", "TPU_", "MEGASCALE_", "OMPI_", "CUDA_")):
                monkeypatch.delenv(name)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        for module in (cloud_tpu_cluster, cluster, joining.cloud_tpu_init):
            monkeypatch.setattr(module, "running_in_cloud_tpu_vm", on_tpu)
        # On GKE JAX asks the metadata for slices that the variables do not name.
        monkeypatch.setattr(cloud_tpu_cluster, "get_metadata", metadata or metadata_of({}))
        told = {"devices": ""}
        state = distributed.State()

        class Client:
            def connect(self):
                pass

        def make_client(address, process, **_):
            told.update(address=address, process=process)
            return Client()

        def make_service(address, count, **_):
            return None

        def set_config(name, value):
            if name == "jax_cuda_visible_devices":
                told["devices"] = value

        def initialize(*args, **kwargs):
            state.initialize(*args, **kwargs)
            told["count"] = state.num_processes

        monkeypatch.setattr(distributed._jax, "get_distributed_runtime_client", make_client)
        monkeypatch.setattr(distributed._jax, "get_distributed_runtime_service", make_service)
        monkeypatch.setattr(state, "initialize_preemption_sync_manager", lambda: None)
        monkeypatch.setattr(distributed.config, "update", set_config)
        monkeypatch.setattr(jax.distributed, "initialize", initialize)
        monkeypatch.setattr(socket, "gethostbyname", lambda name: "10.0.0.1")
        found = joining.join()
        assert found is None or found.processes == told["count"]
        return told

    return join


@pytest.mark.parametrize("kind", FOUND)
def test_jax_is_led_to_the_others(joined, kind):
    environment, address, count, process, devices = FOUND[kind]
    told = joined(environment, on_tpu=kind.startswith("gke"))
    assert told == {"address": address, "count": count, "process": process, "devices": devices}


def metadata_of(answers):
    def get(key):
        return (answers[key], 200) if key in answers else ("", 404)

    return get


@pytest.mark.parametrize(
    ("endpoints", "slices", "address", "count", "process"),
    [
        ("10.0.0.7,10.0.0.8,10.0.0.9", "", "10.0.0.7:8482", 3, 2),
        ("a:0:10.0.0.7,b:1:10.0.0.8,c:2:10.0.0.9", "", "10.0.0.7:8482", 3, 2),
        (
            "10.1.0.1,10.1.0.2,10.1.0.3",
            "MEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'\n"
            "MEGASCALE_COORDINATOR_ADDRESS: '10.0.0.7:8080'\n",
            "10.0.0.7:8482",
            6,
            5,
        ),
    ],
)
def test_hosts_of_tpu_vms_are_in_their_metadata(joined, endpoints, slices, address, count, process):
    metadata = metadata_of(
        {"agent-worker-number": "2", "worker-network-endpoints": endpoints, "tpu-env": slices}
    )
    told = joined({}, on_tpu=True, metadata=metadata)
    assert told == {"address": address, "count": count, "process": process, "devices": ""}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"JAX_NUM_PROCESSES": "1"},
        {**SLURM, "JAX_NUM_PROCESSES": "1"},
        {**SLURM, "SLURM_NTASKS": "1"},
        {"SLURM_NTASKS": "1", "SLURM_JOB_ID": "7"},  # a shell of a job
        {"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost"},
        {"OMPI_COMM_WORLD_SIZE": "1"},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},  # every pod has it
        {**POD, "JAX_PLATFORMS": "cpu"},
    ],
)
def test_alone(environment):
    assert joining.find_announced(environment, lambda: 0) is None


def test_a_tpu_vm_of_one_host_is_alone():
    assert joining.find_announced({}, lambda: 1) is None
    assert joining.find_announced({"JAX_PLATFORMS": "cpu"}, lambda: 4) is None
    found = joining.find_announced({"JAX_PLATFORMS": "tpu,cpu"}, lambda: 4)
    assert found is not None and found.processes == 4


@pytest.mark.parametrize(
    ("environment", "fault"),
    [
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, "set without JAX_NUM_PROCESSES, JAX_PROCESS_ID"),
        ({**JAX, "JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES=two: a whole number"),
        ({**JAX, "JAX_PROCESS_ID": "4"}, "JAX_PROCESS_ID=4 with JAX_NUM_PROCESSES=4"),
        ({**JAX, "JAX_PROCESS_ID": "-1"}, "JAX_PROCESS_ID=-1: a whole number"),
        ({**JAX, "JAX_COORDINATOR_ADDRESS": "first"}, "give host and port"),
        ({"SLURM_NTASKS": "2", "SLURM_JOB_ID": "7"}, "start the program by srun"),
        ({**SLURM, **GPUS, "SLURM_STEP_TASKS_PER_NODE": "3(x2)"}, "3 processes .* share 8 GPUs"),
        ({**SLURM, "SLURM_NTASKS": "many"}, "SLURM_NTASKS=many"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "Open MPI 5 does not set it"),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "without TPU_WORKER_ID"),
        ({**POD, "MEGASCALE_NUM_SLICES": "2"}, "without MEGASCALE_SLICE_ID, MEGASCALE_COORD"),
    ],
)
def test_contradictions_are_sentences(environment, fault):
    with pytest.raises(VidlatentError, match=fault):
        joining.find_announced(environment, lambda: 0)


def test_tpu_hosts_without_tpus_are_refused(joined):
    """Announced by GKE, and JAX sees no TPU, so that it would not look for the others."""
    with pytest.raises(
        VidlatentError, match="4 processes announced by GKE .*TPU_WORKER_ID=3.*extra 'tpu'"
    ):
        joined(POD, on_tpu=False)


def test_several_announced_and_one_found_is_refused():
    announced = joining.find_announced(JAX)
    with pytest.raises(VidlatentError, match="4 processes .*JAX_PROCESS_ID=3.* finds 1 on cpu"):
        joining.check_joined(announced)
    joining.check_joined(None)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


PROGRAM = """
import sys
from vidlatent.errors import VidlatentError
from vidlatent.parallel.joining import check_joined, join
try:
    announced = join(join_timeout=int(sys.argv[1]))
    check_joined(announced)
except VidlatentError as error:
    sys.exit(f"error: {error}")
import jax, numpy as np
from jax.experimental import multihost_utils
me = jax.process_index()
print(me, multihost_utils.process_allgather(np.array(me)).tolist())
"""


def start(environments, seconds):
    started = []
    for environment in environments:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "JAX_"))}
        env |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **environment}
        command = [sys.executable, "-c", PROGRAM, str(seconds)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, env=env, start_new_session=True, **pipes))
    try:
        return [(*p.communicate(timeout=60), p.returncode) for p in started]
    finally:
        for process in started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def of_slurm(process, count):
    return {
        "SLURM_JOB_ID": str(free_port()),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": str(count),
        "SLURM_PROCID": str(process),
        "SLURM_LOCALID": str(process),
        "SLURM_STEP_TASKS_PER_NODE": str(count),
        "SLURM_NODEID": "0",
    }


def test_two_tasks_of_slurm_find_each_other():
    job = {"SLURM_JOB_ID": str(os.getpid())}
    ended = start([{**of_slurm(k, 2), **job} for k in range(2)], 60)
    assert [out.splitlines()[-1] for out, _, _ in ended] == ["0 [0, 1]", "1 [0, 1]"], ended


def test_a_process_that_does_not_come_is_told_of():
    job = {"SLURM_JOB_ID": str(os.getpid() + 1)}
    ended = start([{**of_slurm(k, 3), **job} for k in (0, 2)], 4)
    assert [status for _, _, status in ended] == [2, 2], ended
    assert "some of 1 to 2 are missing" in ended[0][1]
    # The one that is told second may find process 0 gone.
    assert "some other than 2" in ended[1][1] or "does not answer process 2" in ended[1][1]
