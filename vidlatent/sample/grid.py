"""Samples logged during training, under the conditions of a few validation clips."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vidlatent.data.loader import Loader
from vidlatent.latents.refiner_inputs import make_inputs
from vidlatent.latents.space import Latents, generator_of
from vidlatent.media.sheets import channel_sheet, contact_sheet, pick_frames
from vidlatent.metrics import stretch_channels
from vidlatent.parallel.multihost import to_global
from vidlatent.parallel.sharding import batch_sharding, replicated
from vidlatent.sample.decoding import ClipDecoder
from vidlatent.sample.prompts import find_shape
from vidlatent.sample.sampler import LatentSampler

__all__ = ["SampleGrid"]

_COLUMNS = 8  # frames of each sample
_VIDEOS = 4  # kept to be played
_LOOKED_AT = 8  # validation batches, of which the one with the longest clips is used


class SampleGrid:
    """``(params, validation loader) -> PNG`` of ``config.sample.grid`` samples; b'' for none.

    Clips and seeds are the same at every call, so that images of different steps can be compared.
    Samples are decoded if the config names the tokenizer, the run has one process, and the data has
    the frames that the decoder reads; otherwise the latent channels of the first sample are shown.

    Attributes:
      videos: uint8 ``[T, H, W, 3]`` of the last call's first samples, if they were decoded and are
        no single frames; for TensorBoard.

    Args:
      config: of the run.
      latents: what the generator knows about its latents.
      frozen: parameters of the step's frozen networks, on the devices.
      mesh: of the run.
      inputs: makes the conditions of a batch; None: those of training, without augmentation.
    """

    def __init__(
        self, config: ConfigDict, latents: Latents, frozen: Any, mesh: Mesh, inputs: Any = None
    ):
        self._config, self._mesh = config, mesh
        self._model, self._latents = generator_of(config), latents
        inputs = make_inputs(config, self._model, self._latents) if inputs is None else inputs
        self._arrays = inputs.arrays
        rows, self._whole = batch_sharding(mesh), replicated(mesh)
        self._rows = rows
        self._frozen = frozen
        # Fixed, so that draws from the posterior are the same at every evaluation.
        key = jax.random.key(0)
        self._inputs = jax.jit(
            lambda frozen, batch: inputs(batch, frozen, key),
            in_shardings=(jax.tree.map(lambda leaf: leaf.sharding, frozen), rows),
            out_shardings=self._whole,
        )
        self._sampler: LatentSampler | None = None
        self._given: tuple[Any, list[dict[str, Any]]] | None = None
        self._decoder = ClipDecoder(config, latents)
        self.videos: list[np.ndarray] = []

    def __call__(self, params: Any, loader: Loader) -> bytes:
        self.videos = []
        if not self._config.sample.grid:
            return b""
        # Once: later evaluations must show the same clips, or they could not be compared.
        if self._given is None:
            self._prepare(loader)
        conditions, clips = self._given
        seeds = self._config.sample.seed + np.arange(len(clips))
        latents = self._latents.restore(self._sampler(params, seeds, conditions))
        if not self._decoder.can_decode(clips[0]):
            title = f"latent channels of a sample: {clips[0]['title']}"
            return channel_sheet(stretch_channels(latents[0]), title=title)
        videos = [self._decoder(latent, clip) for latent, clip in zip(latents, clips, strict=True)]
        self.videos = [video for video in videos if len(video) > 1][:_VIDEOS]
        titles = [clip["title"] for clip in clips]
        if "first" not in self._model.reads or latents.shape[1] == 1:
            return contact_sheet(videos, titles, group=len(videos))
        # What the generator was given comes first, as its decoder shows it.
        given = self._latents.restore(conditions["first"])
        picks = pick_frames(len(videos[0]), _COLUMNS)
        rows = [
            np.concatenate([self._decoder(first, clip), video[picks]])
            for first, video, clip in zip(given, videos, clips, strict=True)
        ]
        return contact_sheet(
            rows, titles, group=len(rows), columns=_COLUMNS + 1, numbers=["given", *picks]
        )

    def _prepare(self, loader: Loader) -> None:
        """Conditions of the longest clips among the first validation batches."""
        learned = self._arrays[0]
        batches = list(itertools.islice(loader, _LOOKED_AT))
        # Long clips show more of a video model than images do.
        batch = max(batches, key=lambda b: b[learned].shape[1])
        host = {name: batch[name] for name in self._arrays if name in batch}
        arrays = {**host, "row": np.arange(len(batch["mask"]))}
        # Every process has only its own rows and must choose the same ones: gather them.
        whole = jax.jit(lambda x: x, out_shardings=self._whole)(to_global(arrays, self._rows))
        latent, conditions = self._inputs(self._frozen, to_global(host, self._rows))
        real = np.flatnonzero(np.asarray(whole["mask"]))[: self._config.sample.grid]
        # The null text is one for all samples, so there are no rows to pick.
        own = {name: value for name, value in conditions.items() if name != "null_text"}
        chosen = jax.tree.map(lambda x: np.asarray(x)[real], own)
        conditions = jax.tree.map(np.asarray, conditions) | chosen
        labels = np.asarray(whole["label"])[real] if "label" in whole else [-1] * len(real)
        words = [
            loader.labels[n] if 0 <= n < len(loader.labels) else f"class {n}" * (n >= 0)
            for n in labels
        ]
        clips = [
            self._decoder.describe(batch, row, word) for row, word in zip(real, words, strict=True)
        ]
        self._given = conditions, clips
        shape = find_shape(self._config, self._latents, latent.shape[1:])
        self._sampler = LatentSampler(self._model, self._config, shape)
