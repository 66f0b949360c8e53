"""Scoring a latent upsampler on validation pairs, beside interpolation of the small latent."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vidlatent.config import config_hash
from vidlatent.errors import VidlatentError
from vidlatent.evaluate.generator_loss import compile_loss_step
from vidlatent.files import write_json
from vidlatent.media.sheets import channel_sheet, contact_sheet
from vidlatent.metrics import stretch_channels
from vidlatent.parallel.multihost import to_global
from vidlatent.parallel.sharding import batch_sharding, replicated
from vidlatent.report.curves import run_curves
from vidlatent.report.page import write_report

__all__ = ["UpsamplerScores", "UpsamplerValidation", "interpolate", "measure_distances"]

_DEFINITIONS = {
    "loss": {"what": "L1 between the upsampled and the clip's own standardised latent"},
    "nearest": {"what": "the same of the small latent, enlarged by repetition"},
    "bicubic": {"what": "the same of the small latent, enlarged by bicubic interpolation"},
}
_SHOWN = 3


def interpolate(low: jax.Array, method: str) -> jax.Array:
    """``[B, t, h, w, c] -> [B, t, 2 h, 2 w, c]`` by ``'nearest'`` or ``'cubic'``."""
    batch, frames, height, width, channels = low.shape
    return jax.image.resize(low, (batch, frames, 2 * height, 2 * width, channels), method)


def measure_distances(upsampled: jax.Array, low: jax.Array, high: jax.Array) -> dict[str, Any]:
    """``[B]`` each: mean absolute distance to ``high`` of the upsampled latent and of rivals."""
    rivals = {
        "loss": upsampled,
        "nearest": interpolate(low, "nearest"),
        "bicubic": interpolate(low, "cubic"),
    }
    return {name: jnp.abs(x - high).mean((1, 2, 3, 4)) for name, x in rivals.items()}


@dataclasses.dataclass
class UpsamplerScores:
    """Scores of one evaluation.

    Attributes:
      scores: means over clips of ``measure_distances``, and ``clips``, their number.
      clips: one row a clip.
      sheet: PNG of a few clips: own latent, interpolated, upsampled; b'' on several processes.
    """

    scores: dict[str, float]
    clips: list[dict[str, Any]]
    sheet: bytes


class UpsamplerValidation:
    """Latent L1 of the EMA weights on validation clips (``tasks.base.Validation``).

    Args:
      task: the upsampler's task.
      frozen: parameters of its frozen networks, on the devices.
    """

    def __init__(
        self,
        task: Any,
        run: Any,
        frozen: Mapping[str, Any],
        mesh: Mesh,
        make_loader: Callable[[], Any],
    ):
        self._make_loader, self._mesh, self._frozen, self._task = make_loader, mesh, frozen, task
        self._step = compile_loss_step(task.eval_step, task.arrays, frozen, mesh, run.state["ema"])
        places = jax.tree.map(lambda leaf: leaf.sharding, (run.state["ema"], frozen))
        self._show = jax.jit(
            task.show,
            in_shardings=(*places, batch_sharding(mesh)),
            out_shardings=replicated(mesh),
        )

    def __call__(self, run: Any) -> UpsamplerScores:
        rows: list[dict[str, Any]] = []
        sheet = b""
        with contextlib.closing(self._make_loader()) as loader:
            for batch in loader:
                if not rows:
                    sheet = self._draw(run.state["ema"], batch)
                measured = self._step(run.state["ema"], batch)
                for row in np.flatnonzero(measured["mask"]):
                    values = {name: float(measured[name][row]) for name in _DEFINITIONS}
                    clip = loader.index[int(measured["clip"][row])].path
                    start = round(float(measured["start"][row]), 3)
                    rows.append({"clip": clip, "start": start, **values})
        if not rows:
            raise VidlatentError(
                "no validation clip to score: raise config.data.validation_share or add clips."
            )
        means = {name: math.fsum(r[name] for r in rows) / len(rows) for name in _DEFINITIONS}
        return UpsamplerScores({**means, "clips": len(rows)}, rows, sheet)

    def _draw(self, params: Any, batch: Mapping[str, Any]) -> bytes:
        if jax.process_count() > 1:
            return b""  # every process holds other rows
        arrays = {name: batch[name] for name in self._task.arrays}
        given = to_global(arrays, batch_sharding(self._mesh))
        shown = jax.device_get(self._show(params, self._frozen, given))
        if not self._task.decodes:
            return channel_sheet(
                stretch_channels(shown["upsampled"][0]), title="upsampled latent of a clip"
            )
        videos, labels = [], []
        for row in np.flatnonzero(np.asarray(batch["mask"]))[:_SHOWN]:
            for name, video in shown.items():
                videos.append(video[row])
                labels.append(name)
        return contact_sheet(videos, labels, group=len(shown))

    def pictures(self, result: UpsamplerScores) -> dict[str, bytes]:
        return {"val/upsampled": result.sheet} if result.sheet else {}

    def write(self, run: Any, result: UpsamplerScores, folder: Path) -> list[str]:
        folder.mkdir(parents=True, exist_ok=True)
        config = run.config
        write_json(
            folder / "scores.json",
            {
                "step": run.step,
                "config": config_hash(config),
                "upsampler": config.generator.to_dict(),
                "scores": result.scores,
                "definitions": _DEFINITIONS,
                "by_clip": result.clips,
            },
        )
        caption = "Decoded: the clip's own latent, interpolations, the upsampled latent"
        write_report(
            folder / "report.html",
            title=f"{config.name} ({config.preset}) at step {run.step}",
            scores=result.scores,
            tables={},
            sheets=[(caption, result.sheet)] if result.sheet else [],
            curves=run_curves(run.workdir),
            config=config.to_dict(),
        )
        if result.sheet:
            (folder / "contact_sheet.png").write_bytes(result.sheet)
        return ["report.html"] + ["contact_sheet.png"] * bool(result.sheet)
