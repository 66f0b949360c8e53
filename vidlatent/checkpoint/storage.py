"""What the checkpointer needs of Orbax, of the file system and of the other processes.

Errors of the storage as two exceptions, Orbax's log in fewer lines, and what is stored about the
machine that saved.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.metadata
import logging as std_logging
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

import vidlatent
from vidlatent.errors import VidlatentError
from vidlatent.paths import absolute

__all__ = [
    "PACKAGES",
    "QUIET",
    "Damaged",
    "SaveError",
    "StorageError",
    "agree_on_all_processes",
    "describe_machine",
    "find_folder",
    "move_aside",
    "remove_unfinished",
    "storage_errors",
    "warn_of_changes",
]


_DAMAGED = ".damaged"  # ending of the folder of a damaged step
_DAMAGED_KEPT = 2  # such folders kept, the newest ones
# Whose versions decide what a program computes.
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")


class Damaged(Exception):
    """The step cannot be trusted; the message says why."""


class StorageError(Exception):
    """Orbax or TensorStore failed; the message says why."""


class SaveError(VidlatentError):
    """The storage failed while a step was saved or looked for; it may work the next time."""


def _one_line(text: str) -> str:
    """An error of Orbax or TensorStore, without the page of specification that follows it."""
    text = " ".join(text.split()).split(" See full TensorStore")[0]
    return text if len(text) <= 300 else f"{text[:200]} ... {text[-100:]}"


@contextlib.contextmanager
def storage_errors() -> Iterator[None]:
    """Turn whatever Orbax and TensorStore raise into ``StorageError``.

    This is the one place that catches ``Exception``: depending on the damage, TensorStore raises a
    bare ``Exception``, ValueError, OSError, KeyError, RuntimeError, a decoding error or others,
    which have no base class in common.
    """
    try:
        yield
    except VidlatentError:
        raise
    except Exception as error:
        raise StorageError(f"{type(error).__name__}: {_one_line(str(error))}") from error


class _QuietOrbax(std_logging.Filter):
    """Drops the dozens of progress lines that Orbax logs for each save and restore.

    Warnings and errors stay, in one line each: what fails is raised here with its traceback anyway.
    """

    def filter(self, record: std_logging.LogRecord) -> bool:
        # Orbax logs through absl's logger, so only the file tells whose a line is.
        if f"{os.sep}orbax{os.sep}" not in record.pathname:
            return True
        if record.levelno >= std_logging.WARNING:
            record.unabridged = copy.copy(record)  # for the log file
            record.msg = _one_line(record.getMessage())
            record.args, record.exc_info, record.exc_text = (), None, None
        return record.levelno >= std_logging.WARNING


QUIET = _QuietOrbax()


def describe_machine() -> dict[str, Any]:
    """Versions, flags and devices that a step was saved with: all that bitwise resuming needs."""
    return {
        "vidlatent": vidlatent.__version__,
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "device_kind": jax.devices()[0].device_kind,
        "device_count": jax.device_count(),
        "process_count": jax.process_count(),
    }


def warn_of_changes(step: int, saved: Mapping[str, Any]) -> None:
    """Warn if a step was ``saved`` with other versions, flags or devices than there are now."""
    now = describe_machine()
    changed = [f"{k} {saved[k]!r} -> {now[k]!r}" for k in now if k in saved and saved[k] != now[k]]
    if changed:
        logging.warning(
            "Step %d was saved under other conditions (%s): the run continues, but it will not be "
            "bitwise equal to an uninterrupted one.",
            step,
            ", ".join(changed),
        )


def find_folder(directory: str | os.PathLike[str]) -> epath.Path:
    """The folder of a run's checkpoints, from the root as Orbax wants it.

    Raises:
      VidlatentError: an address at which Orbax writes nothing.
    """
    if os.fspath(directory).startswith("s3://"):
        raise VidlatentError(
            f"{os.fspath(directory)}: Orbax writes checkpoints to folders and gs:// and not to "
            "s3://: take a --workdir there, or mount the bucket as a folder."
        )
    return epath.Path(absolute(directory))


def remove_unfinished(folder: epath.Path) -> None:
    """Remove the folder of an unfinished save.

    It is tried for five seconds: after a failed save other writers may still be at work in there.
    """
    logging.info("Removing the unfinished save %s.", folder)
    for _ in range(20):
        try:
            folder.rmtree()
            return
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.25)
    logging.warning("The unfinished save %s cannot be removed; it takes space only.", folder)


def move_aside(directory: epath.Path, step: int) -> None:
    """Rename the folder of a damaged step; of such folders the newest are kept."""
    target = directory / f"{step}{_DAMAGED}"
    if target.exists():
        target.rmtree()
    (directory / str(step)).rename(target)
    logging.warning("Moved the damaged step %d aside to %s.", step, target)
    aside = [p for p in directory.glob(f"*{_DAMAGED}") if p != target]
    aside.sort(key=lambda p: int(p.name.removesuffix(_DAMAGED)))
    # The one just moved is kept as well, hence one less of the others.
    for old in aside[: 1 - _DAMAGED_KEPT]:
        old.rmtree()


def agree_on_all_processes(ok: bool) -> bool:
    """Whether ``ok`` is true on all processes, which must all choose the same step."""
    if jax.process_count() == 1:
        return ok
    return bool(np.all(multihost_utils.process_allgather(np.asarray(ok))))
