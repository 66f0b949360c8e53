"""Scoring a latent upsampler on validation pairs, beside interpolation of the small latent."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vidlatent.config import config_hash
from vidlatent.data.loaders import Loaders
from vidlatent.errors import VidlatentError
from vidlatent.evaluate.folders import default_folder
from vidlatent.evaluate.generator_loss import compile_loss_step
from vidlatent.evaluate.running_scores import log_scores
from vidlatent.files import write_json
from vidlatent.latents.contract import require_same
from vidlatent.latents.refiner_inputs import abstract_upsampler
from vidlatent.latents.space import Latents, describe_latents
from vidlatent.latents.upsampler import UpsamplerNetworks
from vidlatent.media.sheets import channel_sheet, contact_sheet
from vidlatent.metrics import stretch_channels
from vidlatent.models.frozen import load_frozen
from vidlatent.models.load import restore_onto
from vidlatent.parallel.mesh import mesh_for_batches
from vidlatent.parallel.multihost import is_main, to_global
from vidlatent.parallel.sharding import batch_sharding, replicated
from vidlatent.paths import as_path
from vidlatent.report.curves import run_curves
from vidlatent.report.page import write_report

__all__ = [
    "UpsamplerScorer",
    "UpsamplerScores",
    "evaluate_upsampler",
    "interpolate",
    "measure_clips",
    "measure_distances",
    "write_upsampler_report",
]

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


def measure_clips(
    networks: UpsamplerNetworks, params: Any, frozen: Any, batch: Any
) -> dict[str, jax.Array]:
    """``measure_distances`` of a batch."""
    low, high, upsampled = networks.upsample(params, frozen, batch)
    return measure_distances(upsampled, low, high)


def show_clips(
    networks: UpsamplerNetworks, params: Any, frozen: Any, batch: Any
) -> dict[str, jax.Array]:
    """What to look at, by name: decoded clips ``[B, T, H, W, 3]``, or latents alone."""
    low, high, upsampled = networks.upsample(params, frozen, batch)
    if not networks.decodes:
        return {"upsampled": upsampled}
    condition = networks.make_condition(batch, frozen["tokenizer"])
    latents = {
        "own latent": high,
        "nearest": interpolate(low, "nearest"),
        "bicubic": interpolate(low, "cubic"),
        "upsampled": upsampled,
    }
    return {name: networks.decode(frozen["tokenizer"], x, condition) for name, x in latents.items()}


class UpsamplerScorer:
    """``(params, validation loader) -> scores``; compiled once.

    Args:
      networks: of the run.
      params: the upsampler's, on the devices.
      frozen: parameters of the frozen networks, on the devices.
      mesh: of the run.
    """

    def __init__(
        self, networks: UpsamplerNetworks, params: Any, frozen: Mapping[str, Any], mesh: Mesh
    ):
        self._mesh, self._frozen, self._networks = mesh, frozen, networks
        step = functools.partial(measure_clips, networks)
        self._step = compile_loss_step(step, networks.arrays, frozen, mesh, params)
        places = jax.tree.map(lambda leaf: leaf.sharding, (params, frozen))
        self._show = jax.jit(
            functools.partial(show_clips, networks),
            in_shardings=(*places, batch_sharding(mesh)),
            out_shardings=replicated(mesh),
        )

    def __call__(self, params: Any, loader: Any) -> UpsamplerScores:
        rows: list[dict[str, Any]] = []
        sheet = b""
        for batch in loader:
            if not rows:
                sheet = self._draw(params, batch)
            measured = self._step(params, batch)
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
        arrays = {name: batch[name] for name in self._networks.arrays}
        given = to_global(arrays, batch_sharding(self._mesh))
        shown = jax.device_get(self._show(params, self._frozen, given))
        if not self._networks.decodes:
            return channel_sheet(
                stretch_channels(shown["upsampled"][0]), title="upsampled latent of a clip"
            )
        videos, labels = [], []
        for row in np.flatnonzero(np.asarray(batch["mask"]))[:_SHOWN]:
            for name, video in shown.items():
                videos.append(video[row])
                labels.append(name)
        return contact_sheet(videos, labels, group=len(shown))


def write_upsampler_report(
    result: UpsamplerScores, folder: Path, *, config: ConfigDict, step: int, workdir: Path
) -> list[str]:
    """Write ``scores.json``, ``report.html`` and ``contact_sheet.png``; returns what to look at."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(
        folder / "scores.json",
        {
            "step": step,
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
        title=f"{config.name} ({config.preset}) at step {step}",
        scores=result.scores,
        tables={},
        sheets=[(caption, result.sheet)] if result.sheet else [],
        curves=run_curves(workdir),
        config=config.to_dict(),
    )
    if result.sheet:
        (folder / "contact_sheet.png").write_bytes(result.sheet)
    return ["report.html"] + ["contact_sheet.png"] * bool(result.sheet)


def evaluate_upsampler(config: ConfigDict, workdir: Path, step: int, output: str) -> int:
    """``--mode=eval`` of an upsampler's workdir: validation as in training, of ``config.data``.

    Latents are standardised as in the run's training. Writes into ``output`` (default
    ``<workdir>/eval/step_<n>``); returns the exit status.

    Raises:
      VidlatentError: the data holds another tokenizer's latents, or no pairs.
    """
    known = Latents.load(workdir)
    require_same(
        known.space,
        describe_latents(config).space,
        str(workdir),
        "config.data",
        "name a set of the same tokenizer by --config.data.path=...",
        moments=False,
    )
    networks = UpsamplerNetworks(config, known)
    mesh = mesh_for_batches(config.mesh, config.data.buckets)
    with jax.set_mesh(mesh):
        frozen = load_frozen(networks.frozen, mesh)
        restored = restore_onto(config, workdir, abstract_upsampler(networks.model), mesh, step)
        score = UpsamplerScorer(networks, restored.state, frozen, mesh)
        with Loaders(config, known.spec, workdir).validation() as loader:
            result = score(restored.state, loader)
    if is_main():
        folder = as_path(output) if output else default_folder(config, workdir, restored.step)
        log_scores(result.scores)
        write_upsampler_report(result, folder, config=config, step=restored.step, workdir=workdir)
        logging.info("report in %s", folder / "report.html")
    return 0
