"""Rendered jobs on this machine: their commands run as processes, and are preempted and killed.

A JobSet's rules are followed by hand: all pods of a job that was preempted or failed end, and then
all are started anew by the same commands.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from vidlatent.parallel.together import LOST
from vidlatent.train.loop import INTERRUPTED

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
STEPS, SAVED_EVERY = 60, 20
# Four processes share two cores here: one thread each, and time to wait for one another. Programs
# are compiled once and then read, however short they are.
CROWDED = {
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false --xla_cpu_collective_timeout_seconds=300",
    "NPROC": "1",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}
JOBS = {
    "two GPU nodes": (["--topology=h100:16"], 2),
    "two slices of two hosts": (["--topology=v5p:2x2x2", "--slices=2"], 4),
}


def render(*flags):
    """The manifest that launch.gke prints."""
    keys = (
        f"train.steps={STEPS}",
        "train.log_every=1",
        "train.tensorboard=False",
        f"checkpoint.every={SAVED_EVERY}",
        "data.source=synthetic",
        "data.synthetic.clips=12",
        "data.buckets=((3,16,16,8),)",
        "data.validation_clips=4",
        "data.num_workers=0",
        "eval.every=0",
        "eval.pictures=0",
        "eval.metrics=('psnr',)",
        "mesh.data=2",
        # Preflight as rendered, but for the devices, which are this machine's.
        "processes.topology=",
    )
    done = subprocess.run(
        [
            *(sys.executable, "-m", "launch.gke", "--config=tests/helpers/micro_config.py"),
            *("--image=image", "--bucket=bucket", *flags),
            *(f"--config.{key}" for key in keys),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


def start(manifest, storage, cache):
    """All pods of a job as processes; ``storage`` and ``cache`` stand for the bucket."""
    job = manifest["spec"]["replicatedJobs"][0]
    pod = job["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    hosts = job["template"]["spec"]["parallelism"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    processes = []
    count = hosts * job["replicas"]
    for number in range(count):
        told = {e["name"]: e["value"] for e in container["env"] if "value" in e}
        told["JAX_COMPILATION_CACHE_DIR"] = str(cache)
        # Of GPU nodes these are in the manifest; slices are told by GKE, which is not here.
        if "JAX_NUM_PROCESSES" in told:
            assert told["JAX_NUM_PROCESSES"] == str(count)
        several = (address, str(count), str(number))
        names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
        told |= dict(zip(names, several, strict=True))
        command = [sys.executable, *container["command"][1:]]
        command += [arg.replace("/storage", str(storage)) for arg in container["args"]]
        processes.append(
            subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **told, **CROWDED},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
    return processes


def finish(processes, seconds):
    """Statuses and error outputs; whoever is left after ``seconds`` is killed."""
    texts = []
    try:
        for process in processes:
            texts.append(process.communicate(timeout=seconds)[1])
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    return [process.returncode for process in processes], texts


def wait_for_step(process, step):
    """What the process has said until that step."""
    deadline = time.monotonic() + 300
    said = []
    for line in process.stderr:
        said.append(line)
        if f"step {step}/{STEPS}" in line:
            return "".join(said)
        assert time.monotonic() < deadline, line
    raise AssertionError("".join(said)[-3000:])


def digests(storage):
    """Checksums of all arrays of the last step."""
    (run,) = (storage / "runs").iterdir()
    folder = run / "checkpoints" / str(STEPS) / "digests"
    bodies = [json.loads(file.read_text())["body"] for file in sorted(folder.glob("*.json"))]
    return [body["arrays"] for body in bodies]


def restart(manifest, tmp_path):
    """Start all anew, as the JobSet does."""
    return start(manifest, tmp_path / "storage", tmp_path / "cache")


@pytest.mark.parametrize("name", JOBS, ids=lambda name: name.replace(" ", "_"))
def test_a_job_that_is_preempted_and_loses_a_host_ends_as_one_that_does_not(name, tmp_path):
    flags, count = JOBS[name]
    manifest = render(*flags)
    undisturbed = start(manifest, tmp_path / "undisturbed", tmp_path / "cache")
    assert len(undisturbed) == count
    statuses, texts = finish(undisturbed, 400)
    assert set(statuses) == {0}, texts[0][-3000:]

    pods = restart(manifest, tmp_path)
    wait_for_step(pods[0], SAVED_EVERY + 5)
    for pod in pods:
        pod.send_signal(signal.SIGTERM)
    slice_ = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    grace = slice_["template"]["spec"]["terminationGracePeriodSeconds"]
    statuses, texts = finish(pods, grace)
    assert set(statuses) == {INTERRUPTED}, texts[0][-3000:]
    # The status that the job's rules take for a preemption.
    (rule,) = [r for r in slice_["podFailurePolicy"]["rules"] if "onExitCodes" in r]
    assert rule["onExitCodes"]["values"] == [INTERRUPTED]
    (saved,) = re.findall(r"saved step (\d+) in", texts[0])

    pods = restart(manifest, tmp_path)
    said = wait_for_step(pods[0], 2 * SAVED_EVERY + 5)
    assert f"resuming at step {saved} of {STEPS}" in said
    os.killpg(pods[-1].pid, signal.SIGKILL)
    statuses, texts = finish(pods, 120)
    assert statuses[-1] == -signal.SIGKILL
    # JAX aborts a process that it finds first to be without another, by SIGABRT.
    assert set(statuses[:-1]) <= {LOST, -signal.SIGABRT}, texts[0][-3000:]

    statuses, texts = finish(restart(manifest, tmp_path), 400)
    assert set(statuses) == {0}, texts[0][-3000:]
    assert f"resuming at step {2 * SAVED_EVERY} of {STEPS}" in texts[0]
    assert digests(tmp_path / "storage") == digests(tmp_path / "undisturbed")
