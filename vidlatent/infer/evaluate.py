"""Scoring a tokenizer on validation clips.

Scores compare 8-bit frames: the reconstruction is clipped and rounded as it would be when written
to a file. ``psnr`` and ``ssim`` are means over clips of the mean over a clip's frames;
``psnr_constant_colour`` is the PSNR of each clip's own mean colour, the best that a decoder without
any picture could do; ``information_preservation_minus1_to_1`` is one ratio of sums over all clips.
Padding rows never count, whatever the number of processes.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vidlatent.data.loader import Loader
from vidlatent.dist.multihost import is_main, local_rows, to_global
from vidlatent.dist.rules import batch_sharding, replicated
from vidlatent.infer.latents import Latents
from vidlatent.infer.pixels import from_pixels, to_pixels
from vidlatent.metrics import (
    PRESERVATION,
    absolute_sums,
    by_group_position,
    max_margin,
    psnr,
    ssim,
)
from vidlatent.metrics.ssim import WINDOW
from vidlatent.typing import LatentSpec, VidlatentError

__all__ = ["Evaluation", "Picture", "compile_eval_step", "evaluate", "tokenizer_eval_step"]

STILL_FPS = 1.0  # rate of the video that a picture, which has none, is written as
METRICS = ("psnr", "ssim", "psnr_constant_colour")
_ABSOLUTE = ("absolute_error", "absolute_pixels")


def tokenizer_eval_step(
    model: Any, *, preservation: bool = False, latent: bool = False
) -> Callable[[Any, Any], dict[str, jax.Array]]:
    """``(params, batch) -> {metric: [B, T], reconstruction: uint8 [B, T, H, W, 3]}``.

    With ``preservation`` also the sums that information preservation is made of, with ``latent``
    also the latent of the mean ``[B, t, h, w, c]``.
    """

    def eval_step(params, batch):
        video = batch["video"]
        prediction, posterior = model.apply({"params": params}, from_pixels(video))
        reconstruction = to_pixels(prediction)
        colour = video.astype(jnp.float32).mean(axis=(1, 2, 3), keepdims=True)
        flat = jnp.broadcast_to(jnp.round(colour).astype(video.dtype), video.shape)
        extras = {"latent": posterior.mode().astype(jnp.float32)} if latent else {}
        if preservation:
            extras |= zip(_ABSOLUTE, absolute_sums(video, reconstruction), strict=True)
        return {
            **extras,
            "psnr": psnr(video, reconstruction, data_range=255.0),
            "ssim": _ssim(video, reconstruction),
            "psnr_constant_colour": psnr(video, flat, data_range=255.0),
            "reconstruction": reconstruction,
        }

    return eval_step


def _ssim(video: jax.Array, reconstruction: jax.Array) -> jax.Array:
    """SSIM ``[B, T]``; NaN for frames smaller than its window, such as lines."""
    if min(video.shape[2:4]) < WINDOW:
        return jnp.full(video.shape[:2], jnp.nan)
    return ssim(video, reconstruction, data_range=255.0)


def compile_eval_step(eval_step: Callable, mesh: Mesh, params: Any) -> Callable:
    """Jit an eval step: measurements come back whole on every process, videos stay spread out."""
    placed = jax.tree.map(lambda leaf: leaf.sharding, params)
    rows, whole = batch_sharding(mesh), replicated(mesh)

    def measured(params, batch):
        out = eval_step(params, batch)
        video = out.pop("reconstruction")
        return {**out, "mask": batch["mask"], "clip": batch["clip"], "start": batch["start"]}, video

    jitted = jax.jit(measured, in_shardings=(placed, rows), out_shardings=(whole, rows))
    return lambda params, batch: jitted(params, to_global(batch, rows))


@dataclasses.dataclass
class Picture:
    """One clip and what became of it, uint8 ``[T, H, W, 3]`` each; its latent, if asked for."""

    label: str
    original: np.ndarray
    reconstruction: np.ndarray
    fps: float
    latent: np.ndarray | None = None


@dataclasses.dataclass
class Evaluation:
    """Scores of one evaluation.

    Attributes:
      scores: metric -> mean over clips, and ``clips``, the number of them.
      clips: one row a clip: name, start in seconds, size, metrics.
      positions: metric -> mean at each frame position of the window.
      pictures: the first clips, on the main process.
      group_positions: ``n`` and metric -> numbers at each place of a frame group, and
        ``<metric>_max_margin``, best minus worst place; empty where there are no groups.
      latents: what was asked to watch the latents.
    """

    scores: dict[str, float]
    clips: list[dict[str, Any]]
    positions: dict[str, list[float]]
    pictures: list[Picture]
    group_positions: dict[str, Any] = dataclasses.field(default_factory=dict)
    latents: Latents | None = None


def evaluate(
    eval_step: Callable,
    params: Any,
    loader: Loader,
    pictures: int = 0,
    *,
    spec: LatentSpec | None = None,
    latents: Latents | None = None,
) -> Evaluation:
    """Run a compiled eval step over a finite loader; keep ``pictures`` clips spread over it.

    ``spec`` says which frames form a group; ``latents`` is shown every latent (of an eval step with
    ``latent``). Raises if the loader holds no real clip.
    """
    clips, shown = [], []
    per_batch = -(-pictures // max(1, len(loader)))
    stride = max(1, len(loader) // max(1, pictures))
    sums: dict[str, Any] = {name: defaultdict(float) for name in METRICS}
    counts: dict[int, int] = defaultdict(int)
    absolute = np.zeros(2)
    for number, batch in enumerate(loader):
        arrays = {name: batch[name] for name in ("video", "mask", "clip", "start")}
        measured, reconstruction = eval_step(params, arrays)
        measured = jax.device_get(measured)
        real = np.flatnonzero(measured["mask"])
        if latents is not None:
            latents.add(measured["latent"], measured["mask"], measured["clip"])
        if _ABSOLUTE[0] in measured:
            absolute += [measured[name][real].sum(dtype=np.float64) for name in _ABSOLUTE]
        for row in real:
            per_frame = {name: np.asarray(measured[name][row], np.float64) for name in METRICS}
            clips.append(
                {
                    "clip": loader.index[int(measured["clip"][row])].path,
                    "start": round(float(measured["start"][row]), 3),
                    "size": "x".join(map(str, batch["video"].shape[1:4])),
                    **{name: float(values.mean()) for name, values in per_frame.items()},
                }
            )
            for position in range(batch["video"].shape[1]):
                counts[position] += 1
                for name in METRICS:
                    sums[name][position] += per_frame[name][position]
        if is_main() and len(shown) < pictures and number % stride == 0:
            shown += _pictures(batch, local_rows(reconstruction), loader, measured)[:per_batch]
    if not clips:
        raise VidlatentError(
            "no validation clip to score: raise config.data.validation_share or add files."
        )
    scores = {name: float(np.mean([row[name] for row in clips])) for name in METRICS}
    if absolute[1]:
        scores[PRESERVATION] = float(1 - absolute[0] / absolute[1])
    positions = {
        name: [sums[name][position] / counts[position] for position in sorted(counts)]
        for name in METRICS
    }
    scores["clips"] = len(clips)
    groups = {} if spec is None else _group_positions(sums, counts, spec)
    return Evaluation(scores, clips, positions, shown[:pictures], groups, latents)


def _group_positions(sums: dict[str, Any], counts: dict[int, int], spec: LatentSpec) -> dict:
    result: dict[str, Any] = {}
    frames = sorted(counts)
    for name in ("psnr", "ssim"):
        means, numbers = by_group_position(
            [sums[name][frame] for frame in frames],
            [counts[frame] for frame in frames],
            first=spec.rule.first,
            group=spec.t,
        )
        if spec.t == 1 or not all(numbers):
            return {}
        result |= {"n": numbers, name: means, f"{name}_max_margin": max_margin(means)}
    return result


def _pictures(
    batch: dict[str, Any], reconstruction: np.ndarray, loader: Loader, measured: dict[str, Any]
) -> list[Picture]:
    rows = np.flatnonzero(batch["mask"])

    def latent(row: int) -> np.ndarray | None:
        if "latent" not in measured:
            return None
        # Measurements hold the rows of all processes.
        same = [measured[name] == batch[name][row] for name in ("clip", "start")]
        return measured["latent"][np.flatnonzero(same[0] & same[1])[0]]

    return [
        Picture(
            f"{loader.index[int(batch['clip'][row])].path} at {batch['start'][row]:.1f} s",
            np.asarray(batch["video"][row]),
            reconstruction[row],
            loader.index[int(batch["clip"][row])].fps or STILL_FPS,
            latent(row),
        )
        for row in rows
    ]
