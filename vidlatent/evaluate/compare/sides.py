"""What the networks of metrics see of two sets of clips, and the scores that follow."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vidlatent.errors import VidlatentError
from vidlatent.evaluate.clips import ScoredClips
from vidlatent.evaluate.compare.draw import CONTACT_SHEET
from vidlatent.media.write import STILL_FPS
from vidlatent.metrics import SetMetric, collect_networks
from vidlatent.models.frozen import load_frozen
from vidlatent.parallel.multihost import is_main, to_global
from vidlatent.parallel.sharding import batch_sharding, replicated

__all__ = ["GENERATED", "REAL", "Shown", "Side", "compile_look", "measure_side", "score_sides"]

REAL, GENERATED = 0, 1  # the sides of ``metrics.base.Accumulator``


@dataclasses.dataclass
class Shown:
    """A clip for pictures: its name, frames uint8 ``[T, H, W, 3]`` and frame rate."""

    label: str
    video: np.ndarray
    fps: float


@dataclasses.dataclass
class Side:
    """One of the two sets, scored.

    Attributes:
      clips: its folder.
      scored: names of the clips that were read.
      bad: clips left out: path, reason, detail.
      shown: some of them, on the main process.
    """

    clips: ScoredClips
    scored: list[str]
    bad: list[tuple[str, str, str]]
    shown: list[Shown]


def compile_look(metrics: Sequence[SetMetric], mesh: Mesh) -> Callable[[Any], dict[str, Any]]:
    """``host batch -> measurements`` of the rows of all processes, the same on each of them.

    The networks are sharded over the mesh like parameters in training, the clips by batch.
    """
    rows, whole = batch_sharding(mesh), replicated(mesh)
    networks = load_frozen(collect_networks(metrics), mesh)
    places = jax.tree.map(lambda leaf: leaf.sharding, networks)

    def look(networks, batch):
        seen = {metric.name: metric.look(networks, batch["video"]) for metric in metrics}
        return seen | {name: batch[name] for name in ("mask", "clip", "start")}

    jitted = jax.jit(look, in_shardings=(places, rows), out_shardings=whole)
    # Networks are an argument: closed over, their weights would be constants of the program.
    return lambda batch: jax.device_get(jitted(networks, to_global(batch, rows)))


def measure_side(
    side: int,
    clips: ScoredClips,
    drop: int,
    look: Callable[[Any], dict[str, Any]],
    accumulators: dict[str, Any],
    pictures: int,
) -> Side:
    """Show every wanted clip to the networks and hand what they see to the accumulators.

    Args:
      side: ``REAL`` or ``GENERATED``.
      clips: the set.
      drop: first frames of a window that do not count.
      look: from ``compile_look``.
      accumulators: of each metric, by its name.
      pictures: clips to keep for pictures, spread over the set.

    Raises:
      VidlatentError: no clip could be read.
    """
    shown: list[Shown] = []
    scored: list[str] = []
    with clips.open(clips.wanted) as loader:
        stride = max(1, len(loader) // max(1, pictures))
        per_batch = -(-pictures // max(1, len(loader)))
        for number, batch in enumerate(loader):
            video = np.ascontiguousarray(batch["video"][:, drop:])
            tags = {name: batch[name] for name in ("mask", "clip", "start")}
            measured = look({"video": video, **tags})
            given = [measured[name] for name in ("mask", "clip", "start")]
            for name, accumulator in accumulators.items():
                accumulator.add(side, measured[name], *given)
            real = np.flatnonzero(measured["mask"])
            scored += [loader.index[int(measured["clip"][row])].path for row in real]
            if is_main() and len(shown) < pictures and number % stride == 0:
                for row in np.flatnonzero(batch["mask"])[:per_batch]:
                    clip = loader.index[int(batch["clip"][row])]
                    shown.append(Shown(clip.path, video[row], clip.fps or STILL_FPS))
        if not scored:
            raise VidlatentError(f"no clip of {clips.where} could be read: look at its files.")
        bad = [row for row in clips.list_bad(loader, set(scored)) if row[0] != CONTACT_SHEET]
    return Side(clips, scored, bad, shown[:pictures])


def score_sides(
    metrics: Sequence[SetMetric], accumulators: dict[str, Any], frames: int
) -> tuple[dict[str, float], dict[str, dict[str, Any]], dict[str, str]]:
    """Scores, their definitions, and the name that each metric's score is reported under."""
    scores: dict[str, float] = {}
    definitions: dict[str, dict[str, Any]] = {}
    names: dict[str, str] = {}
    for metric in metrics:
        found, counted = accumulators[metric.name].result(metric.name)
        scores |= found
        pieces = {"clip_frames": metric.cut or frames}
        definitions |= dict.fromkeys(found, {**metric.about, **pieces, **counted})
        # A metric's own score is the first; what follows describes the originals.
        names[metric.asked] = next(iter(found))
    return scores, definitions, names
