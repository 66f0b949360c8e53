"""Rendered jobs on this machine: their commands run as processes, and are preempted and killed.

A JobSet's rules are followed by hand: all pods of a job that was preempted or failed end, and then
all are started anew by the same commands.
"""

import json
import os
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
STEPS = 60


def render(*flags):
    """The manifest that launch.gke prints."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "launch.gke", "--config=tests/tiny.py", "--image=image"),
            *("--bucket=bucket", *flags, f"--config.train.steps={STEPS}"),
            *("--config.train.log_every=1", "--config.checkpoint.every=20"),
            # Preflight as rendered, but for the devices, which are this machine's.
            *("--config.eval.every=0", "--config.processes.topology="),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


def start(manifest, storage):
    """All pods of a job as processes; ``storage`` stands for the bucket."""
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
        told["JAX_COMPILATION_CACHE_DIR"] = os.environ.get("JAX_COMPILATION_CACHE_DIR", "")
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
                env={**os.environ, **told, "XLA_FLAGS": ""},
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
    deadline = time.monotonic() + 300
    said = []
    for line in process.stderr:
        said.append(line)
        if f"step {step}/{STEPS}" in line:
            return
        assert time.monotonic() < deadline, line
    raise AssertionError("".join(said)[-3000:])


def digests(storage):
    """Checksums of all arrays of the last step."""
    (run,) = (storage / "runs").iterdir()
    folder = run / "checkpoints" / str(STEPS) / "digests"
    bodies = [json.loads(file.read_text())["body"] for file in sorted(folder.glob("*.json"))]
    return [body["arrays"] for body in bodies]


JOBS = {
    "two GPU nodes": ["--topology=h100:16"],
}


@pytest.fixture(scope="module", params=JOBS, ids=lambda name: name.replace(" ", "_"))
def job(request, tmp_path_factory):
    """A manifest, and the checksums that a run without a disturbance ends with."""
    manifest = render(*JOBS[request.param])
    storage = tmp_path_factory.mktemp("undisturbed")
    statuses, texts = finish(start(manifest, storage), 400)
    assert set(statuses) == {0}, texts[0][-3000:]
    return manifest, digests(storage)


def test_a_preempted_job_resumes_bitwise(job, tmp_path):
    manifest, expected = job
    pods = start(manifest, tmp_path)
    wait_for_step(pods[0], 25)
    slice_ = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    for pod in pods:
        pod.send_signal(signal.SIGTERM)
    grace = slice_["template"]["spec"]["terminationGracePeriodSeconds"]
    statuses, texts = finish(pods, grace)
    assert set(statuses) == {INTERRUPTED}, texts[0][-3000:]
    # The status that the job's rules take for a preemption.
    (rule,) = [r for r in slice_["podFailurePolicy"]["rules"] if "onExitCodes" in r]
    assert rule["onExitCodes"]["values"] == [INTERRUPTED]
    statuses, texts = finish(start(manifest, tmp_path), 400)
    assert set(statuses) == {0}, texts[0][-3000:]
    assert "resuming at step" in texts[0]
    assert digests(tmp_path) == expected


def test_a_killed_host_ends_all_and_the_newest_step_goes_on(job, tmp_path):
    manifest, expected = job
    pods = start(manifest, tmp_path)
    wait_for_step(pods[0], 45)
    os.killpg(pods[-1].pid, signal.SIGKILL)
    statuses, texts = finish(pods, 120)
    assert statuses[-1] == -signal.SIGKILL
    # JAX aborts a process that it finds first to be without another, by SIGABRT.
    assert set(statuses[:-1]) <= {LOST, -signal.SIGABRT}, texts[0][-3000:]
    statuses, texts = finish(start(manifest, tmp_path), 400)
    assert set(statuses) == {0}, texts[0][-3000:]
    assert "resuming at step 40" in texts[0]
    assert digests(tmp_path) == expected
