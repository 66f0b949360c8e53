"""What must be equal on all processes of a run, and what went wrong with its data."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

import vidlatent
from vidlatent import config as configs
from vidlatent.checkpoint.storage import PACKAGES
from vidlatent.errors import VidlatentError
from vidlatent.nested import flatten

__all__ = ["check_data", "describe_run", "explain_data_error"]

# Where a machine keeps its copy of the data; what lies there is compared by its fingerprint.
_OF_THE_MACHINE = ("data.path", "data.index_cache")


def describe_run(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """The config by key and the versions of the code, for ``parallel.together.compare``."""
    keys = flatten(config.to_dict(), ".")
    # As text, because JSON would tell a tuple from a list.
    stated = {key: repr(value) for key, value in keys.items() if key not in _OF_THE_MACHINE}
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"config": stated, "code": {"vidlatent": hash_sources(), **versions}}


def check_data(
    config: ConfigDict,
    workdir: Path,
    step: int,
    saved: Mapping[str, Any] | None,
    fingerprint: str,
) -> None:
    """Refuse to take a run for one on other data.

    A finished one would report on what it never saw, and one that goes on would mix both in
    silence.

    Args:
      config: what was asked for.
      workdir: of the run.
      step: that it is at.
      saved: its stored position in the data; None if unknown.
      fingerprint: of the data that the config names; the same data may have moved.

    Raises:
      VidlatentError: the data is other.
    """
    other = configs.find_other_data(config, workdir)
    if other and saved and saved["fingerprint"] != fingerprint:
        raise VidlatentError(
            f"{workdir} is a run on {other}, at step {step} of {config.train.steps}, and this "
            f"command names {configs.describe_data(config.data)}: give another --workdir for a run "
            f"on that data, which starts from this one by --config.train.init_from={workdir}."
        )


def hash_sources() -> str:
    """Hex SHA-256 of the package's source files: their names and what is in them."""
    root, total = Path(vidlatent.__file__).parent, hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        total.update(f"{file.relative_to(root)}\0".encode())
        total.update(file.read_bytes())
    return total.hexdigest()


def explain_data_error(error: Exception, workers: int) -> str:
    """One sentence for an error that reading a batch has raised."""
    if isinstance(error, VidlatentError):
        return str(error)
    text = " ".join(str(error).split())[:300]
    if workers and "terminated unexpectedly" in text:
        return (
            f"A decoding process ended ({text}): most often the machine has no memory left, so set "
            f"config.data.num_workers below {workers}, or config.data.prefetch lower."
        )
    return (
        f"The next batch cannot be read ({type(error).__name__}: {text}): look at the data in "
        "config.data.path."
    )
