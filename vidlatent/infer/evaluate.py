"""Scoring a tokenizer on validation clips.

Scores compare 8-bit frames: the reconstruction is clipped and rounded as it would be when written
to a file. ``psnr`` and ``ssim`` are means over clips of the mean over a clip's frames;
``psnr_constant_colour`` is the PSNR of each clip's own mean colour, the best that a decoder without
any picture could do. Padding rows never count, whatever the number of processes.
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
from vidlatent.infer.pixels import from_pixels, to_pixels
from vidlatent.metrics import psnr, ssim
from vidlatent.typing import VidlatentError

__all__ = ["Evaluation", "Picture", "compile_eval_step", "evaluate", "tokenizer_eval_step"]

STILL_FPS = 1.0  # rate of the video that a picture, which has none, is written as
METRICS = ("psnr", "ssim", "psnr_constant_colour")


def tokenizer_eval_step(model: Any) -> Callable[[Any, Any], dict[str, jax.Array]]:
    """``(params, batch) -> {metric: [B, T], reconstruction: uint8 [B, T, H, W, 3]}``."""

    def eval_step(params, batch):
        video = batch["video"]
        prediction, _ = model.apply({"params": params}, from_pixels(video))
        reconstruction = to_pixels(prediction)
        colour = video.astype(jnp.float32).mean(axis=(1, 2, 3), keepdims=True)
        flat = jnp.broadcast_to(jnp.round(colour).astype(video.dtype), video.shape)
        return {
            "psnr": psnr(video, reconstruction, data_range=255.0),
            "ssim": ssim(video, reconstruction, data_range=255.0),
            "psnr_constant_colour": psnr(video, flat, data_range=255.0),
            "reconstruction": reconstruction,
        }

    return eval_step


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
    """One clip and what became of it, uint8 ``[T, H, W, 3]`` each."""

    label: str
    original: np.ndarray
    reconstruction: np.ndarray
    fps: float


@dataclasses.dataclass
class Evaluation:
    """Scores of one evaluation.

    Attributes:
      scores: metric -> mean over clips, and ``clips``, the number of them.
      clips: one row a clip: name, start in seconds, size, metrics.
      positions: metric -> mean at each frame position of the window.
      pictures: the first clips, on the main process.
    """

    scores: dict[str, float]
    clips: list[dict[str, Any]]
    positions: dict[str, list[float]]
    pictures: list[Picture]


def evaluate(eval_step: Callable, params: Any, loader: Loader, pictures: int = 0) -> Evaluation:
    """Run a compiled eval step over a finite loader; keep ``pictures`` clips spread over it.

    Raises if the loader holds no real clip.
    """
    clips, shown = [], []
    per_batch = -(-pictures // max(1, len(loader)))
    stride = max(1, len(loader) // max(1, pictures))
    sums: dict[str, Any] = {name: defaultdict(float) for name in METRICS}
    counts: dict[int, int] = defaultdict(int)
    for number, batch in enumerate(loader):
        arrays = {name: batch[name] for name in ("video", "mask", "clip", "start")}
        measured, reconstruction = eval_step(params, arrays)
        measured = jax.device_get(measured)
        for row in np.flatnonzero(measured["mask"]):
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
            shown += _pictures(batch, local_rows(reconstruction), loader)[:per_batch]
    if not clips:
        raise VidlatentError(
            "no validation clip to score: raise config.data.validation_share or add files."
        )
    scores = {name: float(np.mean([row[name] for row in clips])) for name in METRICS}
    positions = {
        name: [sums[name][position] / counts[position] for position in sorted(counts)]
        for name in METRICS
    }
    return Evaluation({**scores, "clips": len(clips)}, clips, positions, shown[:pictures])


def _pictures(batch: dict[str, Any], reconstruction: np.ndarray, loader: Loader) -> list[Picture]:
    rows = np.flatnonzero(batch["mask"])
    return [
        Picture(
            f"{loader.index[int(batch['clip'][row])].path} at {batch['start'][row]:.1f} s",
            np.asarray(batch["video"][row]),
            reconstruction[row],
            loader.index[int(batch["clip"][row])].fps or STILL_FPS,
        )
        for row in rows
    ]
