"""Runs by XManager: on this machine for trying out, or on Vertex AI.

    xmanager launch launch/xm.py -- --config=configs/fsae.py --config.seed=0,1 --workdir=runs/seeds
    xmanager launch launch/xm.py -- --executor=vertex --topology=a100:8 \\
        --image=gcr.io/PROJECT/vidlatent --config=configs/fsae.py:paper --workdir=gs://BUCKET/fsae

Keys with commas make a sweep (``launch/sweep.py``), a work unit for each combination. XManager
finds a script by the name of its module, which is why this one is not called ``xmanager``. It has
an environment of its own, with this package in it: XManager needs an older protobuf.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags
from xmanager import xm, xm_local

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch.sweep import Point, check_points, expand
from vidlatent.errors import VidlatentError

__all__ = ["find_requirements", "launch", "main"]

_ROOT = Path(__file__).resolve().parents[1]
# Vertex's kinds that XManager 0.8 turns into machines; for H100 and TPU it names none.
_VERTEX = {"a100": (1, 2, 4, 8, 16), "l4": (1, 2, 4, 8)}

_CONFIG = flags.DEFINE_string("config", "", "config file and argument, as of vidlatent.main")
_WORKDIR = flags.DEFINE_string("workdir", "", "folder of all runs; a bucket's on Vertex")
_EXECUTOR = flags.DEFINE_enum("executor", "local", ["local", "vertex"], "where it runs")
_TOPOLOGY = flags.DEFINE_string("topology", "", "of Vertex: a100:8, l4:1, cpu:8")
_IMAGE = flags.DEFINE_string("image", "", "container of launch/Dockerfile.gpu, for Vertex")
_TITLE = flags.DEFINE_string("title", "vidlatent", "of the experiment")


def _define_overrides(words: Sequence[str]) -> None:
    """Let absl take ``--config.a.b=value``: the keys of a config are not known to it."""
    for word in words:
        found = re.match(r"--?(config\.[\w.]+)=", word)
        if found and found.group(1) not in flags.FLAGS:
            flags.DEFINE_string(found.group(1), None, "a key of the config")


def read_overrides() -> dict[str, str]:
    """The keys that were given, in the order of their names."""
    values = flags.FLAGS.flag_values_dict()
    return {
        name.removeprefix("config."): value
        for name, value in sorted(values.items())
        if name.startswith("config.") and value is not None
    }


def find_requirements(topology: str) -> Any:
    """XManager's requirements for ``a100:8`` on Vertex.

    Raises:
      VidlatentError: XManager makes no such machine of Vertex.
    """
    kind, _, count = topology.partition(":")
    if kind == "cpu" and count.isdecimal() and int(count):
        return xm.JobRequirements(cpu=int(count))
    if count.isdecimal() and int(count) in _VERTEX.get(kind, ()):
        return xm.JobRequirements(**{kind: int(count)})
    known = ", ".join(f"{name}:{'|'.join(map(str, n))}" for name, n in _VERTEX.items())
    raise VidlatentError(
        f"--topology={topology}: XManager makes {known} or cpu:N of Vertex; TPU slices and H100 "
        "nodes are started by launch/gke.py."
    )


def _package(experiment: Any) -> tuple[Any, Any]:
    """The executable and the executor."""
    if _EXECUTOR.value == "local":
        # Of the environment that this script runs in, with the sources beside it.
        binary = xm.binary(
            executor_spec=xm_local.Local.Spec(),
            path=sys.executable,
            args=["-m", "vidlatent.main"],
            env_vars={"PYTHONPATH": str(_ROOT)},
        )
        (executable,) = experiment.package([binary])
        return executable, xm_local.Local()
    requirements = find_requirements(_TOPOLOGY.value)
    container = xm.container(executor_spec=xm_local.Vertex.Spec(), image_path=_IMAGE.value)
    (executable,) = experiment.package([container])
    return executable, xm_local.Vertex(requirements=requirements)


def _arguments(config: str, workdir: str, point: Point) -> list[str]:
    place = f"{workdir.rstrip('/')}/{point.name}" if point.name else workdir
    return [f"--config={config}", f"--workdir={place}", *point.flags()]


def launch(experiment: Any, config: str, workdir: str, points: Sequence[Point]) -> None:
    """Add a work unit for each run."""
    executable, executor = _package(experiment)
    for point in points:
        # A list: XManager would write a dictionary as --key value.
        job = xm.Job(executable, executor, args=_arguments(config, workdir, point))
        experiment.add(job)


def _check() -> list[Point]:
    if not _CONFIG.value or not _WORKDIR.value:
        raise VidlatentError("give --config=configs/fsae.py and --workdir, a folder for the runs.")
    if _EXECUTOR.value == "vertex":
        find_requirements(_TOPOLOGY.value)
        if not _IMAGE.value or not _WORKDIR.value.startswith("gs://"):
            raise VidlatentError("Vertex needs --image, and a --workdir in a bucket, gs://...")
    points = expand(read_overrides())
    check_points(_CONFIG.value, points)
    return points


def main(_: Sequence[str]) -> None:
    """What ``xmanager launch`` calls."""
    try:
        points = _check()
    except VidlatentError as error:
        sys.exit(f"error: {error}")
    workdir = _WORKDIR.value
    if "://" not in workdir:
        workdir = str(Path(workdir).absolute())  # XManager starts jobs elsewhere
    config = _CONFIG.value
    name, colon, argument = config.partition(":")
    if _EXECUTOR.value == "local" and Path(name).exists():
        config = f"{Path(name).absolute()}{colon}{argument}"
    with xm_local.create_experiment(experiment_title=_TITLE.value) as experiment:
        launch(experiment, config, workdir, points)


_define_overrides(sys.argv)

if __name__ == "__main__":
    app.run(main)
