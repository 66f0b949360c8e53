"""Steps of a run that others need: they are kept although newer ones are there.

A latent set and a generator need the tokenizer's checkpoint that encoded their latents. Whoever
relies on a step leaves a small file in the run's folder, and the run then keeps that step.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from absl import logging

from vidlatent.files import write_json
from vidlatent.paths import as_path

__all__ = ["pin_step", "read_pins"]

FOLDER = "pinned"  # in a workdir
_NAME = re.compile(r"step_(\d+)\.json")


def pin_step(workdir: str | os.PathLike[str], step: int, by: str) -> None:
    """Ask the run of ``workdir`` to keep a step; ``by`` says who needs it, for people.

    A folder that cannot be written to, such as another user's, is only warned of.
    """
    file = as_path(workdir, FOLDER, f"step_{step}.json")
    try:
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, {"step": step, "needed by": by})
    except OSError as error:
        logging.warning(
            "%s is not written (%s): if that run goes on, it may remove step %d, which %s needs; "
            "keep a copy.",
            *(file, error, step, by),
        )


def read_pins(workdir: Path | Any) -> set[int]:
    """The steps that a run is asked to keep."""
    folder = workdir / FOLDER
    try:
        names = [file.name for file in folder.iterdir()] if folder.is_dir() else []
    except OSError as error:
        logging.warning("%s cannot be read: %s", folder, error)
        return set()
    return {int(found[1]) for found in map(_NAME.fullmatch, names) if found}
