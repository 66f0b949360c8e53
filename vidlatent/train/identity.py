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

__all__ = ["check_finished", "describe_run", "explain_data_error"]

# Where a machine keeps its copy of the data; what lies there is compared by its fingerprint.
_OF_THE_MACHINE = ("data.path", "data.index_cache")


def describe_run(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """The config by key and the versions of the code, for ``parallel.together.compare``."""
    keys = flatten(config.to_dict(), ".")
    # As text, because JSON would tell a tuple from a list.
    stated = {key: repr(value) for key, value in keys.items() if key not in _OF_THE_MACHINE}
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"config": stated, "code": {"vidlatent": hash_sources(), **versions}}


def check_finished(
    config: ConfigDict, workdir: Path, saved: Mapping[str, Any] | None, fingerprint: str
) -> None:
    """Refuse to take a finished run for one on other data: it would report on what it never saw.

    Args:
      config: what was asked for.
      workdir: of the run, which has no step left.
      saved: its stored position in the data; None if unknown.
      fingerprint: of the data that the config names; the same data may have moved.

    Raises:
      VidlatentError: the data is other.
    """
    other = configs.find_other_data(config, workdir)
    if other and saved and saved["fingerprint"] != fingerprint:
        raise VidlatentError(
            f"{workdir} is a finished run on {other}, and this command names "
            f"{configs.describe_data(config.data)}: give another --workdir for a run on that data, "
            f"or a higher config.train.steps than {config.train.steps} to go on training on it."
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
