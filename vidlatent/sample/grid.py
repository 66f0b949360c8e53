"""Samples logged during training, under the conditions of a few validation clips."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vidlatent.codec.codec import Codec
from vidlatent.codec.options import CodecOptions
from vidlatent.data.loader import Loader
from vidlatent.latents.refiner_inputs import make_inputs
from vidlatent.latents.space import (
    Latents,
    check_tokenizer,
    generator_of,
    read_tokenizer_config,
)
from vidlatent.media.sheets import channel_sheet, contact_sheet, pick_frames
from vidlatent.metrics import stretch_channels
from vidlatent.models.load import model_of
from vidlatent.parallel.mesh import make_mesh
from vidlatent.parallel.multihost import to_global
from vidlatent.parallel.sharding import batch_sharding, replicated
from vidlatent.sample.sampler import LatentSampler

__all__ = ["SampleGrid", "load_tokenizer_codec", "pick_content_frames", "use_one_device"]

_COLUMNS = 8  # frames of each sample
_LOOKED_AT = 8  # validation batches, of which the one with the longest clips is used


class SampleGrid:
    """``(params, validation loader) -> PNG`` of ``config.sample.grid`` samples; b'' for none.

    Clips and seeds are the same at every call, so that images of different steps can be compared.
    Samples are decoded if the config names the tokenizer, the run has one process, and the data has
    the frames that the decoder reads; otherwise the latent channels of the first sample are shown.

    Args:
      config: of the run.
      latents: what the generator knows about its latents.
      frozen: parameters of the step's frozen networks, on the devices.
      mesh: of the run.
    """

    def __init__(self, config: ConfigDict, latents: Latents, frozen: Any, mesh: Mesh):
        self._config, self._mesh = config, mesh
        self._model, self._latents = generator_of(config), latents
        inputs = make_inputs(config, self._model, self._latents)
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
        self._codec: Codec | None = None

    def __call__(self, params: Any, loader: Loader) -> bytes:
        if not self._config.sample.grid:
            return b""
        # Once: later evaluations must show the same clips, or they could not be compared.
        if self._given is None:
            self._prepare(loader)
        conditions, clips = self._given
        seeds = self._config.sample.seed + np.arange(len(clips))
        latents = self._latents.restore(self._sampler(params, seeds, conditions))
        if not self._can_decode(clips[0]):
            title = f"latent channels of a sample: {clips[0]['title']}"
            return channel_sheet(stretch_channels(latents[0]), title=title)
        videos = [self._decode(latent, clip) for latent, clip in zip(latents, clips, strict=True)]
        titles = [clip["title"] for clip in clips]
        if "first" not in self._model.reads or latents.shape[1] == 1:
            return contact_sheet(videos, titles, group=len(videos))
        # What the generator was given comes first, as its decoder shows it.
        given = self._latents.restore(conditions["first"])
        picks = pick_frames(len(videos[0]), _COLUMNS)
        rows = [
            np.concatenate([self._decode(first, clip), video[picks]])
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
        clips = [self._clip(batch, row, word) for row, word in zip(real, words, strict=True)]
        self._given = conditions, clips
        self._sampler = LatentSampler(self._model, self._config, latent.shape[1:])

    def _clip(self, batch: Mapping[str, Any], row: int, title: str) -> dict[str, Any]:
        """Title, content frames and video of a clip; only the title with several processes."""
        seen: dict[str, Any] = {"content": None, "video": None}
        if jax.process_count() == 1:
            if not title and "caption" in batch:
                title = str(batch["caption"][row])
            seen |= {name: np.asarray(batch[name][row]) for name in seen if name in batch}
        return {"title": title or "sample", **seen}

    def _can_decode(self, clip: Mapping[str, Any]) -> bool:
        """Whether there is a tokenizer here, and the frame that its decoder reads, if it does."""
        if not self._config.tokenizer.path or jax.process_count() > 1:
            return False
        # A set has no such frames if another decoder's workdir encoded it (FSAE and its Standard).
        tokenizer = model_of(read_tokenizer_config(self._config))
        given = clip["content"] is not None or clip["video"] is not None
        return given or tokenizer.condition_kind == "none"

    def _decode(self, latent: np.ndarray, clip: Mapping[str, Any]) -> np.ndarray:
        with use_one_device():
            if self._codec is None:
                self._codec = load_tokenizer_codec(self._config, self._latents)
            content = clip["content"]
            if content is None and clip["video"] is not None:
                content = pick_content_frames(self._codec, clip["video"])
            return self._codec.decode(latent, content=content)


def pick_content_frames(codec: Codec, video: np.ndarray) -> np.ndarray | None:
    """The frames of ``video`` ``[T, H, W, 3]`` that the decoder reads, or None if it reads none."""
    if codec.model.condition_kind == "none":
        return None
    return np.asarray(codec.model.apply({}, video[None], method="pick_content_frames"))


def use_one_device() -> Any:
    """A context in which the mesh is the first local device alone."""
    sizes = {"data": 1, "fsdp": 1, "context": 1, "tensor": 1}
    return jax.set_mesh(make_mesh(sizes, jax.local_devices()[:1]))


def load_tokenizer_codec(config: ConfigDict, latents: Latents) -> Codec:
    """The tokenizer of ``config.tokenizer``.

    Raises:
      VidlatentError: its encoder did not make the latents.
    """
    path, step = config.tokenizer.path, config.tokenizer.step
    own = read_tokenizer_config(config)
    check_tokenizer(latents.space, config, "this generator")
    options = CodecOptions.of(**own.codec).for_latents(latents.spec)
    options = options.with_cut(model_of(own), latents.space.cut)
    return Codec.from_workdir(path, None if step < 0 else step, options)
