"""Rewards of a generator's samples for held-out prompts, the same noise at every evaluation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vidlatent.config import config_hash
from vidlatent.data.loader import Loader
from vidlatent.errors import VidlatentError
from vidlatent.files import write_json
from vidlatent.parallel.multihost import to_global
from vidlatent.parallel.sharding import batch_sharding, replicated
from vidlatent.report.curves import write_curves
from vidlatent.report.page import write_report
from vidlatent.report.writers import read_metrics

__all__ = [
    "RewardScores",
    "compile_reward_step",
    "make_reward_step",
    "measure_rewards",
    "write_reward_report",
]


def make_reward_step(task: Any) -> Callable[[Any, Any, Any], dict[str, jax.Array]]:
    """``(params, frozen, batch) -> {score: [B]}`` of a sample for each prompt, without noise
    between the steps.

    Args:
      task: has ``inputs``, ``find_shape``, ``policy_of``, ``watch`` (a ``Judge``) and ``config``.
    """

    def step(params, frozen, batch):
        latent, conditions = task.inputs(batch, frozen, jax.random.key(task.config.sample.seed))
        shape = task.find_shape(latent)
        policy = task.policy_of(shape)
        key = jax.random.key(task.config.sample.seed)

        def draw(clip):
            return jax.random.normal(jax.random.fold_in(key, clip), shape, jnp.float32)

        # Of the clip alone, so that a sample does not depend on its batch.
        noise = jax.vmap(draw)(batch["clip"])
        sample = policy.walk(params, conditions, noise, 0, policy.steps)
        shown = task.watch.show(batch, frozen, conditions.get("first"))
        scores = task.watch.score(frozen, sample, shown)
        return {name: scores[:, n] for n, name in enumerate(task.watch.names)}

    return step


def compile_reward_step(
    task: Any, frozen: Any, mesh: Mesh, params: Any
) -> Callable[[Any, Any], dict[str, np.ndarray]]:
    """Jit a task's reward step: ``(params, host batch) -> scores`` of all processes' rows."""
    places = jax.tree.map(lambda leaf: leaf.sharding, (params, frozen))
    rows, whole = batch_sharding(mesh), replicated(mesh)

    def measure(params, frozen, batch):
        # Rows of all processes come back, so what tells them apart must come with them.
        tags = {name: batch[name] for name in ("mask", "clip")}
        return {**task.eval_step(params, frozen, batch), **tags}

    jitted = jax.jit(measure, in_shardings=(*places, rows), out_shardings=whole)

    def run(params, batch):
        arrays = {**task.read_batch(batch), "clip": batch["clip"]}
        return jax.device_get(jitted(params, frozen, to_global(arrays, rows)))

    return run


@dataclasses.dataclass
class RewardScores:
    """Scores of one evaluation.

    Attributes:
      scores: ``reward`` (the weighted sum that is trained), the mean of each score, and ``clips``,
        the number of prompts.
      spreads: deviation of each score over the prompts.
      clips: one row a prompt.
      definitions: what each score is.
    """

    scores: dict[str, float]
    spreads: dict[str, float]
    clips: list[dict[str, Any]]
    definitions: dict[str, Any]


def measure_rewards(
    step: Callable, params: Any, loader: Loader, names: Sequence[str], weights: Mapping[str, float]
) -> RewardScores:
    """Run a compiled reward step over a finite loader.

    Args:
      names: of the scores; weights: of those that are trained.

    Raises:
      VidlatentError: the loader holds no prompt.
    """
    found: dict[tuple[str, int], dict[str, float]] = {}
    for batch in loader:
        measured = step(params, batch)
        for row in np.flatnonzero(measured["mask"]):
            clip = loader.index[int(measured["clip"][row])].path
            values = {name: float(measured[name][row]) for name in names}
            values["reward"] = math.fsum(w * values[n] for n, w in weights.items())
            found[clip, len(found)] = values
    if not found:
        raise VidlatentError(
            "no held-out prompt to score: raise config.data.validation_share or add clips."
        )
    scores, spreads = {}, {}
    for name in ("reward", *names):
        column = [values[name] for values in found.values()]
        scores[name] = math.fsum(column) / len(column)
        spreads[name] = float(np.std(column))
    scores["clips"] = len(found)
    rows = [{"clip": clip, **values} for (clip, _), values in found.items()]
    told = {"averaged": "over held-out prompts, one sample each at a fixed seed", "n": len(rows)}
    return RewardScores(scores, spreads, rows, {name: told for name in ("reward", *names)})


def write_reward_report(
    result: RewardScores,
    folder: Path,
    *,
    config: ConfigDict,
    step: int,
    workdir: Path,
    history: Sequence[Mapping[str, Any]],
    sheet: bytes = b"",
) -> list[str]:
    """Write ``scores.json``, ``reward_curves.png`` and ``report.html``, and a sheet of samples.

    ``history`` holds the evaluations so far, as ``rewards.json`` does. Returns the names of the
    files to look at.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(
        folder / "scores.json",
        {
            "step": step,
            "config": config_hash(config),
            "generator": config.generator.to_dict(),
            "scores": result.scores,
            "spreads": result.spreads,
            "definitions": result.definitions,
            "history": list(history),
            "by_clip": result.clips,
        },
    )
    steps = [row["step"] for row in history]
    names = [name for name in result.scores if name != "clips"]
    curves = {f"held out: {n}": (steps, [row["scores"].get(n) for row in history]) for n in names}
    logged = read_metrics(workdir / "metrics.jsonl")
    kinds = ("train/reward", "train/spread", "train/window_", "train/clip_share", "train/loss")
    curves |= {name: points for name, points in logged.items() if name.startswith(kinds)}
    write_curves(curves, folder / "reward_curves.png", title=f"{config.name} ({config.preset})")
    files = ["report.html", "reward_curves.png"] + ["contact_sheet.png"] * bool(sheet)
    if sheet:
        (folder / "contact_sheet.png").write_bytes(sheet)
    write_report(
        folder / "report.html",
        title=f"{config.name} ({config.preset}) at step {step}",
        scores=result.scores,
        tables={"Held-out rewards by evaluation": [_row(row) for row in history]},
        sheets=[("Samples under the conditions of validation clips", sheet)] if sheet else [],
        curves=curves,
        config=config.to_dict(),
    )
    return files


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"step": row["step"], **{k: v for k, v in row["scores"].items() if k != "clips"}}
