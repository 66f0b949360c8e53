"""Encoding the data set of a generator's preset: what its config asks for, nothing typed by hand.

    --mode=encode --config=configs/fsvideo_dit.py:paper,stage=image --workdir=runs/fsae-standard
    --config.data.path=my_videos --output=latents/image

takes sizes, frame rate, chunks, and text and image encoders from the generator's config, and the
tokenizer from the workdir.
"""

from __future__ import annotations

from pathlib import Path

import jax
from ml_collections import ConfigDict

from vidlatent import config as configs
from vidlatent.config.defaults.codec import get_codec
from vidlatent.errors import VidlatentError
from vidlatent.paths import as_path
from vidlatent.weights.files import is_workdir

__all__ = ["tokenizer_job"]

# Sections that say what is encoded and how; the others are those the tokenizer was trained with.
_SECTIONS = ("data", "encode", "networks", "precision", "kernels")
# Pixels of all frames that a device encodes at a time. A bucket's batch is a training step's, which
# many devices share: here one device takes as many windows as have about these, and at least one.
_PIXELS = 2**25


def tokenizer_job(config: ConfigDict, workdir: Path, step: int) -> tuple[ConfigDict, Path, int]:
    """``(config, workdir, step)`` of the encoding that a generator's config asks for.

    Args:
      config: a generator's. ``tokenizer.path`` names the tokenizer; empty: ``workdir`` does.
        ``data.source`` 'latents', which its presets have, stands for a folder of videos here.
      workdir: as above.
      step: checkpoint of the tokenizer; below 0: ``tokenizer.step``.

    Raises:
      VidlatentError: there is no tokenizer's run.
    """
    named = as_path(config.tokenizer.path or workdir)
    if not is_workdir(named):
        raise VidlatentError(
            f"--mode=encode for {config.name} needs the tokenizer's run, and {named} is none: name "
            "it by --workdir=... (or --config.tokenizer.path=...)."
        )
    job = configs.read(named)
    if configs.is_generator(job):
        raise VidlatentError(
            f"{named} is a run of the generator {job.name}, and encoding takes a tokenizer's: name "
            "that by --workdir=... (or --config.tokenizer.path=...)."
        )
    with job.unlocked():
        for section in _SECTIONS:
            job[section] = config[section].copy_and_resolve_references()
        # How the tokenizer cuts large and long clips is its own, unless keys are given here.
        unset = get_codec()
        job.codec.update({k: v for k, v in config.codec.items() if v != unset[k]})
        job.seed = config.seed
    if job.data.source == "latents":
        job.data.source = "folder"
    job.data.buckets = tuple(map(_batch_for_encoding, job.data.buckets))
    # The same chunks that its generator decodes, and draws where it trains on draws.
    job.encode.chunks = job.encode.chunks or config.tokenizer.chunks
    job.encode.draws = job.encode.draws or int(config.tokenizer.sample)
    return job, named, step if step >= 0 else config.tokenizer.step


def _batch_for_encoding(bucket: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    frames, height, width, batch = bucket
    fitting = max(1, _PIXELS // (frames * height * width))
    devices = jax.local_device_count()
    # A multiple of the devices, so that none is idle.
    few = fitting * devices if fitting * devices <= batch else batch
    return frames, height, width, few
