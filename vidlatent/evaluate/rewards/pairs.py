"""How often a reward agrees with those who judged pairs of videos."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vidlatent.config import config_hash
from vidlatent.data.loaders import Loaders
from vidlatent.errors import VidlatentError
from vidlatent.evaluate.folders import default_folder
from vidlatent.evaluate.running_scores import log_scores
from vidlatent.files import write_json
from vidlatent.losses.preference import FIRST, SECOND, TIE, count_agreement, preference_loss
from vidlatent.models.load import restore_onto
from vidlatent.models.pretrained import network_shapes
from vidlatent.parallel.mesh import mesh_for_batches
from vidlatent.parallel.multihost import is_main, to_global
from vidlatent.parallel.sharding import batch_sharding, replicated
from vidlatent.paths import as_path
from vidlatent.report.curves import run_curves
from vidlatent.report.page import write_report
from vidlatent.rewards.pairs import PairJudge

__all__ = ["PairScores", "compile_pairs", "evaluate_pairs", "score_pairs", "write_pairs"]

_DEFINITIONS = {
    "loss": "mean negative log-likelihood of the judgements, Bradley-Terry with ties",
    "accuracy": "share of the pairs with a preferred video in which its reward is the larger",
}
_WORDS = {FIRST: "first", TIE: "tie", SECOND: "second"}


@dataclasses.dataclass
class PairScores:
    """Scores of one evaluation.

    Attributes:
      scores: ``loss``, ``accuracy`` over all scores and ``accuracy_<score>`` of each, and
        ``clips``, the number of pairs.
      pairs: one row a pair and score.
    """

    scores: dict[str, float]
    pairs: list[dict[str, Any]]


def compile_pairs(
    judge: PairJudge, params: Any, mesh: Mesh
) -> Callable[[Any, Mapping[str, Any]], dict[str, np.ndarray]]:
    """``(params, host batch) -> PairJudge.score`` and tags of all processes' rows."""
    rows, whole = batch_sharding(mesh), replicated(mesh)
    places = jax.tree.map(lambda leaf: leaf.sharding, params)

    def measure(params, batch):
        return judge.score(params, batch) | {name: batch[name] for name in ("mask", "clip")}

    jitted = jax.jit(measure, in_shardings=(places, rows), out_shardings=whole)

    def run(params, batch):
        given = judge.read_batch(batch) | {"clip": batch["clip"]}
        return jax.device_get(jitted(params, to_global(given, rows)))

    return run


def score_pairs(
    judge: PairJudge,
    measure: Callable[[Any, Mapping[str, Any]], dict[str, np.ndarray]],
    params: Any,
    loader: Any,
    ties: float,
) -> PairScores:
    """Score every pair of a loader.

    Raises:
      VidlatentError: there is no pair.
    """
    rows = []
    sides: list[list[np.ndarray]] = [[], [], []]
    for batch in loader:
        found = measure(params, batch)
        for place in np.flatnonzero(found["mask"]):
            first, second, judged = (found[name][place] for name in ("first", "second", "judged"))
            for kept, values in zip(sides, (first, second, judged), strict=True):
                kept.append(values)
            pair = loader.index[int(found["clip"][place])].path
            for score, a, b, label in zip(judge.names, first, second, judged, strict=True):
                preferred = _WORDS.get(int(label), "not judged")
                row = {"pair": pair, "score": score, "first": float(a), "second": float(b)}
                rows.append(row | {"preferred": preferred})
    if not rows:
        raise VidlatentError(
            "no held-out pair to score: raise config.data.validation_share, or add pairs that "
            "share no video with the others."
        )
    first, second, judged = map(np.stack, sides)
    loss = preference_loss(first, second, judged, ties).mean()
    right, decided = map(np.asarray, count_agreement(first, second, judged))
    scores = {"loss": float(loss), "accuracy": _share(right, decided)}
    if len(judge.names) > 1:
        for column, name in enumerate(judge.names):
            scores[f"accuracy_{name}"] = _share(right[:, column], decided[:, column])
    return PairScores({**scores, "clips": len(first)}, rows)


def _share(right: np.ndarray, decided: np.ndarray) -> float:
    # No judgement to agree with: 0, so that a run never looks better for it.
    return float(right.sum() / max(decided.sum(), 1))


def write_pairs(
    result: PairScores, folder: Path, *, config: ConfigDict, step: int, workdir: Path
) -> list[str]:
    """Write ``scores.json`` and ``report.html``; returns what to look at."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"step": step, "config": config_hash(config), "reward": list(config.rewards.use)}
    content |= {"scores": result.scores, "definitions": _DEFINITIONS, "pairs": result.pairs}
    write_json(folder / "scores.json", content)
    write_report(
        folder / "report.html",
        title=f"{config.name} ({config.preset}) at step {step}",
        scores=result.scores,
        tables={"Held-out pairs": result.pairs},
        curves=run_curves(workdir),
        config=config.to_dict(),
    )
    return ["report.html"]


def evaluate_pairs(config: ConfigDict, workdir: Path, step: int, output: str) -> int:
    """``--mode=eval`` of a reward's workdir: validation as in training, of ``config.data``."""
    judge = PairJudge(config)
    mesh = mesh_for_batches(config.mesh, config.data.buckets)
    with jax.set_mesh(mesh):
        restored = restore_onto(config, workdir, network_shapes(judge.reward.network), mesh, step)
        measure = compile_pairs(judge, restored.state, mesh)
        with Loaders(config, judge.spec, workdir).validation() as loader:
            result = score_pairs(judge, measure, restored.state, loader, config.rewards.ties)
    if is_main():
        folder = as_path(output) if output else default_folder(config, workdir, restored.step)
        log_scores(result.scores)
        write_pairs(result, folder, config=config, step=restored.step, workdir=workdir)
        logging.info("report in %s", folder / "report.html")
    return 0
