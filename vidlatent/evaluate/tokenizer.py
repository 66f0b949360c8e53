"""Scoring a tokenizer on validation clips.

Metrics compare 8-bit frames: the reconstruction is clipped and rounded as if it were written to a
file. The scores ``psnr`` and ``ssim`` are means over clips of the mean over a clip's frames; a
frame that equals its original counts with ``PSNR_CEILING`` (100 dB).
``psnr_constant_colour`` is the PSNR of a clip in its own mean colour: what a decoder that shows no
picture can reach. ``information_preservation_minus1_to_1`` is one ratio of sums over all clips.
``config.eval.metrics`` adds others (``vidlatent.metrics``). Padding never counts, whatever the
number of processes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vidlatent.codec.options import CodecOptions
from vidlatent.data.loader import Loader
from vidlatent.errors import VidlatentError
from vidlatent.evaluate.latent_statistics import LatentStatistics
from vidlatent.evaluate.picks import Picks
from vidlatent.evaluate.running_scores import ABSOLUTE, RunningScores, average_group_positions
from vidlatent.latents.pixels import from_pixels, to_pixels
from vidlatent.media.write import STILL_FPS
from vidlatent.metrics import (
    Metric,
    absolute_sums,
    collect_networks,
    psnr,
    ssim,
)
from vidlatent.metrics.ssim import WINDOW
from vidlatent.models.frozen import load_frozen
from vidlatent.models.tokenizers.cutting import FrameCoder, make_latent_coder
from vidlatent.parallel.multihost import is_main, local_rows, to_global
from vidlatent.parallel.sharding import batch_sharding, replicated
from vidlatent.spec import LatentSpec

__all__ = [
    "ClipPair",
    "Evaluation",
    "choose_eval_coder",
    "compile_eval_step",
    "evaluate",
    "tokenizer_eval_step",
]


def tokenizer_eval_step(
    model: Any,
    *,
    preservation: bool = False,
    latent: bool = False,
    chunk: int = 0,
    draw: int | None = None,
    coder: FrameCoder | None = None,
    keep: int = 1,
) -> Callable[[Any, Any], dict[str, jax.Array]]:
    """``(params, batch) -> {metric: [B, T], reconstruction: uint8 [B, T, H, W, 3]}``.

    Args:
      model: a tokenizer.
      preservation: also return the sums that information preservation is the ratio of.
      latent: also return the mean of the posterior, ``[B, t, h, w, c]`` float32.
      chunk: encode and decode so many frames at a time, each chunk by itself, so that memory does
        not grow with the video; 0: all at once. Not together with ``latent``.
      draw: decode a sample of the posterior, drawn with this seed and each clip's number and start;
        None: decode its mean.
      coder: cuts frames, which are otherwise coded whole.
      keep: encode and decode every so manyth frame only, and take the others as they are from the
        batch's ``between``, uint8 like ``video``.
    """

    def reconstruct(params, batch, pixels, number):
        if draw is None and coder is None:
            return model.apply({"params": params}, pixels)
        key = None if draw is None else jax.random.fold_in(jax.random.key(draw), number)
        return _reconstruct_in_steps(model, params, pixels, batch, key, coder)

    def eval_step(params, batch):
        video = batch["video"]
        coded = video[:, ::keep]
        if chunk:

            def restored(part):
                return to_pixels(reconstruct(params, batch, from_pixels(part[1]), part[0])[0])

            reconstruction = _map_chunks(restored, coded, chunk)
        else:
            prediction, posterior = reconstruct(params, batch, from_pixels(coded), 0)
            reconstruction = to_pixels(prediction)
        if keep > 1:
            reconstruction = batch["between"].at[:, ::keep].set(reconstruction)
        # One colour for the whole clip: [B, 1, 1, 1, 3]
        colour = video.astype(jnp.float32).mean(axis=(1, 2, 3), keepdims=True)
        flat = jnp.broadcast_to(jnp.round(colour).astype(video.dtype), video.shape)
        extras = {"latent": posterior.mode().astype(jnp.float32)} if latent else {}
        if preservation:
            extras |= zip(ABSOLUTE, absolute_sums(video, reconstruction), strict=True)
        return {
            **extras,
            "psnr": psnr(video, reconstruction, data_range=255.0),
            "ssim": _ssim_or_nan(video, reconstruction),
            "psnr_constant_colour": psnr(video, flat, data_range=255.0),
            "reconstruction": reconstruction,
        }

    return eval_step


def choose_eval_coder(config: ConfigDict, model: Any) -> FrameCoder | None:
    """What cuts frames as ``config.codec`` does where that changes latents; None: they are whole.

    So the scores are about the latents that the run's codec, and every later model, works with.
    """
    coder = make_latent_coder(model, CodecOptions.of(**config.codec))
    return coder if coder.cut else None


def _map_chunks(function: Callable, video: jax.Array, chunk: int) -> jax.Array:
    """``function((number, [B, chunk, H, W, 3]))`` of each chunk in turn, put together again."""
    batch, frames = video.shape[:2]
    # [B, T, H, W, 3] -> [B, chunks, chunk, H, W, 3]
    parts = video.reshape(batch, frames // chunk, chunk, *video.shape[2:])
    numbers = jnp.arange(frames // chunk)
    # One chunk after another, so that memory is that of one.
    done = jax.lax.map(function, (numbers, jnp.moveaxis(parts, 1, 0)))
    return jnp.moveaxis(done, 0, 1).reshape(video.shape)


def _reconstruct_in_steps(
    model: Any,
    params: Any,
    pixels: jax.Array,
    batch: Any,
    key: jax.Array | None,
    coder: FrameCoder | None,
) -> tuple[jax.Array, Any]:
    """Reconstruction of a draw from the posterior (of its mean without ``key``), and the posterior.

    The noise of a clip depends on ``key``, its number and its start alone, so that neither the
    batch nor the number of processes changes a score.
    """
    variables = {"params": params}
    if coder is None:
        posterior, _ = model.apply(variables, pixels, method="encode")
        condition = model.apply(variables, pixels, method="make_condition")
        latent = _choose_latent(model, posterior, batch, key)
        return model.apply(variables, latent, condition=condition, method="decode")[0], posterior
    posterior, _ = coder.encode(params, pixels)
    condition = None
    if model.condition_kind != "none":
        frames = model.apply(variables, pixels, method="pick_content_frames")
        condition = coder.encode_condition(params, frames)
    latent = _choose_latent(model, posterior, batch, key)
    return coder.decode(params, latent, condition)[0], posterior


def _choose_latent(model: Any, posterior: Any, batch: Any, key: jax.Array | None) -> jax.Array:
    if key is None:
        return posterior.mode()
    if posterior.logvar is None:
        raise VidlatentError(
            f"{model.latent_spec.name} has no variance to draw latents from: score their means."
        )

    def noise(clip, start):
        mine = jax.random.fold_in(key, clip)
        mine = jax.random.fold_in(mine, jnp.round(start * 1000).astype(jnp.int32))
        return jax.random.normal(mine, posterior.mean.shape[1:], posterior.mean.dtype)

    return posterior.draw(jax.vmap(noise)(batch["clip"], batch["start"]))


def _ssim_or_nan(video: jax.Array, reconstruction: jax.Array) -> jax.Array:
    """SSIM ``[B, T]``; NaN, which no score counts, for frames smaller than its window."""
    if min(video.shape[2:4]) < WINDOW:
        return jnp.full(video.shape[:2], jnp.nan)
    return ssim(video, reconstruction, data_range=255.0)


def compile_eval_step(
    eval_step: Callable, mesh: Mesh, params: Any, metrics: Sequence[Metric] = ()
) -> Callable:
    """Jit an eval step, and measure ``metrics`` on its reconstruction too.

    Returns:
      ``(params, host batch) -> (measurements, reconstruction)``. Every process gets the
      measurements of all rows; the reconstruction stays sharded over the batch.
    """
    rows, whole = batch_sharding(mesh), replicated(mesh)
    networks = load_frozen(collect_networks(metrics), mesh)
    places = jax.tree.map(lambda leaf: leaf.sharding, (params, networks))

    def measured(params, networks, batch):
        out = eval_step(params, batch)
        video = out.pop("reconstruction")
        more = {m.name: m.measure(networks, batch["video"], video) for m in metrics}
        tags = {name: batch[name] for name in ("mask", "clip", "start")}
        return {**out, **more, **tags}, video

    jitted = jax.jit(measured, in_shardings=(*places, rows), out_shardings=(whole, rows))
    # Networks are an argument: closed over, their weights would be constants of the program.
    return lambda params, batch: jitted(params, networks, to_global(batch, rows))


@dataclasses.dataclass
class ClipPair:
    """A clip and its reconstruction, uint8 ``[T, H, W, 3]`` each, and its latent if asked for."""

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
      clips: one row a clip: name, start in seconds, size, the metrics of frames.
      positions: metric -> mean at each frame position of the window.
      pictures: some clips, of as many files as there are, on the main process.
      group_positions: ``n`` and metric -> numbers at each place of a frame group, and
        ``<metric>_max_margin``, best minus worst place; empty if there are no groups.
      latents: statistics of the latents, if asked for.
      definitions: score -> what defines it: how it is averaged, over how many clips of how many
        frames, and for metrics with a network the network, resize rule and covariance.
    """

    scores: dict[str, float]
    clips: list[dict[str, Any]]
    positions: dict[str, list[float]]
    pictures: list[ClipPair]
    group_positions: dict[str, Any] = dataclasses.field(default_factory=dict)
    latents: LatentStatistics | None = None
    definitions: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)


def evaluate(
    eval_step: Callable,
    params: Any,
    loader: Loader,
    pictures: int = 0,
    *,
    spec: LatentSpec | None = None,
    latents: LatentStatistics | None = None,
    metrics: Sequence[Metric] = (),
) -> Evaluation:
    """Run a compiled eval step over a finite loader.

    Args:
      eval_step: from ``compile_eval_step``.
      params: the tokenizer's parameters.
      loader: of validation clips.
      pictures: clips to keep for pictures, spread over the loader.
      spec: says which frames form a group; None: scores by group position are left out.
      latents: is given every latent; the eval step must return them.
      metrics: those that the eval step was compiled with.

    Raises:
      VidlatentError: the loader holds no clip.
    """
    picks = Picks(pictures, len(loader))
    running = RunningScores(loader.index, metrics)
    for number, batch in enumerate(loader):
        arrays = {name: batch[name] for name in ("video", "mask", "clip", "start")}
        measured, reconstruction = eval_step(params, arrays)
        measured = jax.device_get(measured)
        if latents is not None:
            latents.add(measured["latent"], measured["mask"], measured["clip"])
        running.add(measured, batch["video"].shape[1:4])
        if is_main() and pictures:
            files = batch["clip"][np.flatnonzero(batch["mask"])].tolist()
            make = functools.partial(_make_pairs, batch, reconstruction, loader, measured)
            picks.look(number, files, make)
    if not running.clips:
        raise VidlatentError(
            "no validation clip to score: raise config.data.validation_share or add files."
        )
    numbers, definitions = running.results()
    groups = {} if spec is None else average_group_positions(running, spec)
    return Evaluation(
        numbers,
        running.clips,
        running.positions(),
        picks.shown,
        groups,
        latents,
        definitions,
    )


def _make_pairs(
    batch: dict[str, Any], restored: jax.Array, loader: Loader, measured: dict[str, Any]
) -> list[ClipPair]:
    rows, reconstruction = np.flatnonzero(batch["mask"]), local_rows(restored)

    def latent(row: int) -> np.ndarray | None:
        if "latent" not in measured:
            return None
        # Measurements hold the rows of all processes.
        same = [measured[name] == batch[name][row] for name in ("clip", "start")]
        return measured["latent"][np.flatnonzero(same[0] & same[1])[0]]

    return [
        ClipPair(
            f"{loader.index[int(batch['clip'][row])].path} at {batch['start'][row]:.1f} s",
            np.asarray(batch["video"][row]),
            reconstruction[row],
            loader.index[int(batch["clip"][row])].fps or STILL_FPS,
            latent(row),
        )
        for row in rows
    ]
