"""JobSets whose healthy pods stay when a run starts anew, an alpha feature of JobSet 0.11.

A pod that was lost is replaced; in the others the run's container starts again where it is, so that
nothing is scheduled, pulled or mounted anew. Beside the run an agent of JobSet's holds it back
until all pods are there. https://github.com/kubernetes-sigs/jobset, KEP 467.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vidlatent.parallel.together import LOST
from vidlatent.train.loop import INTERRUPTED

__all__ = ["STRATEGY", "find_agent_faults", "restart_in_place"]

STRATEGY = "InPlaceRestart"
_FOR_EVER = 2**31 - 1  # JobSet refuses any other backoffLimit with this strategy
_AGENT, _AGENT_STATUS, _PORT = "agent", 85, 8081
_MISTAKES = [1, 2]  # a fault of the program, or of the command: starting again in place is no use


def restart_in_place(jobset: dict[str, Any], agent: str) -> None:
    """Change a manifest of ``launch.gke`` so that its pods start again where they are.

    Args:
      jobset: is changed.
      agent: image of JobSet's ``in-place-restart-agent``.
    """
    # Lost pods make no Job fail, so every failure of a Job counts against maxRestarts.
    policy = {"maxRestarts": jobset["spec"]["failurePolicy"]["maxRestarts"]}
    jobset["spec"]["failurePolicy"] = policy | {"restartStrategy": STRATEGY}
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    (run,) = pod["containers"]
    codes = {"containerName": run["name"], "operator": "In", "values": _MISTAKES}
    job |= {
        "backoffLimit": _FOR_EVER,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": codes}]},
    }
    # Of a run that lost a process, and of one that saved because another pod is preempted.
    run |= {"restartPolicy": "Never", "restartPolicyRules": [_restart_all([LOST, INTERRUPTED])]}
    pod["initContainers"] = [_render_agent(agent)]


def _restart_all(statuses: list[int]) -> dict[str, Any]:
    return {
        "action": "RestartAllContainers",
        "exitCodes": {"operator": "In", "values": statuses},
    }


def _render_agent(image: str) -> dict[str, Any]:
    named = "metadata.annotations['jobset.sigs.k8s.io/jobset-name']"
    return {
        "name": _AGENT,
        "image": image,
        "restartPolicy": "Always",  # what makes it run beside the others
        "restartPolicyRules": [_restart_all([_AGENT_STATUS])],
        "env": [
            {"name": "JOBSET_NAME", "valueFrom": {"fieldRef": {"fieldPath": named}}},
            {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "IN_PLACE_RESTART_EXIT_CODE", "value": str(_AGENT_STATUS)},
            {"name": "STARTUP_PROBE_PATH", "value": "/barrier-is-down"},
            {"name": "STARTUP_PROBE_PORT", "value": str(_PORT)},
        ],
        # The run begins once this succeeds; an hour for the last pod to come.
        "startupProbe": {
            "httpGet": {"path": "/barrier-is-down", "port": _PORT},
            "periodSeconds": 1,
            "failureThreshold": 3600,
        },
    }


def find_agent_faults(job: Mapping[str, Any]) -> Iterator[str]:
    """What keeps the pods of a Job from starting again in place."""
    if job.get("backoffLimit") != _FOR_EVER:
        yield f"{STRATEGY} needs backoffLimit {_FOR_EVER}"
    if job.get("podReplacementPolicy") != "Failed":
        yield f"{STRATEGY} needs podReplacementPolicy: Failed"
    pod = job["template"]["spec"]
    agents = [c for c in pod.get("initContainers", ()) if c.get("restartPolicy") == "Always"]
    actions = [rule["action"] for c in agents for rule in c.get("restartPolicyRules", ())]
    if "RestartAllContainers" not in actions:
        yield f"{STRATEGY} needs an agent beside the run that restarts all containers"
    if "serviceAccountName" not in pod:
        yield f"{STRATEGY} needs serviceAccountName, whose account may read JobSets and patch pods"
