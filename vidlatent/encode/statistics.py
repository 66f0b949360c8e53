"""Moments of a tokenizer's latents: measured once, by the first set or by ``--mode=latents``."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from vidlatent import config as configs
from vidlatent.data.loaders import Loaders
from vidlatent.encode.encoders import LatentEncoder, choose_chunks
from vidlatent.encode.for_generator import tokenizer_job
from vidlatent.errors import VidlatentError
from vidlatent.latents.contract import LatentSpace, chunk_latents
from vidlatent.latents.digest import hash_encoder
from vidlatent.latents.statistics import Statistics, find_statistics, store_statistics
from vidlatent.metrics import ChannelMoments
from vidlatent.models.load import model_of, restore_tokenizer
from vidlatent.parallel.mesh import local_mesh
from vidlatent.spec import LatentSpec

__all__ = ["LatentMoments", "check_measurable", "measure_latents", "settle_moments"]


class LatentMoments:
    """Running moments of latents: of all latent frames, and of each in its chunk if there are any.

    Args:
      spec: of the latents.
    """

    def __init__(self, spec: LatentSpec):
        self.chunks = spec.chunks
        self.pooled = ChannelMoments(spec.channels)
        self.apart = [ChannelMoments(spec.channels) for _ in range(chunk_latents(spec))]

    def add(self, latent: np.ndarray) -> None:
        """Add a latent ``[t, h, w, c]``, whole chunks from its beginning on."""
        self.pooled.add(latent)
        for place, moments in enumerate(self.apart):
            moments.add(latent[place :: len(self.apart)])

    def merge(self, stored: Mapping[str, Any]) -> None:
        """Add what ``to_json`` of another one gave."""
        rows = stored.get("apart_by_frame", ())
        self.pooled.merge(**{key: stored[key] for key in ("n", "mean", "apart")})
        if len(rows) != len(self.apart):
            self.apart = []  # shards of an older version have none
        for moments, row in zip(self.apart, rows, strict=False):
            moments.merge(**row)

    def to_json(self) -> dict[str, Any]:
        rows = [_to_json(moments) for moments in self.apart]
        return _to_json(self.pooled) | ({"apart_by_frame": rows} if rows else {})

    def statistics(self, **about: Any) -> list[Statistics]:
        """What was measured; ``about`` are the other fields of ``Statistics``."""
        pooled, apart = self.pooled, self.apart
        found = [Statistics(mean=pooled.mean, std=pooled.std, n=pooled.n, **about)]
        least = min((row.n for row in apart), default=0)
        # Pictures alone fill only the first latent frame of a chunk.
        if least:
            mean, std = np.stack([row.mean for row in apart]), np.stack([row.std for row in apart])
            found.append(Statistics(mean=mean, std=std, chunks=self.chunks, n=least, **about))
        return found


def _to_json(moments: ChannelMoments) -> dict[str, Any]:
    return {"n": moments.n, "mean": moments.mean.tolist(), "apart": moments.apart.tolist()}


def check_measurable(
    config: ConfigDict, workdir: Path, encoder: LatentEncoder, digest: str
) -> None:
    """Raise if a set would make a tokenizer keep moments that are not those of videos.

    Args:
      config: of the set.
      workdir: of the tokenizer.
      encoder: and its ``digest``.

    Raises:
      VidlatentError: the data are prompts, whose pictures are grey, and nothing was measured yet.
    """
    if config.data.source == "prompts" and find_statistics(workdir, digest, encoder.cut) is None:
        raise VidlatentError(
            "config.data.source='prompts' has grey pictures, and the latents of "
            f"{workdir} have no mean and deviation yet: measure them on videos first, by "
            f"--mode=latents --workdir={workdir}."
        )


def settle_moments(workdir: Path, measured: Sequence[Statistics]) -> list[dict[str, Any]]:
    """The tokenizer's moments: those that it has, else the measured ones, stored with it.

    Returns:
      What the header of a set carries (``Header.moments``).
    """
    settled = []
    for statistics in measured:
        # Through what is stored, so that the first set carries the same numbers as later ones.
        try:
            if store_statistics(workdir, statistics):
                what = (
                    f"each latent frame of chunks {statistics.chunks}"
                    if statistics.chunks
                    else ("the latents")
                )
                logging.info("%s keeps the moments of %s from now on", workdir, what)
        except VidlatentError as error:
            logging.warning("%s", error)
        found = find_statistics(workdir, *statistics.key) or statistics
        settled.append(found.to_json())
    return settled


def measure_latents(config: ConfigDict, workdir: Path, step: int) -> int:
    """``--mode=latents``: measure the moments of a tokenizer's latents on training clips.

    They are stored with the tokenizer (``latents.statistics``), where ``--mode=encode`` and
    generators find them; a tokenizer that has some of this encoder keeps them.

    Args:
      config: of the tokenizer, or of a generator whose sizes and chunks are taken, as for
        ``--mode=encode``; ``config.data`` are the clips, and ``config.encode.measure_batches`` says
        how many.
      workdir: of the tokenizer.
      step: its checkpoint; below 0 the newest sound one.

    Returns:
      The exit status.

    Raises:
      VidlatentError: the data are no videos, or the moments cannot be stored.
    """
    if configs.is_generator(config):
        config, workdir, step = tokenizer_job(config, workdir, step)
    if config.data.source == "latents":
        raise VidlatentError("config.data.source='latents' is encoded already: name the videos.")
    if config.data.source == "prompts":
        raise VidlatentError(
            "config.data.source='prompts' has grey pictures, which say nothing of latents: name "
            "videos (config.data.source=folder, config.data.path)."
        )
    model = model_of(config)
    spec, coding = choose_chunks(config, model)
    mesh = local_mesh([bucket[3] for bucket in config.data.buckets])
    restored = restore_tokenizer(config, workdir, model, mesh, step)
    encoder = LatentEncoder(model, restored.state, mesh, 0, config.seed, coding)
    digest = hash_encoder(model, restored.state)
    known = find_statistics(workdir, digest, encoder.cut)
    if known and (not spec.chunks or find_statistics(workdir, digest, encoder.cut, spec.chunks)):
        logging.info("measured already, and kept:")
        _tell(spec, known)
        return 0
    loaders = Loaders(config, spec, workdir)
    moments, clips = LatentMoments(spec), 0
    with jax.set_mesh(mesh), loaders.train(0) as loader:
        for batch in itertools.islice(loader, config.encode.measure_batches):
            names = [""] * len(batch["mask"])
            latents = np.asarray(encoder(batch["video"], names, [0] * len(names)))
            # Padding would count as black clips.
            for row in np.flatnonzero(batch["mask"]):
                moments.add(latents[row, 0])
                clips += 1
    measured = moments.statistics(
        encoder=digest, cut=encoder.cut, step=restored.step, where=f"{clips} clips"
    )
    (pooled, *_) = (Statistics.from_json(row) for row in settle_moments(workdir, measured))
    _tell(spec, pooled)
    return 0


def _tell(spec: LatentSpec, found: Statistics) -> None:
    logging.info(
        "%s, step %d: channels have means of %.3g to %.3g and deviations of %.3g to %.3g, in %s",
        *(LatentSpace.of_spec(spec, encoder=found.encoder), found.step),
        *(np.min(found.mean), np.max(found.mean), np.min(found.std), np.max(found.std)),
        found.where,
    )
