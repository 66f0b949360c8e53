"""Comparing a folder of generated videos with a folder of real ones.

``--mode=eval`` comes here with a protocol of generated videos, or with ``config.eval.samples``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vidlatent.config import is_generator
from vidlatent.data.latent_set import HEADER
from vidlatent.errors import VidlatentError
from vidlatent.evaluate.clips import ScoredClips
from vidlatent.evaluate.compare.draw import draw_samples
from vidlatent.evaluate.compare.report import Comparison, write_comparison
from vidlatent.evaluate.compare.sides import (
    GENERATED,
    REAL,
    compile_look,
    measure_side,
    score_sides,
)
from vidlatent.evaluate.protocols.base import ProtocolMetric
from vidlatent.evaluate.protocols.generation import GENERATION_PROTOCOLS, GenerationProtocol
from vidlatent.evaluate.running_scores import log_scores
from vidlatent.metrics import SetMetric, make_metrics
from vidlatent.parallel.mesh import make_mesh
from vidlatent.parallel.multihost import is_main
from vidlatent.paths import as_path
from vidlatent.spec import FrameRule

__all__ = ["compare_folders", "compares_sets"]

# Without a protocol and without config.eval.metrics.
_DEFAULT = ("fvd_i3d", "fvd_videomae", "is_c3d")


def compares_sets(config: ConfigDict) -> bool:
    """Whether the config asks for scores of generated videos."""
    return bool(config.eval.samples) or config.eval.protocol in GENERATION_PROTOCOLS.names()


def compare_folders(config: ConfigDict, workdir: Path, step: int, output: str) -> int:
    """Score generated videos against the real clips of ``config.data.path``.

    The generated ones are those of ``config.eval.samples``, or are drawn from the generator of
    ``workdir``. Writes into ``output`` (default ``<workdir>/eval/<protocol>``, with the step where
    samples are drawn); returns the exit status.

    Raises:
      VidlatentError: an unknown protocol or metric, missing weights of a network (before any clip
        is opened), no folder of real clips, or too few clips.
    """
    protocol = _find_protocol(config)
    chosen = protocol.select_metrics(config.eval.leave_out)
    metrics = _make_set_metrics(config, protocol, chosen)
    mesh = make_mesh(config.mesh)
    _check_folders(config)
    wanted = config.eval.clips or protocol.clips
    real = _open_clips(config, protocol, mesh, wanted, "")
    of = f"step_{step}_{protocol.name}" if step >= 0 else protocol.name
    folder = as_path(output) if output else workdir / "eval" / of
    if config.eval.samples:
        samples = config.eval.samples
    else:
        if not is_generator(config):
            raise VidlatentError(
                f"config.eval.protocol={protocol.name} scores generated videos: name a folder of "
                "them, --config.eval.samples=videos, or the --workdir of a generator."
            )
        samples = str(draw_samples(config, workdir, step, folder, protocol, real))
    made = _open_clips(config, protocol, mesh, wanted, samples)
    _check_counts(config, protocol, real, made)
    with jax.set_mesh(mesh):
        result = _score(config, protocol, mesh, (real, made), metrics, chosen)
    if is_main():
        # First, so that they are known even if a page cannot be written.
        log_scores(result.scores)
        for file in write_comparison(result, folder, config):
            logging.info("wrote %s", file)
    return 0


def _find_protocol(config: ConfigDict) -> GenerationProtocol:
    if config.eval.protocol:
        return GENERATION_PROTOCOLS.get(config.eval.protocol)
    frames, height, width = config.data.buckets[-1][:3]
    return GenerationProtocol(
        name="folders",
        source="two folders of videos, by the keys of the config",
        frames=frames,
        size=(height, width),
        clips=0,
        fps=config.data.fps,
        resize=config.data.resize,
        splits=0,
        metrics=() if config.eval.metrics else tuple(map(ProtocolMetric, _DEFAULT)),
        paper_table=(),
        headline="",
        open=(),
    )


def _make_set_metrics(
    config: ConfigDict, protocol: GenerationProtocol, chosen: Sequence[ProtocolMetric]
) -> list[SetMetric]:
    """The metrics with their networks' weights: missing ones are reported before all else."""
    if protocol.splits not in (0, config.eval.is_splits):
        raise VidlatentError(
            f"{protocol.name} takes inception scores in {protocol.splits} parts: leave "
            "config.eval.is_splits at that."
        )
    metrics = make_metrics(
        (*(metric.name for metric in chosen), *config.eval.metrics),
        config.networks,
        random_networks=config.eval.random_networks,
        is_splits=config.eval.is_splits,
    )
    for metric in metrics:
        if not isinstance(metric, SetMetric):
            raise VidlatentError(
                f"{metric.asked} compares a clip with its reconstruction; sets of clips are scored "
                "by fvd_i3d, fvd_videomae or is_c3d: leave it out of config.eval.metrics."
            )
    return [metric for metric in metrics if isinstance(metric, SetMetric)]


def _check_folders(config: ConfigDict) -> None:
    data = config.data
    if data.source == "latents" and (not data.path or as_path(data.path, HEADER).is_file()):
        raise VidlatentError(
            f"config.data.path={data.path!r} holds latents: name the folder of real clips to "
            "compare with by --config.data.path=clips."
        )
    if config.eval.samples and not as_path(config.eval.samples).is_dir():
        raise VidlatentError(
            f"config.eval.samples={config.eval.samples!r} is no folder: name one of video files."
        )


def _open_clips(
    config: ConfigDict, protocol: GenerationProtocol, mesh: Mesh, most: int, samples: str
) -> ScoredClips:
    """The real clips of ``config.data``, or those of the folder ``samples``."""
    data = config.data.to_dict()
    if samples:
        data |= {"source": "folder", "path": samples, "labels": "", "index_cache": ""}
    # Generated videos are played as they are.
    frames = protocol.generated_frames if samples else protocol.frames
    return ScoredClips(
        data,
        mesh,
        seed=config.seed,
        frames=(frames,),
        rule=FrameRule(frames, frames),
        size=protocol.size,
        place=0.0 if samples else 0.5,
        fps=0.0 if samples else protocol.fps,
        resize=protocol.resize,
        interval=1 if samples else protocol.real_stride,
        most=most,
        share=config.eval.batch,
    )


def _check_counts(
    config: ConfigDict, protocol: GenerationProtocol, real: ScoredClips, made: ScoredClips
) -> None:
    """Raise, or with ``config.eval.fewer_clips`` warn, if a folder has too few clips."""
    wanted = config.eval.clips or protocol.clips
    for clips, frames, few in (
        (real, protocol.real_frames, protocol.few_real),
        (made, protocol.generated_frames, False),
    ):
        found = len(clips.rows)
        if found >= wanted:
            continue
        text = (
            f"{clips.where} has {found} clips of {frames} frames or more, "
            f"{protocol.name} takes {wanted}"
        )
        if not (few or config.eval.fewer_clips):
            raise VidlatentError(
                f"{text}: add clips, or go on with those by --config.eval.fewer_clips=true (a "
                "Fréchet distance depends on the number of clips)."
            )
        logging.warning("%s: going on with %d.", text, found)


def _score(
    config: ConfigDict,
    protocol: GenerationProtocol,
    mesh: Mesh,
    sides: tuple[ScoredClips, ScoredClips],
    metrics: Sequence[SetMetric],
    chosen: Sequence[ProtocolMetric],
) -> Comparison:
    look = compile_look(metrics, mesh)
    accumulators = {metric.name: metric.accumulate() for metric in metrics}
    drops = {REAL: 0, GENERATED: protocol.drop}
    found = [
        measure_side(side, sides[side], drop, look, accumulators, config.eval.pictures)
        for side, drop in drops.items()
    ]
    scores, definitions, names = score_sides(metrics, accumulators, protocol.frames)
    for about in definitions.values():
        about["real_clips"], about["generated_clips"] = (len(side.scored) for side in found)
    if not config.eval.protocol:
        chosen = [ProtocolMetric(metric.asked) for metric in metrics]
    return Comparison(
        protocol,
        chosen,
        scores,
        definitions,
        names,
        real=found[REAL],
        generated=found[GENERATED],
    )
