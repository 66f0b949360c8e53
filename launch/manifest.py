"""Whether a manifest is one that a cluster takes and that runs as planned, checked offline.

Misspelt fields and wrong types are found by the schemas in ``launch/schemas``. The rest are rules
that no schema holds, and most of which a cluster breaks silently: a JobSet is accepted, and its
jobs are refused later.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from launch.in_place import STRATEGY, find_agent_faults
from vidlatent.errors import VidlatentError

__all__ = ["KUEUE", "Machine", "check_manifest"]

KUEUE = "kueue.x-k8s.io/queue-name"
_SCHEMAS = {
    "JobSet": "jobset_v1alpha2",
    "ClusterQueue": "kueue_clusterqueues_v1beta2",
    "LocalQueue": "kueue_localqueues_v1beta2",
    "ResourceFlavor": "kueue_resourceflavors_v1beta2",
}
_VERSIONS = {"JobSet": "jobset.x-k8s.io/v1alpha2"}
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")


@dataclasses.dataclass(frozen=True)
class Machine:
    """One TPU slice, or GPU nodes.

    Attributes:
      resource: its devices as Kubernetes names them.
      hosts: each with a pod and a process of its own.
      chips: devices of a host.
      selector: labels of the nodes.
    """

    resource: str
    hosts: int
    chips: int
    selector: Mapping[str, str]

    @property
    def is_tpu(self) -> bool:
        return self.resource == "google.com/tpu"


def check_manifest(
    manifest: Mapping[str, Any], machine: Machine, slices: int, save_seconds: int
) -> None:
    """Check a manifest for a machine.

    Raises:
      VidlatentError: all that is wrong with it.
    """
    kind = manifest.get("kind", "")
    if kind not in _SCHEMAS:
        raise VidlatentError(f"manifest of kind {kind!r}: expected one of {', '.join(_SCHEMAS)}.")
    faults = list(_find_schema_faults(manifest, kind))
    if kind == "JobSet" and not faults:  # the rules go by the structure
        faults = list(_find_job_faults(manifest, machine, slices, save_seconds))
    if faults:
        raise VidlatentError(f"{kind} is not valid: {'; '.join(faults)}.")


def _find_schema_faults(manifest: Mapping[str, Any], kind: str) -> Iterator[str]:
    try:
        import jsonschema
    except ImportError as error:
        raise VidlatentError(
            "manifests are checked by jsonschema: install the extra 'launch'."
        ) from error
    version = _VERSIONS.get(kind, "kueue.x-k8s.io/v1beta2")
    if manifest.get("apiVersion") != version:
        yield f"apiVersion {manifest.get('apiVersion')!r}, expected {version}"
    name = manifest.get("metadata", {}).get("name", "")
    if not _NAME.fullmatch(name) or len(name) > 63:
        yield f"metadata.name {name!r} has more than lower-case letters, digits and hyphens"
    file = Path(__file__).parent / "schemas" / f"{_SCHEMAS[kind]}.schema.json"
    validator = jsonschema.Draft202012Validator(json.loads(file.read_text()))
    for fault in validator.iter_errors(manifest):
        yield f"{fault.json_path[2:]}: {fault.message[:200]}"


def _find_job_faults(
    manifest: Mapping[str, Any], machine: Machine, slices: int, save_seconds: int
) -> Iterator[str]:
    name = manifest["metadata"]["name"]
    if len(manifest["spec"]["replicatedJobs"]) != 1:
        yield "a run is one replicated job"
    part = manifest["spec"]["replicatedJobs"][0]
    if part.get("replicas", 1) != slices:
        yield f"replicas {part.get('replicas', 1)}, and {slices} slices are planned"
    # <jobset>-<job>-<slice>-<host>-<five letters>, at most a label's length.
    if len(f"{name}-{part['name']}-{slices - 1}-{machine.hosts - 1}-12345") > 63:
        yield f"metadata.name {name!r} makes names of pods longer than 63"
    job = part["template"]["spec"]
    if not job.get("parallelism") == job.get("completions") == machine.hosts:
        yield (
            f"parallelism {job.get('parallelism')} and completions {job.get('completions')}, and "
            f"the machine has {machine.hosts} hosts"
        )
    if job.get("completionMode") != "Indexed":
        yield "completionMode is not Indexed, so that pods have no numbers"
    if manifest["spec"].get("failurePolicy", {}).get("restartStrategy") == STRATEGY:
        yield from find_agent_faults(job)
    elif job.get("backoffLimit") != 0:
        yield "backoffLimit is not 0, so that a pod would come back without the others"
    pod = job["template"]["spec"]
    if "podFailurePolicy" in job and pod.get("restartPolicy") != "Never":
        yield "podFailurePolicy needs restartPolicy: Never"
    containers = {container["name"] for container in pod["containers"]}
    for rule in job.get("podFailurePolicy", {}).get("rules", ()):
        named = rule.get("onExitCodes", {}).get("containerName")
        if named is not None and named not in containers:
            yield f"podFailurePolicy names the container {named!r}, which there is not"
    yield from _find_pod_faults(pod, machine, save_seconds)
    yield from _find_address_faults(pod, name, part["name"], machine)


def _find_pod_faults(pod: Mapping[str, Any], machine: Machine, save_seconds: int) -> Iterator[str]:
    if (grace := pod.get("terminationGracePeriodSeconds", 30)) < save_seconds:
        yield f"terminationGracePeriodSeconds {grace} is shorter than a save, {save_seconds}"
    if pod.get("nodeSelector") != dict(machine.selector):
        yield f"nodeSelector {pod.get('nodeSelector')}, expected {dict(machine.selector)}"
    if machine.resource not in [t.get("key") for t in pod.get("tolerations", ())]:
        yield f"no toleration of {machine.resource}"
    volumes = {volume["name"] for volume in pod.get("volumes", ())}
    container = pod["containers"][0]
    for mount in container.get("volumeMounts", ()):
        if mount["name"] not in volumes:
            yield f"the volume {mount['name']!r} is mounted and not defined"
    if "/dev/shm" not in [mount["mountPath"] for mount in container.get("volumeMounts", ())]:
        yield "/dev/shm is not mounted: the container's own has 64 MB"
    for kind in ("limits", "requests"):
        chips = container.get("resources", {}).get(kind, {}).get(machine.resource)
        if str(chips) != str(machine.chips):
            yield f"{kind} of {chips} {machine.resource}, and a host has {machine.chips}"


def _find_address_faults(
    pod: Mapping[str, Any], name: str, part: str, machine: Machine
) -> Iterator[str]:
    told = {entry["name"]: entry.get("value") for entry in pod["containers"][0].get("env", ())}
    if machine.is_tpu or machine.hosts == 1:
        return
    address = told.get("JAX_COORDINATOR_ADDRESS") or ""
    if address.rpartition(":")[0] != f"{name}-{part}-0-0.{name}":
        yield f"JAX_COORDINATOR_ADDRESS {address!r} is not that of the first pod"
    if told.get("JAX_NUM_PROCESSES") != str(machine.hosts):
        yield f"JAX_NUM_PROCESSES {told.get('JAX_NUM_PROCESSES')}, expected {machine.hosts}"
    if "JAX_PROCESS_ID" not in told:
        yield "JAX_PROCESS_ID is not set"
