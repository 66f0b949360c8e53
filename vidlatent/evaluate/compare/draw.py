"""Samples of a trained generator to score: as many as a protocol takes, each with its own seed.

Classes are drawn at random, each as likely as any other. Texts are ``config.sample.prompts`` in
turn or, if that is empty, the captions of real clips, or the names of their classes. A generator
that reads a picture gets a frame of a real clip: the middle one as content frame, otherwise the
first.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
from PIL import Image

from vidlatent.errors import VidlatentError
from vidlatent.evaluate.clips import ScoredClips
from vidlatent.evaluate.protocols.generation import GenerationProtocol
from vidlatent.files import write_text
from vidlatent.latents.space import generator_of
from vidlatent.parallel.multihost import is_main
from vidlatent.sample.run import generate_videos

__all__ = ["CONTACT_SHEET", "draw_samples"]

CONTACT_SHEET = "contact_sheet.png"  # what --mode=sample writes beside its videos
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

    Raises:
      VidlatentError: there are samples already, the generator's videos are too short, or it reads
        texts and there are none.
    """
    samples = folder / "samples"
    if samples.is_dir() and any(samples.iterdir()):
        raise VidlatentError(
            f"{samples} holds samples of an earlier call: score those by "
            f"--config.eval.samples={samples}, or give another --output."
        )
    size = tuple(config.sample.size) or tuple(config.data.buckets[-1][:3])
    if size[0] < protocol.generated_frames:
        raise VidlatentError(
            f"{protocol.name} takes generated clips of {protocol.generated_frames} frames, and "
            f"this generator's have {size[0]}: set config.sample.size."
        )
    count = config.eval.clips or protocol.clips or len(real.rows)
    requests = folder / "requests.jsonl"
    # Of all processes, so that a mistake stops all of them.
    rows = _make_rows(config, count, real)
    if is_main():
        _add_pictures(rows, set(generator_of(config).reads), real, folder / "pictures")
        folder.mkdir(parents=True, exist_ok=True)
        write_text(requests, "".join(json.dumps(row) + "\n" for row in rows))
    # The other processes read what the main one has just written.
    multihost_utils.sync_global_devices("vidlatent.evaluate.compare.requests")
    generate_videos(config, workdir, step, str(samples), "", str(requests), "")
    multihost_utils.sync_global_devices("vidlatent.evaluate.compare.samples")
    logging.info("score these samples again by --config.eval.samples=%s", samples)
    return samples


def _make_rows(config: ConfigDict, count: int, real: ScoredClips) -> list[dict[str, Any]]:
    """One request a sample, as ``--prompts`` takes them; without pictures."""
    reads = set(generator_of(config).reads)
    prompts: Sequence[Any] = [""] * count
    if "label" in reads:
        classes = generator_of(config).label_classes
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
