"""Manifests of jobs on GKE: as planned, and refused where a cluster would run them wrong."""

import copy
import math
import re
import shlex
from pathlib import Path

import pytest
import yaml

from launch import gke
from launch.manifest import KUEUE, check_manifest
from vidlatent.errors import VidlatentError
from vidlatent.parallel.together import LOST
from vidlatent.plan.hardware import parse_topology
from vidlatent.train.loop import INTERRUPTED

ROOT = Path(__file__).resolve().parents[2]
TARGET = "--config=configs/fsvideo_dit.py:paper,stage=target"
STORED = ["--image=registry/vidlatent", "--bucket=runs"]
# Topology, flags -> hosts of a slice, devices of a host, slices, label of the topology.
RENDERED = {
    "v5p:8x8x4": ([], 64, 4, 1, "4x8x8"),
    "v5p:2x2x1": ([], 1, 4, 1, "2x2x1"),
    "v5p:4x4x4": (["--slices=2"], 16, 4, 2, "4x4x4"),
    "v5p:2x2x2": (["--queue=team", "--with-queue"], 2, 4, 1, "2x2x2"),
    "v5e:2x4": ([], 1, 8, 1, "2x4"),
    "v5e:4x4": (["--slices=4", "--queue=team", "--with-queue"], 4, 4, 4, "4x4"),
    "v6e:1x1": (["--claim=disk"], 1, 1, 1, "1x1"),
    "v6e:16x16": (["--save-seconds=300"], 64, 4, 1, "16x16"),
    "h100:4": ([], 1, 4, 1, ""),
    "h100:64": (["--queue=team", "--with-queue"], 8, 8, 1, ""),
    "h200:16": (["--claim=disk", "--service-account=runner"], 2, 8, 1, ""),
}


def render(capsys, *arguments):
    status = gke.main([TARGET, *arguments])
    captured = capsys.readouterr()
    return status, list(yaml.safe_load_all(captured.out)), captured.err


def pod_of(manifest):
    return manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


@pytest.mark.parametrize("topology", RENDERED)
def test_resources_are_those_of_the_plan(capsys, topology):
    flags, hosts, chips, slices, label = RENDERED[topology]
    storage = STORED[:1] if any("claim" in flag for flag in flags) else STORED
    status, manifests, error = render(capsys, f"--topology={topology}", *storage, *flags)
    assert status == 0, error
    assert len(manifests) == (4 if "--with-queue" in flags else 1)
    job = manifests[-1]["spec"]["replicatedJobs"][0]
    slice_ = job["template"]["spec"]
    assert (slice_["parallelism"], slice_["completions"], job["replicas"]) == (hosts, hosts, slices)
    pod = pod_of(manifests[-1])
    (resource,) = pod["containers"][0]["resources"]["limits"]
    assert pod["containers"][0]["resources"]["limits"][resource] == str(chips)
    # All devices are those that --mode=plan compiles for, in every slice.
    assert hosts * chips == parse_topology(topology).devices
    assert pod["nodeSelector"].get("cloud.google.com/gke-tpu-topology", "") == label
    if label:
        assert math.prod(map(int, label.split("x"))) == hosts * chips
    if "--with-queue" in flags:
        assert manifests[-1]["metadata"]["labels"] == {KUEUE: "team"}
        quota = manifests[1]["spec"]["resourceGroups"][0]["flavors"][0]["resources"][0]
        assert quota == {"name": resource, "nominalQuota": str(hosts * chips * slices)}


def test_a_preemption_starts_all_anew(capsys):
    _, (manifest,), _ = render(capsys, "--topology=h100:16", *STORED, "--save-seconds=200")
    rules = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]
    assert rules[0]["onExitCodes"]["values"] == [INTERRUPTED]
    assert rules[0]["action"] == "FailJob"
    (rule,) = manifest["spec"]["failurePolicy"]["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert pod_of(manifest)["terminationGracePeriodSeconds"] == 460


def test_pods_may_start_again_in_place(capsys):
    """The run's own statuses restart it, a mistake ends it, and what is missing is said."""
    flags = ["--topology=v5p:2x2x2", *STORED, "--in-place=agent:1"]
    status, _, error = render(capsys, *flags)
    assert status == 2 and "serviceAccountName" in error
    status, (manifest,), error = render(capsys, *flags, "--service-account=runner")
    assert status == 0, error
    policy = manifest["spec"]["failurePolicy"]
    assert policy == {"maxRestarts": 5, "restartStrategy": "InPlaceRestart"}
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    (mistake,) = job["podFailurePolicy"]["rules"]
    (rule,) = pod_of(manifest)["containers"][0]["restartPolicyRules"]
    assert set(rule["exitCodes"]["values"]) == {LOST, INTERRUPTED}
    assert not {0, LOST, INTERRUPTED} & set(mistake["onExitCodes"]["values"])
    machine = gke.find_machine("v5p:2x2x2")
    for path, value, fault in (
        ([*SLICE, "backoffLimit"], 0, "needs backoffLimit 2147483647"),
        ([*SLICE, "podReplacementPolicy"], None, "podReplacementPolicy: Failed"),
        ([*POD, "initContainers"], None, "needs an agent"),
    ):
        broken = copy.deepcopy(manifest)
        set_at(path, value)(broken)
        with pytest.raises(VidlatentError, match=fault):
            check_manifest(broken, machine, 1, 60)


def test_gpu_nodes_are_told_of_each_other(capsys):
    arguments = ["--topology=h200:32", *STORED, "--name=big"]
    _, (manifest,), _ = render(capsys, *arguments, "--config.optim.lr=1e-5")
    container = pod_of(manifest)["containers"][0]
    told = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert told["JAX_COORDINATOR_ADDRESS"] == "big-run-0-0.big:8476"
    assert told["JAX_NUM_PROCESSES"] == "4" and "JAX_PROCESS_ID" in told
    assert told["JAX_COMPILATION_CACHE_DIR"] == "/storage/jax-cache"
    assert "--config.optim.lr=1e-5" in container["args"]


def test_a_set_is_encoded_by_all_hosts(capsys):
    """Beside a tokenizer's run: the hosts are told of each other, so that they share the clips."""
    where = ["--workdir=/storage/runs/fsae", "--output=/storage/latents/target"]
    status, (manifest,), error = render(
        capsys, "--topology=h100:16", *STORED, "--mode=encode", *where
    )
    assert status == 0, error
    assert manifest["metadata"]["name"] == "fsvideo-dit-paper-stage-target-encode"
    container = pod_of(manifest)["containers"][0]
    assert container["args"] == ["--mode=encode", TARGET, *reversed(where)]
    assert {"name": "JAX_NUM_PROCESSES", "value": "2"} in container["env"]


def test_commands_of_the_page_make_manifests(capsys):
    """All of docs/cluster_walk.md, with the shell's variables in their places."""
    page = (ROOT / "docs" / "cluster_walk.md").read_text()
    lines = re.sub(r"\\\n\s*", " ", page).splitlines()
    values = dict(re.findall(r'^(IN|STAGE)="?([^"\n]+)"?$', page, re.MULTILINE))
    commands = [line for line in lines if line.startswith("python -m launch.gke ")]
    assert len(commands) == 5 and set(values) == {"IN", "STAGE"}
    for command in commands:
        words = command.partition(" > ")[0].removeprefix("python -m launch.gke ")
        for name, value in values.items():
            words = words.replace(f"${name}", value)
        assert gke.main(shlex.split(words)) == 0, capsys.readouterr().err
        assert yaml.safe_load(capsys.readouterr().out)["kind"] == "JobSet"


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["--topology=v5p:8x8x4"], "give --image"),
        (["--topology=v5p:6x8x4", *STORED], "GKE has no such slice"),
        (["--topology=v6e:3x3", *STORED], "GKE has no such slice"),
        (["--topology=h100:12", *STORED], "multiple of 8"),
        (["--topology=cpu:8", *STORED], "need a TPU or GPU"),
        (["--topology=h100:16", "--slices=2", *STORED], "slices of TPUs"),
        (["--topology=h100:8", *STORED, "--config.mesh.context=3"], "multiple of 3 devices"),
        (["--topology=h100:8", *STORED, "--config.train.stop_at=5"], "for ever"),
        (["--topology=h100:8", *STORED, "--claim=disk"], "not both"),
        (["--topology=h100:8", *STORED, "--with-queue"], "--queue=NAME"),
        (["--topology=h100:8", *STORED, "--mode=encode"], "--workdir=/storage/runs/NAME"),
        (["--topology=h100:8", *STORED, "--mode=encode", "--workdir=/storage/a"], "--output="),
        (["--topology=h100:8", *STORED, "--output=/storage/a"], "for --mode=encode"),
        (["--topology=h100:8", *STORED, "--workdir=runs/a"], "below /storage"),
        (["--topology=h100:8", *STORED, "--name=My_Run"], "lower-case"),
        (["--topology=h100:8", *STORED, f"--name={'a' * 50}"], "longer than 63"),
    ],
)
def test_jobs_that_cannot_run_are_a_sentence(capsys, arguments, fault):
    status, manifests, error = render(capsys, *arguments)
    assert status == 2 and not manifests
    assert error.startswith("error: ") and fault in error


def set_at(path, value):
    def change(manifest):
        *parents, last = path
        for key in parents:
            manifest = manifest[key]
        if value is None:
            del manifest[last]
        else:
            manifest[last] = value

    return change


PART = ["spec", "replicatedJobs", 0]
SLICE = [*PART, "template", "spec"]
POD = [*SLICE, "template", "spec"]
MAIN = [*POD, "containers", 0]
BROKEN = {
    "misspelt field": ([*SLICE, "paralelism"], 2, "paralelism"),
    "count as text": ([*SLICE, "completions"], "2", "'2' is not of type 'integer'"),
    "strategy of another kind": (
        ["spec", "failurePolicy", "restartStrategy"],
        "Restart",
        "'Restart' is not one of",
    ),
    "rule without a name": (
        ["spec", "failurePolicy", "rules", 0, "name"],
        None,
        "'name' is a required property",
    ),
    "number in the environment": ([*MAIN, "env", 0, "value"], 1, "1 is not of type 'string'"),
    "misspelt field of the pod": ([*POD, "restartpolicy"], "Never", "restartpolicy"),
    "version": (["apiVersion"], "jobset.x-k8s.io/v1", "expected jobset.x-k8s.io/v1alpha2"),
    "pods that restart": ([*POD, "restartPolicy"], "OnFailure", "needs restartPolicy: Never"),
    "fewer pods than hosts": ([*SLICE, "parallelism"], 1, "the machine has 2 hosts"),
    "pods without numbers": ([*SLICE, "completionMode"], "NonIndexed", "not Indexed"),
    "pods that come back": ([*SLICE, "backoffLimit"], 3, "backoffLimit is not 0"),
    "more slices": ([*PART, "replicas"], 2, "1 slices are planned"),
    "no time to save": ([*POD, "terminationGracePeriodSeconds"], 30, "shorter than a save"),
    "other nodes": ([*POD, "nodeSelector"], {"zone": "a"}, "nodeSelector"),
    "taints": ([*POD, "tolerations"], [], "no toleration"),
    "fewer devices": ([*MAIN, "resources", "limits"], {"nvidia.com/gpu": "4"}, "a host has 8"),
    "no shared memory": ([*MAIN, "volumeMounts", 0, "mountPath"], "/shm", "64 MB"),
    "unknown volume": ([*MAIN, "volumeMounts", 1, "name"], "disk", "'disk' is mounted"),
    "renamed container": ([*MAIN, "name"], "main", "names the container 'vidlatent'"),
    "another's address": ([*MAIN, "env", 1, "value"], "a-run-0-0.a:8476", "not that of the first"),
    "other count": ([*MAIN, "env", 2, "value"], "3", "JAX_NUM_PROCESSES 3"),
}


@pytest.fixture(scope="module")
def good():
    machine = gke.find_machine("h100:16")
    return gke.render_job(gke.Job("run", machine, (), bucket="runs")), machine


@pytest.mark.parametrize("name", BROKEN)
def test_broken_manifests_are_refused(good, name):
    path, value, fault = BROKEN[name]
    manifest, machine = copy.deepcopy(good[0]), good[1]
    check_manifest(manifest, machine, 1, 60)
    set_at(path, value)(manifest)
    with pytest.raises(VidlatentError) as refused:
        check_manifest(manifest, machine, 1, 60)
    assert fault in str(refused.value)


def job_of(manifest):
    """The Job of a JobSet as Kubernetes itself would get it."""
    template = manifest["spec"]["replicatedJobs"][0]["template"]
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "run"}, **template}


@pytest.mark.parametrize("topology", RENDERED)
def test_jobs_are_what_kubernetes_takes(topology):
    """By the published schemas of Kubernetes, which the package holds; it knows no JobSets."""
    kubernetes = pytest.importorskip("kubernetes_validate")
    flags = RENDERED[topology][0]
    storage = {"claim": "disk"} if "--claim=disk" in flags else {"bucket": "runs"}
    machine = gke.find_machine(topology)
    for account, agent in (("", ""), ("runner", ""), ("runner", "agent:1")):
        more = {"service_account": account, "agent": agent, **storage}
        job = gke.Job("run", machine, ("--config=a",), **more)
        kubernetes.validate(job_of(gke.render_job(job)), "1.37", strict=True)


@pytest.mark.parametrize(
    "name",
    ["misspelt field", "count as text", "number in the environment", "misspelt field of the pod"],
)
def test_kubernetes_refuses_what_we_refuse(good, name):
    kubernetes = pytest.importorskip("kubernetes_validate")
    path, value, _ = BROKEN[name]
    manifest = copy.deepcopy(good[0])
    set_at(path, value)(manifest)
    with pytest.raises(kubernetes.ValidationError):
        kubernetes.validate(job_of(manifest), "1.37", strict=True)


def test_a_queue_of_another_version_is_refused(good):
    job = gke.Job("run", good[1], (), bucket="runs", queue="team")
    queues = gke.render_queue(job)
    for queue in queues:
        check_manifest(queue, good[1], 1, 60)
    queues[1]["spec"]["cohort"] = "all"  # v1beta1's name of cohortName
    with pytest.raises(VidlatentError, match="cohort"):
        check_manifest(queues[1], good[1], 1, 60)
