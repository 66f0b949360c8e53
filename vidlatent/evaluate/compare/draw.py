"""Samples of a trained generator to score: as many as a protocol takes, each with its own seed.

Classes are drawn at random, each as likely as any other. Texts are ``config.sample.prompts`` in
turn or, if that is empty, the captions of real clips, or the names of their classes. A generator
that reads a picture gets a frame of a real clip: the middle one as content frame, otherwise the
first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
from PIL import Image

from vidlatent.errors import VidlatentError
from vidlatent.evaluate.clips import ScoredClips
from vidlatent.evaluate.protocols.generation import GenerationProtocol
from vidlatent.files import dump_json, read_json, write_json, write_text
from vidlatent.media.write import VideoWriter
from vidlatent.parallel.multihost import is_main
from vidlatent.sample.generator import Generator
from vidlatent.sample.outputs import collect_settings
from vidlatent.sample.progress import VideoProgress
from vidlatent.sample.requests import COMMAND, Request, read_prompts

__all__ = ["CONTACT_SHEET", "draw_samples"]

CONTACT_SHEET = "contact_sheet.png"  # what --mode=sample writes beside its videos
_REQUESTS, _SETTINGS = "requests.jsonl", "settings.json"
_FPS = 24.0  # of written files, if neither config.sample.fps nor the data set gives a rate
_PICTURES = {"first", "image", "content"}


def draw_samples(
    config: ConfigDict,
    workdir: Path,
    step: int,
    folder: Path,
    protocol: GenerationProtocol,
    real: ScoredClips,
) -> Path:
    """Draw the samples that a protocol takes into ``folder / 'samples'``, and return that folder.

    Each video is a file by its number. Samples that an earlier call with the same settings drew
    there are kept, so a call that was interrupted goes on where it was.

    Raises:
      VidlatentError: there are samples of other settings, the generator's videos are too short, or
        it reads texts and there are none.
    """
    generator = Generator.of(config, workdir, step)
    if generator.size[0] < protocol.generated_frames:
        raise VidlatentError(
            f"{protocol.name} takes generated clips of {protocol.generated_frames} frames, and "
            f"this generator's have {generator.size[0]}: set config.sample.size."
        )
    count = config.eval.clips or protocol.clips or len(real.rows)
    # Of all processes, so that a mistake stops all of them.
    rows = _make_rows(config, count, real, generator)
    asked, samples = folder / _REQUESTS, folder / "samples"
    _check_same(folder, samples, generator, rows)
    if is_main():
        _add_pictures(rows, set(generator.reads), real, folder / "pictures")
        samples.mkdir(parents=True, exist_ok=True)
        write_json(folder / _SETTINGS, _describe(generator, count))
        write_text(asked, "".join(json.dumps(row) + "\n" for row in rows))
    # The other processes read what the main one has just written.
    multihost_utils.sync_global_devices("vidlatent.evaluate.compare.requests")
    requests = generator.requests_for(read_prompts(str(asked)), 1, config.sample.seed, COMMAND)
    generator.check(requests, COMMAND)
    files = {request: samples / f"{number:06}.mp4" for number, request in enumerate(requests)}
    pending = [request for request, file in files.items() if not file.is_file()]
    # Before any of them writes: all processes must find the same files missing.
    multihost_utils.sync_global_devices("vidlatent.evaluate.compare.pending")
    if pending:
        _write_videos(generator, pending, files)
    multihost_utils.sync_global_devices("vidlatent.evaluate.compare.samples")
    logging.info("%d samples, %d of them drawn now: %s", count, len(pending), samples)
    return samples


def _describe(generator: Generator, count: int) -> dict[str, Any]:
    """What samples depend on, beside their requests."""
    settings = collect_settings(
        generator.config, step=generator.step, size=generator.size, samples=count
    )
    # Of all keys, those of scoring do not change a sample.
    return {name: settings[name] for name in settings if name not in ("config", "all_keys")}


def _check_same(
    folder: Path, samples: Path, generator: Generator, rows: list[dict[str, Any]]
) -> None:
    """Raise if there are samples of other settings or requests."""
    if not samples.is_dir() or not any(samples.iterdir()):
        return
    settings, asked = folder / _SETTINGS, folder / _REQUESTS
    same = settings.is_file() and asked.is_file()
    if same:
        remedy = f"remove {folder}, whose samples cannot be gone on with."
        # As JSON has it: without tuples.
        wanted = json.loads(dump_json(_describe(generator, len(rows))))
        before = [{**row, "image": None} for row in read_prompts(str(asked))]
        now = [{**row, "image": None} for row in rows]
        same = read_json(settings, remedy) == wanted and before == now
    if not same:
        raise VidlatentError(
            f"{samples} holds samples of other settings: score those by "
            f"--config.eval.samples={samples}, or give another --output."
        )


def _write_videos(
    generator: Generator, requests: Sequence[Request], files: Mapping[Request, Path]
) -> None:
    fps = generator.config.sample.fps or generator.known.fps or _FPS
    progress = VideoProgress(len(requests))
    try:
        for number, (request, latent) in enumerate(generator.latents(requests)):
            # All processes draw together, and then take turns in decoding and writing.
            if number % jax.process_count() == jax.process_index():
                with VideoWriter(files[request], fps) as writer:
                    for piece in generator.decode(request, latent):
                        for frame in piece:
                            writer.add(frame)
            progress.advance()
    finally:
        progress.close()


def _make_rows(
    config: ConfigDict, count: int, real: ScoredClips, generator: Generator
) -> list[dict[str, Any]]:
    """One request a sample, as ``--prompts`` takes them; without pictures."""
    reads = set(generator.reads)
    prompts: Sequence[Any] = [""] * count
    if "label" in reads:
        classes = generator.model.label_classes
        prompts = np.random.default_rng(config.seed).integers(classes, size=count).tolist()
    elif "text" in reads:
        given = list(config.sample.prompts) or [real.captions[row] for row in real.wanted]
        prompts = [given[i % len(given)] for i in range(count)]
        if not all(prompts):
            raise VidlatentError(
                "this generator reads texts, and the clips of config.data.path have no captions: "
                "set config.sample.prompts, or name a folder of samples by config.eval.samples."
            )
    return [{"prompt": text, "seed": config.sample.seed + i} for i, text in enumerate(prompts)]


def _add_pictures(
    rows: list[dict[str, Any]], reads: set[str], real: ScoredClips, folder: Path
) -> None:
    """Give each request a frame of a real clip, by turns, if the generator reads pictures."""
    if not reads & _PICTURES:
        return
    wanted = real.wanted[: len(rows)]
    files = _write_pictures(real, set(wanted), folder, middle="content" in reads)
    known = [row for row in wanted if row in files]
    for number, line in enumerate(rows):
        line["image"] = files[known[number % len(known)]]


def _write_pictures(
    real: ScoredClips, rows: set[int], folder: Path, middle: bool
) -> dict[int, str]:
    """Number of a clip -> file of a frame of its window, of the clips that can be read."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    with real.open(rows, alone=True) as loader:
        for batch in loader:
            for row in np.flatnonzero(batch["mask"]):
                video, number = batch["video"][row], int(batch["clip"][row])
                file = folder / f"{number:06}.png"
                # Frame 7 of 16 is Reducio's middle one.
                frame = video[(len(video) - 1) // 2 if middle else 0]
                Image.fromarray(np.asarray(frame)).save(file)
                files[number] = str(file)
    if not files:
        raise VidlatentError(f"no clip of {real.where} could be read: look at its files.")
    return files
