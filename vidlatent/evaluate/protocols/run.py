"""Scoring a checkpoint on all clips of a folder as a paper did (``config.eval.protocol``)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vidlatent.codec.options import CodecOptions
from vidlatent.data.loader import Loader
from vidlatent.evaluate.clips import ScoredClips
from vidlatent.evaluate.latent_statistics import LatentStatistics
from vidlatent.evaluate.protocols.between import BetweenFrames
from vidlatent.evaluate.protocols.definitions import BUILT_IN, PROTOCOLS, Protocol
from vidlatent.evaluate.protocols.report import ProtocolResult, write_protocol_report
from vidlatent.evaluate.running_scores import log_scores
from vidlatent.evaluate.tokenizer import (
    ClipPair,
    compile_eval_step,
    evaluate,
    tokenizer_eval_step,
)
from vidlatent.media.write import STILL_FPS
from vidlatent.metrics import make_metrics
from vidlatent.models.load import model_of, restore_tokenizer
from vidlatent.models.tokenizers.cutting import FrameCoder
from vidlatent.parallel.mesh import make_mesh
from vidlatent.parallel.multihost import is_main, to_global
from vidlatent.parallel.sharding import batch_sharding, replicated
from vidlatent.paths import as_path

__all__ = ["evaluate_protocol", "run_protocol"]


def evaluate_protocol(config: ConfigDict, workdir: Path, step: int, output: str) -> int:
    """Score the checkpoint of ``workdir`` by ``config.eval.protocol`` on all of ``config.data``.

    Writes into ``output`` (default ``<workdir>/eval/step_<n>_<protocol>``); the exit status.

    Raises:
      VidlatentError: an unknown protocol, a tokenizer that does not take its clips, missing weights
        of a network (before any clip is opened), or no clip that is long enough.
    """
    model = model_of(config)
    mesh = make_mesh(config.mesh)

    def restore():
        restored = restore_tokenizer(config, workdir, model, mesh, step)
        return restored.state, restored.step

    with jax.set_mesh(mesh):
        result = run_protocol(config, model, mesh, restore)
    if is_main():
        name = result.protocol.name
        folder = as_path(output) if output else workdir / "eval" / f"step_{result.step}_{name}"
        # First, so that they are known even if a page cannot be written.
        log_scores(result.evaluation.scores)
        write_protocol_report(result, folder, config)
        for file in (f"{name}.json", f"{name}.md", "report.html"):
            logging.info("wrote %s", folder / file)
    return 0


def run_protocol(
    config: ConfigDict, model: Any, mesh: Mesh, restore: Callable[[], tuple[Any, int]]
) -> ProtocolResult:
    """Carry out ``config.eval.protocol`` with a model, under ``jax.set_mesh(mesh)``.

    ``restore`` gives its parameters, placed on the mesh, and their step. It is called last, when
    options, weights and clips are known to be in order.
    """
    protocol: Protocol = PROTOCOLS.get(config.eval.protocol)
    protocol.check(model.latent_spec)
    chosen = protocol.select_metrics(config.eval.leave_out)
    between = BetweenFrames(config.eval.interpolated, protocol) if protocol.keep > 1 else None
    asked = [metric.name for metric in chosen if metric.name not in BUILT_IN]
    # Before any clip is opened, so that missing weights are reported at once.
    metrics = make_metrics(
        (*asked, *config.eval.metrics),
        config.networks,
        random_networks=config.eval.random_networks,
        is_splits=config.eval.is_splits,
    )
    clips = _open_clips(config, protocol, mesh)
    params, step = restore()
    eval_step = tokenizer_eval_step(
        model,
        preservation=True,
        latent=protocol.gride,
        # One chunk is the whole clip, and only then the latent is one array.
        chunk=0 if protocol.gride else protocol.chunk,
        draw=config.seed if protocol.draw else None,
        coder=_make_coder(model, protocol),
        keep=protocol.keep,
    )
    eval_step = compile_eval_step(eval_step, mesh, params, metrics)
    if between is not None:
        eval_step = _with_between(between, eval_step, params, clips)
    with clips.open(clips.wanted) as loader:
        # Frame groups start anew in each chunk, so they are told apart only if there is one.
        spec = model.latent_spec if protocol.frames == (protocol.chunk,) else None
        latents = LatentStatistics(model.latent_spec, len(clips.wanted)) if protocol.gride else None
        evaluation = evaluate(
            eval_step, params, loader, spec=spec, latents=latents, metrics=metrics
        )
        bad = clips.list_bad(loader, {row["clip"] for row in evaluation.clips})
    # Which clips to show is known only after all are scored, so these few are decoded again.
    shown = _choose_shown(evaluation.clips)
    with clips.open({clips.rows[row["clip"]] for row in shown.values()}) as loader:
        pictures = _collect_pictures(eval_step, params, loader, mesh, protocol.fps)
    return ProtocolResult(
        protocol,
        chosen,
        evaluation,
        {name: name for name in BUILT_IN} | {metric.asked: metric.name for metric in metrics},
        model.latent_spec,
        step,
        clips.where,
        len(clips.rows),
        bad,
        {word: _label(pictures[row["clip"]], row) for word, row in shown.items()},
    )


def _make_coder(model: Any, protocol: Protocol) -> FrameCoder | None:
    """What cuts frames as the protocol says; None: they are coded whole."""
    for way in model.list_space_ways() if protocol.space else ():
        if way.name == protocol.space:
            return way.make(CodecOptions.of())
    return None


def _with_between(
    between: BetweenFrames, eval_step: Callable, params: Any, clips: ScoredClips
) -> Callable:
    """The eval step that is given the frames between decoded ones.

    Raises:
      VidlatentError: some are missing.
    """
    names = {row: name for name, row in clips.rows.items() if row in set(clips.wanted)}
    if missing := between.find_incomplete(names.values()):
        with clips.open({clips.rows[name] for name in missing}) as loader:
            between.demand(missing, eval_step, params, loader)
    return between.attach(eval_step, names)


def _open_clips(config: ConfigDict, protocol: Protocol, mesh: Mesh) -> ScoredClips:
    return ScoredClips(
        config.data.to_dict(),
        mesh,
        seed=config.seed,
        frames=protocol.frames,
        rule=protocol.rule,
        size=protocol.size,
        place=protocol.place,
        fps=protocol.fps,
        resize=protocol.resize,
        most=config.eval.clips,
    )


def _choose_shown(clips: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """'best', 'median' and 'worst' by PSNR -> row of ``by_clip``; no clip twice."""
    ranked = sorted(clips, key=lambda row: (-row["psnr"], row["clip"]))
    last = len(ranked) - 1
    places = {"best": 0, "median": last // 2, "worst": last}
    if last < 2:
        del places["median"]
    if not last:
        del places["worst"]
    return {word: ranked[place] for word, place in places.items()}


def _collect_pictures(
    eval_step: Callable, params: Any, loader: Loader, mesh: Mesh, fps: float
) -> dict[str, ClipPair]:
    """Name -> clip and reconstruction, on every process, of all clips of a small loader."""
    # A reconstruction is spread over the processes; replicated, every one of them can read it.
    gather = jax.jit(lambda tree: tree, out_shardings=replicated(mesh))
    found = {}
    for batch in loader:
        arrays = {name: batch[name] for name in ("video", "mask", "clip", "start")}
        _, reconstruction = eval_step(params, arrays)
        shared = to_global({n: arrays[n] for n in ("video", "clip")}, batch_sharding(mesh))
        whole = jax.device_get(gather({**shared, "reconstruction": reconstruction}))
        for row in np.flatnonzero(whole["clip"] >= 0):
            clip = loader.index[int(whole["clip"][row])]
            videos = whole["video"][row], whole["reconstruction"][row]
            found[clip.path] = ClipPair(clip.path, *videos, fps or clip.fps or STILL_FPS)
    return found


def _label(picture: ClipPair, row: dict[str, Any]) -> ClipPair:
    ssim = "" if row["ssim"] is None else f", SSIM {row['ssim']:.3f}"
    picture.label = f"{row['clip']}, PSNR {row['psnr']:.2f} dB{ssim}"
    return picture
