"""What a training run keeps in its workdir beside the checkpoints, to be found again."""

from __future__ import annotations

import os
from pathlib import Path

from absl import logging

from vidlatent.errors import VidlatentError
from vidlatent.files import read_json, write_json
from vidlatent.report.writers import METRICS_FILE, read_metrics

__all__ = ["check_not_lost", "note_saved"]

FILE = "last_saved.json"


def note_saved(workdir: Path, step: int) -> None:
    """Write down that the workdir has a checkpoint of ``step``, in case they vanish."""
    try:
        write_json(workdir / FILE, {"step": step})
    except OSError as error:
        logging.warning("%s is not written: %s", workdir / FILE, error)


def check_not_lost(workdir: Path, checkpoints: os.PathLike[str]) -> None:
    """Refuse to begin at step 0 in a workdir whose checkpoints have vanished.

    Args:
      workdir: of the run.
      checkpoints: its folder of checkpoints, in which none was found.

    Raises:
      VidlatentError: a step was saved before.
    """
    file = workdir / FILE
    if file.is_file():
        step = read_json(file, "delete it to begin anew").get("step")
        raise VidlatentError(
            f"{os.fspath(checkpoints)} holds no checkpoint, but step {step} was saved there: mount "
            f"or restore the folder, or use another --workdir (or delete {file} to begin anew)."
        )
    steps = [max(s) for s, _ in read_metrics(workdir / METRICS_FILE).values() if s]
    if steps:
        logging.warning(
            "%s holds no checkpoint, but the metrics in %s go up to step %d: the run begins anew",
            checkpoints,
            workdir,
            max(steps),
        )
