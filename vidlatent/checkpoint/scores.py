"""Scores of saved steps: those that came after the save, and which steps they make worth keeping.

A step is saved before it is evaluated, since an evaluation takes long and may fail. Its scores then
lie in ``scores.json`` in the folder of the step.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import logging
from etils import epath
from orbax.checkpoint import checkpoint_managers

from vidlatent.checkpoint import digests
from vidlatent.files import write_json

__all__ = ["Keep", "keep_finite", "read_scores", "write_scores"]

FILE = "scores.json"


def keep_finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """The numbers that JSON can hold; the others are no scores to compare."""
    numbers = {name: float(value) for name, value in metrics.items()}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def write_scores(folder: epath.Path, scores: Mapping[str, float]) -> None:
    """Write the scores of the step in ``folder``; a failure is only said."""
    content = {"crc": digests.json_crc(scores), "scores": dict(scores)}
    try:
        # The step may have been removed since, as not worth keeping.
        if folder.exists():
            write_json(folder / FILE, content, indent=None)
    except OSError as error:
        logging.warning("The scores of %s are not stored beside it: %s.", folder, error)


def read_scores(folder: epath.Path) -> dict[str, float]:
    """What ``write_scores`` wrote; empty if there is nothing, or nothing sound."""
    file = folder / FILE
    try:
        if not file.exists():
            return {}
        stored = json.loads(file.read_text())
        if digests.json_crc(stored["scores"]) != stored["crc"]:
            raise ValueError("another checksum")
        return stored["scores"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        # They decide which steps are kept, and nothing about the weights.
        logging.warning("The scores in %s cannot be read: %s.", file, error)
        return {}


@dataclasses.dataclass
class Keep(checkpoint_managers.PreservationPolicy):
    """Keeps the steps that ``choose`` picks from those there are.

    Orbax's own rules do not do. ``best_fn`` with a limit removes the newest step if older ones are
    better, and fails on a damaged metrics file when the manager is made (our metrics are in
    ``meta``). ``LatestN`` goes by the order of saving, which is lost in a restart.
    """

    choose: Callable[[Sequence[int]], set[int]]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        del context
        kept = self.choose([info.step for info in checkpoints])
        return [info.step in kept for info in checkpoints]
