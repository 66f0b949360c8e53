"""A run on GKE as a JobSet in plain YAML, from a config and the topology it was planned for.

    python -m launch.gke --config=configs/fsvideo_dit.py:paper,stage=target \\
        --topology=v5p:8x8x4 --image=IMAGE --bucket=BUCKET --config.mesh.context=4 > run.yaml

``--config.a.b=value`` are passed on to the run. ``--mode=encode`` and ``--mode=latents`` work with
a tokenizer's run, whose folder is ``--workdir``; the hosts share the clips. The manifest is checked
(``launch/manifest.py``) before it is printed; ``--dry-run`` prints it as well, with names in the
place of what is not given.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Sequence
from typing import Any

import yaml

from launch.in_place import restart_in_place
from launch.manifest import KUEUE, Machine, check_manifest
from vidlatent import config as configs
from vidlatent.config import split_overrides
from vidlatent.errors import VidlatentError
from vidlatent.plan.hardware import parse_topology
from vidlatent.train.loop import INTERRUPTED

__all__ = ["Job", "find_machine", "main", "render_job", "render_queue"]

_CONTAINER, _PORT = "vidlatent", 8476
# Labels of nodes: https://cloud.google.com/kubernetes-engine/docs/concepts/tpus and .../gpus
_ACCELERATORS = {
    "v5e": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
    "h100": "nvidia-h100-80gb",
    "h200": "nvidia-h200-141gb",
}
# What is worth a cluster; everything else is a command for one machine.
_MODES = ("train", "latents", "encode")
_CHIPS_OF_A_HOST = 4  # in slices of several hosts
_GPUS_OF_A_NODE = 8


@dataclasses.dataclass(frozen=True)
class Job:
    """What a manifest is made of.

    Attributes:
      name: of the JobSet, and of the run's folder.
      machine: one slice of TPUs, or all GPU nodes.
      flags: of ``vidlatent.main``, but for the workdir.
      workdir: as the pods see it; empty for a folder of the job's name under /storage/runs.
      image: container with the package.
      slices: of TPUs.
      bucket: of Google Cloud Storage, mounted at /storage; or
      claim: a PersistentVolumeClaim that all nodes can write to, mounted there.
      queue: Kueue's LocalQueue, empty for none.
      save_seconds: what a save takes, as the log of a run says.
      max_restarts: after failures; a preemption does not count.
      service_account: of the pods, which lets them use the bucket.
      agent: image of JobSet's agent, which lets pods start again where they are; empty: all pods
        are made anew.
      shm_gib: of /dev/shm, through which decoding processes pass frames.
    """

    name: str
    machine: Machine
    flags: tuple[str, ...]
    workdir: str = ""
    image: str = "IMAGE"
    slices: int = 1
    bucket: str = ""
    claim: str = ""
    queue: str = ""
    save_seconds: int = 60
    max_restarts: int = 5
    service_account: str = ""
    agent: str = ""
    shm_gib: int = 16

    @property
    def grace(self) -> int:
        """Seconds between SIGTERM and the end: a save that may have begun, one more, a step."""
        return 2 * self.save_seconds + 60


def find_machine(topology: str) -> Machine:
    """Hosts, chips and node labels of ``v5p:8x8x4`` or ``h100:16``.

    Raises:
      VidlatentError: GKE has no such machine.
    """
    where = parse_topology(topology)
    kind, count = where.hardware.name, where.devices
    if kind not in _ACCELERATORS:
        raise VidlatentError(f"--topology={topology}: GKE jobs need a TPU or GPU.")
    if where.hardware.platform == "gpu":
        each = min(count, _GPUS_OF_A_NODE)
        if count % each:
            raise VidlatentError(f"--topology={topology}: give a multiple of {each} GPUs.")
        selector = {"cloud.google.com/gke-accelerator": _ACCELERATORS[kind]}
        return Machine("nvidia.com/gpu", count // each, each, selector)
    # GKE writes the shorter sides first, but for the single host of v5p.
    grid = where.grid if where.grid == (2, 2, 1) else tuple(sorted(where.grid))
    known = _is_slice(kind, grid)
    if not known:
        raise VidlatentError(
            f"--topology={topology}: GKE has no such slice; sides are 2 or multiples of 4 of v5p, "
            "and 1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16 or 16x16 of v5e and v6e."
        )
    # One host of v5e and v6e has up to 8 chips.
    each = count if kind != "v5p" and count <= 8 else _CHIPS_OF_A_HOST
    selector = {
        "cloud.google.com/gke-tpu-accelerator": _ACCELERATORS[kind],
        "cloud.google.com/gke-tpu-topology": "x".join(map(str, grid)),
    }
    return Machine("google.com/tpu", count // each, each, selector)


def _is_slice(kind: str, grid: tuple[int, ...]) -> bool:
    if kind == "v5p":
        small = (
            all(side == 2 or side % 4 == 0 for side in grid) and grid[0] * grid[1] * grid[2] <= 64
        )
        return grid == (2, 2, 1) or small or all(side % 4 == 0 for side in grid)
    flat = {(1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16)}
    return grid in flat


def render_job(job: Job) -> dict[str, Any]:
    """The JobSet."""
    machine = job.machine
    labels = {KUEUE: job.queue} if job.queue else {}
    annotations = {}
    if machine.is_tpu:
        # One slice is one node pool, and no two slices of a run share one.
        annotations["alpha.jobset.sigs.k8s.io/exclusive-topology"] = "cloud.google.com/gke-nodepool"
    jobset = {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": job.name, "labels": labels, "annotations": annotations},
        "spec": {
            "failurePolicy": {
                "maxRestarts": job.max_restarts,
                # All pods of the old run are gone before the new one begins: no two writers.
                "restartStrategy": "BlockingRecreate",
                "rules": [
                    {
                        "name": "preempted",
                        "action": "RestartJobSetAndIgnoreMaxRestarts",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "replicatedJobs": [
                {
                    "name": "run",
                    "replicas": job.slices,
                    "template": {"spec": _render_slice(job)},
                }
            ],
        },
    }
    if job.agent:
        restart_in_place(jobset, job.agent)
    return jobset


def _render_slice(job: Job) -> dict[str, Any]:
    preempted = [
        {
            "action": "FailJob",
            "onExitCodes": {
                "containerName": _CONTAINER,
                "operator": "In",
                "values": [INTERRUPTED],
            },
        },
        {
            "action": "FailJob",
            "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
        },
    ]
    annotations = {"gke-gcsfuse/volumes": "true"} if job.bucket else {}
    return {
        "parallelism": job.machine.hosts,
        "completions": job.machine.hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": preempted},
        "template": {"metadata": {"annotations": annotations}, "spec": _render_pod(job)},
    }


def _render_pod(job: Job) -> dict[str, Any]:
    machine = job.machine
    shm = {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{job.shm_gib}Gi"}}
    storage: dict[str, Any] = {"name": "storage"}
    if job.bucket:
        storage["csi"] = {
            "driver": "gcsfuse.csi.storage.gke.io",
            "volumeAttributes": {"bucketName": job.bucket, "mountOptions": "implicit-dirs"},
        }
    else:
        storage["persistentVolumeClaim"] = {"claimName": job.claim}
    chips = {machine.resource: str(machine.chips)}
    pod: dict[str, Any] = {
        "restartPolicy": "Never",  # or podFailurePolicy is refused
        "terminationGracePeriodSeconds": job.grace,
        "nodeSelector": dict(machine.selector),
        "tolerations": [{"key": machine.resource, "operator": "Exists", "effect": "NoSchedule"}],
        "volumes": [shm, storage],
        "containers": [
            {
                "name": _CONTAINER,
                "image": job.image,
                # No shell in between, which would keep SIGTERM to itself.
                "command": ["python", "-m", "vidlatent.main"],
                "args": [*job.flags, f"--workdir={job.workdir or f'/storage/runs/{job.name}'}"],
                "env": _render_environment(job),
                "resources": {"limits": chips, "requests": dict(chips)},
                "volumeMounts": [
                    {"name": "shm", "mountPath": "/dev/shm"},
                    {"name": "storage", "mountPath": "/storage"},
                ],
            }
        ],
    }
    if machine.is_tpu:
        pod |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
        pod["containers"][0]["securityContext"] = {"privileged": True}
    if job.service_account:
        pod["serviceAccountName"] = job.service_account
    return pod


def _render_environment(job: Job) -> list[dict[str, Any]]:
    cache = {"name": "JAX_COMPILATION_CACHE_DIR", "value": "/storage/jax-cache"}
    if job.machine.is_tpu or job.machine.hosts == 1:
        return [cache]  # GKE tells the hosts of slices of each other
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    address = f"{job.name}-run-0-0.{job.name}:{_PORT}"
    return [
        cache,
        {"name": "JAX_COORDINATOR_ADDRESS", "value": address},
        {"name": "JAX_NUM_PROCESSES", "value": str(job.machine.hosts)},
        {"name": "JAX_PROCESS_ID", "valueFrom": {"fieldRef": {"fieldPath": index}}},
    ]


def render_queue(job: Job, namespace: str = "default") -> list[dict[str, Any]]:
    """Kueue's objects for one such run at a time: flavour, cluster's queue and local queue."""
    resource, flavor = job.machine.resource, f"{job.queue}-flavor"
    quota = str(job.machine.hosts * job.machine.chips * job.slices)
    resources = [{"name": resource, "nominalQuota": quota}]
    group = {"coveredResources": [resource], "flavors": [{"name": flavor, "resources": resources}]}
    head = "kueue.x-k8s.io/v1beta2"
    return [
        {
            "apiVersion": head,
            "kind": "ResourceFlavor",
            "metadata": {"name": flavor},
            "spec": {"nodeLabels": dict(job.machine.selector)},
        },
        {
            "apiVersion": head,
            "kind": "ClusterQueue",
            "metadata": {"name": f"{job.queue}-cluster"},
            "spec": {"namespaceSelector": {}, "resourceGroups": [group]},
        },
        {
            "apiVersion": head,
            "kind": "LocalQueue",
            "metadata": {"name": job.queue, "namespace": namespace},
            "spec": {"clusterQueue": f"{job.queue}-cluster"},
        },
    ]


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="launch.gke", allow_abbrev=False, description=__doc__.splitlines()[0]
    )
    parser.add_argument("--config", required=True, help="as of vidlatent.main; from the image")
    parser.add_argument("--mode", choices=_MODES, default="train", help="of vidlatent.main")
    parser.add_argument(
        "--workdir", default="", help="below /storage; without it /storage/runs/NAME"
    )
    parser.add_argument("--output", default="", help="of --mode=encode, below /storage")
    parser.add_argument("--topology", required=True, help="as of --mode=plan: v5p:8x8x4, h100:16")
    parser.add_argument("--slices", type=int, default=1, help="of TPUs")
    parser.add_argument("--name", default="", help="of run and JobSet")
    parser.add_argument("--image", default="", help="container with the package")
    parser.add_argument("--bucket", default="", help="Cloud Storage for runs and compiled programs")
    parser.add_argument("--claim", default="", help="PersistentVolumeClaim, in place of a bucket")
    parser.add_argument("--queue", default="", help="LocalQueue of Kueue")
    parser.add_argument("--with-queue", action="store_true", help="render Kueue's objects too")
    parser.add_argument("--save-seconds", type=int, default=60, help="what a save takes")
    parser.add_argument("--max-restarts", type=int, default=5, help="of the JobSet")
    parser.add_argument("--service-account", default="", help="of Kubernetes, for the bucket")
    parser.add_argument("--in-place", default="", metavar="AGENT", help="image of JobSet's agent")
    parser.add_argument("--shm-gib", type=int, default=16, help="shared memory of a pod, GiB")
    parser.add_argument("--dry-run", action="store_true", help="image and storage may be missing")
    return parser.parse_args(arguments)


def make_job(given: argparse.Namespace, overrides: dict[str, str]) -> Job:
    """The job that a command line asks for.

    Raises:
      VidlatentError: a config that cannot run, or something that the job needs is missing.
    """
    config = configs.load(given.config, overrides)
    _check_mode(given)
    if given.mode == "train" and config.train.stop_at:
        raise VidlatentError(
            f"config.train.stop_at={config.train.stop_at} ends with status {INTERRUPTED}, after "
            "which a job starts again, for ever: set config.train.steps."
        )
    machine = find_machine(given.topology)
    if given.slices < 1 or (given.slices > 1 and not machine.is_tpu):
        raise VidlatentError(
            f"--slices={given.slices}: several are slices of TPUs; give 1 of GPUs."
        )
    devices = machine.hosts * machine.chips * given.slices
    fixed = 1
    for size in config.mesh.to_dict().values():
        fixed *= max(size, 1)
    if devices % fixed:
        raise VidlatentError(
            f"config.mesh needs a multiple of {fixed} devices, and --topology={given.topology} "
            f"with --slices={given.slices} has {devices}."
        )
    if bool(given.bucket) + bool(given.claim) > 1:
        raise VidlatentError("give --bucket or --claim, not both.")
    if not given.dry_run and not (given.image and (given.bucket or given.claim)):
        raise VidlatentError("give --image and --bucket (or --claim), or --dry-run to look at it.")
    if given.with_queue and not given.queue:
        raise VidlatentError("--with-queue needs the name of the queue: --queue=NAME.")
    mode = () if given.mode == "train" else (given.mode,)
    made = re.sub(r"[^a-z0-9]+", "-", "-".join((config.name, config.preset, *mode)).lower())
    return Job(
        name=given.name or made.strip("-"),
        machine=machine,
        flags=(
            *(f"--mode={word}" for word in mode),
            f"--config={given.config}",
            *_preflight(given, overrides),
            *(f"--config.{key}={value}" for key, value in overrides.items()),
            *((f"--output={given.output}",) if given.output else ()),
        ),
        workdir=given.workdir,
        image=given.image or "IMAGE",
        slices=given.slices,
        bucket=given.bucket or ("" if given.claim else "bucket"),
        claim=given.claim,
        queue=given.queue,
        save_seconds=given.save_seconds,
        max_restarts=given.max_restarts,
        service_account=given.service_account,
        agent=given.in_place,
        shm_gib=given.shm_gib,
    )


def _check_mode(given: argparse.Namespace) -> None:
    if given.mode != "train" and not given.workdir:
        raise VidlatentError(
            f"--mode={given.mode} works with a tokenizer's run: --workdir=/storage/runs/NAME."
        )
    if given.mode == "encode" and not given.output:
        raise VidlatentError("--mode=encode writes a set: --output=/storage/latents/NAME.")
    if given.output and given.mode != "encode":
        raise VidlatentError(f"--output={given.output} is for --mode=encode.")
    for flag in ("workdir", "output"):
        folder = getattr(given, flag)
        # What a pod writes elsewhere is gone with it.
        if folder and not folder.startswith(("/storage/", "gs://")):
            raise VidlatentError(f"--{flag}={folder}: give a folder below /storage, or gs://...")


def _preflight(given: argparse.Namespace, overrides: dict[str, str]) -> list[str]:
    """Flags that make the run look at the machine first, unless the command says otherwise."""
    if given.mode != "train":
        return []
    flags = {"processes.preflight": "true"}
    if given.slices == 1:  # several slices have no name as a topology
        flags["processes.topology"] = given.topology
    return [f"--config.{key}={value}" for key, value in flags.items() if key not in overrides]


def main(arguments: Sequence[str]) -> int:
    """Print the manifest; returns the exit status."""
    try:
        rest, overrides = split_overrides(list(arguments))
        given = _parse(rest)
        job = make_job(given, overrides)
        manifests = [*(render_queue(job) if given.with_queue else ()), render_job(job)]
        for manifest in manifests:
            check_manifest(manifest, job.machine, job.slices, job.save_seconds)
    except VidlatentError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(yaml.safe_dump_all(manifests, sort_keys=False, width=100), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
