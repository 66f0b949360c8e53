"""``--mode=sample``: videos of prompts, classes and pictures, in a folder for each request."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from vidlatent import config as configs
from vidlatent.errors import VidlatentError
from vidlatent.media.sheets import pick_frames
from vidlatent.media.write import VideoWriter
from vidlatent.parallel.multihost import is_main, tell_all
from vidlatent.paths import as_path
from vidlatent.sample.cascade import Cascade
from vidlatent.sample.generator import Generator, check_makes_videos
from vidlatent.sample.outputs import (
    Sample,
    check_output,
    collect_settings,
    describe_memory,
    make_folder,
    name_video,
    write_samples,
)
from vidlatent.sample.progress import VideoProgress
from vidlatent.sample.requests import COMMAND, Request, read_prompts

__all__ = ["generate_videos"]

_FPS = 24.0  # of written files, if neither config.sample.fps nor the data set gives a rate
_COLUMNS = 8  # frames of each video on the contact sheet


def generate_videos(
    config: ConfigDict,
    workdir: Path,
    step: int,
    output: str,
    prompt: str,
    prompts: str,
    input: str,
) -> int:
    """``--mode=sample``: writes videos, a page, a contact sheet and all settings as JSON.

    Interrupted, between two steps of a batch at the latest, it describes the videos that are done.

    Args:
      config, workdir: of the generator's run.
      step: checkpoint; below 0 the newest.
      output: folder without samples; empty: a new ``<workdir>/samples/step_<n>/0001-<prompt>``.
      prompt: one text or class.
      prompts: a file of prompts; with neither, ``config.sample.prompts``.
      input: image that is the first (or the content) frame of every video.
    """
    if not configs.is_generator(config):
        raise VidlatentError(
            f"--workdir={workdir} is a tokenizer's: --mode=sample needs a generator's, such as "
            "that of configs/fsvideo_dit.py."
        )
    check_makes_videos(config, workdir, COMMAND)
    if prompt and prompts:
        raise VidlatentError("--prompt and --prompts: give one of the two.")
    check_output(output)
    rows: list[dict[str, object]] = [
        {"prompt": text} for text in ([prompt] if prompt else config.sample.prompts)
    ]
    rows = read_prompts(prompts) if prompts else rows
    generator: Any = Generator.of(config, workdir, step)
    if config.sample.refine:
        generator = _make_cascade(generator, config, workdir)
    requests = generator.requests_for(rows, config.sample.count, config.sample.seed, COMMAND)
    if input:
        requests = [dataclasses.replace(request, image=input) for request in requests]
    generator.check(requests, COMMAND)
    if not rows and len(requests) > config.sample.count:
        logging.info(
            "no --prompt: %d of each of the %d classes, %d videos",
            config.sample.count,
            len(requests) // config.sample.count,
            len(requests),
        )
    _Job(generator, requests, workdir, output).run()
    return 0


def _make_cascade(base: Generator, config: ConfigDict, workdir: Path) -> Cascade:
    """The cascade of ``config.sample.refine``, at ``config.sample.size`` if that was asked for."""
    cascade = Cascade.of(base, config.sample.refine)
    asked = tuple(config.sample.size)
    # The base model's own size, which its run stores, is not meant for refined videos.
    if not asked or asked == tuple(configs.read(workdir).sample.size):
        return cascade
    frames, height, width = base.size
    return cascade.with_settings(size=(height, width), frames=frames)


class _Job:
    """Draws, decodes and writes the videos of requests.

    Args:
      generator: that draws.
      requests: to meet, in this order.
      workdir, output: see ``generate_videos``.
    """

    def __init__(self, generator: Any, requests: Sequence[Request], workdir: Path, output: str):
        self._generator, self._requests = generator, requests
        self._workdir, self._output = workdir, output
        config = generator.config
        self._fps = config.sample.fps or generator.known.fps or _FPS
        self._picks = pick_frames(generator.size[0], _COLUMNS)
        self._samples: list[Sample] = []
        self._shown: list[np.ndarray] = []  # frames of the videos that this process wrote
        self._taken: dict[str, set[str]] = {}
        self._folder: Path | None = None
        self._decoding = 0.0

    def run(self) -> None:
        generator, total = self._generator, len(self._requests)
        logging.info(
            "drawing %d videos of %s frames, %s%s evaluations of the network each",
            total,
            "x".join(map(str, generator.size)),
            "at most " if generator.config.sampler.cache.threshold else "",
            _describe_nfe(generator.nfe),
        )
        began, progress = time.perf_counter(), VideoProgress(total)
        try:
            drawn = generator.latents(self._requests, progress.step)
            for number, (request, latent) in enumerate(drawn):
                # All processes draw together, and then take turns in decoding and writing.
                name = self._name(request)
                if number % jax.process_count() == jax.process_index():
                    progress.say(f"wrote {self._write(request, name, latent)}")
                progress.advance()
        except KeyboardInterrupt:
            # What is done stays described.
            if self._samples:
                self._finish(time.perf_counter() - began)
            logging.info("interrupted: %d of %d videos are done", len(self._samples), total)
            raise
        finally:
            progress.close()
        self._collect()
        if is_main():
            self._finish(time.perf_counter() - began)

    def _name(self, request: Request) -> str:
        """The name of a request's video in the folder, the same on all processes."""
        if self._folder is None:
            # Now that the generator is loaded, its step is certain.
            parent = self._workdir / "samples" / f"step_{self._generator.step}"
            made = self._output or (make_folder(parent, self._requests) if is_main() else "")
            self._folder = as_path(tell_all(os.fspath(made)))
            # Here, because looking for the newest step takes all processes.
            self._checkpoints = self._generator.checkpoints
        names = self._taken.setdefault(request.folder, set())
        vbench = self._generator.config.sample.vbench
        name = name_video(request.prompt, request.number, names, vbench=vbench)
        return str(as_path(request.folder, name))

    def _write(self, request: Request, name: str, latent: np.ndarray) -> Path:
        start, generator = time.perf_counter(), self._generator
        assert self._folder is not None
        file = self._folder / name
        frames = _write_video(generator.decode(request, latent), file, self._fps, self._picks)
        self._shown.append(frames)
        self._samples.append(Sample(request, name, frames, generator.picture(request)))
        self._decoding += time.perf_counter() - start
        return file

    def _collect(self) -> None:
        """Give the main process the frames of the videos that the others wrote, for its sheet."""
        count, total = jax.process_count(), len(self._requests)
        if count == 1:
            return
        # All have as many rows, so that they can be gathered; all videos are of one size.
        rows = -(-total // count)
        shape = (len(self._picks), *self._generator.size[1:], 3)
        mine = np.zeros((rows, *shape), np.uint8)
        for row, frames in enumerate(self._shown):
            mine[row] = frames
        shown = multihost_utils.process_allgather(mine)
        if is_main():
            self._taken.clear()  # the names once more, in their order
            self._samples = [
                Sample(
                    request,
                    self._name(request),
                    shown[number % count, number // count],
                    self._generator.picture(request),
                )
                for number, request in enumerate(self._requests)
            ]

    def _finish(self, seconds: float) -> None:
        """Write settings, sheet and page of the videos that are done."""
        generator, config = self._generator, self._generator.config
        assert self._folder is not None
        memory = generator.memory()
        settings = collect_settings(
            config,
            step=generator.step,
            latents=generator.known.spec.to_json(),
            size=generator.size,
            latent_shape=generator.shape,
            fps=float(self._fps),
            checkpoints=self._checkpoints,
            nfe=generator.nfe,
            nfe_is="at most" if config.sampler.cache.threshold else "exact",
            compute=generator.compute,  # which fp8_psnr is against
            fp8_psnr=generator.fp8_psnr,
            memory=memory,
            seconds={
                "drawing": round(seconds - self._decoding, 3),
                "decoding": round(self._decoding, 3),
                **generator.seconds,
            },
            **{name: collect_settings(part) for name, part in generator.part_configs.items()},
        )
        title = f"Videos of {config.name} ({config.preset}) at step {generator.step}"
        written = write_samples(self._folder, self._samples, settings, self._picks, title)
        logging.info("memory of a device: %s", describe_memory(memory))
        for file in written:
            logging.info("look at %s" if file.suffix == ".html" else "wrote %s", file)


def _describe_nfe(nfe: int | dict[str, int]) -> str:
    if isinstance(nfe, int):
        return str(nfe)
    return " + ".join(f"{count} ({name})" for name, count in nfe.items())


def _write_video(
    pieces: Iterator[np.ndarray], path: Path, fps: float, picks: Sequence[int]
) -> np.ndarray:
    """Write a video piece by piece; returns the frames ``picks`` of it, ``[n, H, W, 3]``."""
    kept, number = [], 0
    with VideoWriter(path, fps) as writer:
        for piece in pieces:
            for frame in piece:
                writer.add(frame)
                if number in picks:
                    kept.append(frame)
                number += 1
    return np.stack(kept)
