"""What is stored of a tokenizer's latents in its workdir: encoder digests and measured moments.

``<tokenizer>/latent_space.json`` holds, for each checkpoint that was asked about, the digest of its
encoder, and for each encoder the mean and deviation of its latents, measured once. Moments are
found by the encoder's digest: a tokenizer whose encoder trained on has none until they are measured
again, and one that was fine-tuned with a frozen encoder has those of the run that it started from.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from etils import epath

from vidlatent import config as configs
from vidlatent.checkpoint import digests
from vidlatent.errors import VidlatentError
from vidlatent.files import read_json, write_json
from vidlatent.latents.digest import hash_encoder, hash_params
from vidlatent.models.load import abstract_params, model_of, open_checkpoints
from vidlatent.parallel.multihost import is_main
from vidlatent.weights.files import is_workdir

__all__ = ["RECORD", "Digests", "Statistics", "find_digests", "find_statistics", "store_statistics"]

RECORD = "latent_space.json"
_FORMAT = 1
_ANCESTORS = 16  # runs that a search for moments goes back


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Measured moments of one encoder's latents.

    Attributes:
      encoder: its digest.
      mean, std: ``[c]``; or ``[p, c]``, of each latent frame of a chunk.
      chunks: ``(frames, overlap_frames)`` of those chunks; None: all latent frames pooled.
      cut: as of ``LatentSpace``.
      n: values behind each mean.
      step: checkpoint whose latents were measured.
      where: the clips, for people.
    """

    encoder: str
    mean: Any
    std: Any
    chunks: tuple[int, int] | None = None
    cut: str = ""
    n: int = 0
    step: int = 0
    where: str = ""

    @property
    def key(self) -> tuple[Any, ...]:
        return self.encoder, self.cut, self.chunks

    def to_json(self) -> dict[str, Any]:
        moments = {name: np.asarray(getattr(self, name)).tolist() for name in ("mean", "std")}
        return {**vars(self), **moments}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Statistics:
        chunks = stored["chunks"]
        return cls(**{**stored, "chunks": None if chunks is None else tuple(chunks)})


class Digests(NamedTuple):
    """Of a tokenizer's checkpoint: of what encodes, and of all its parameters."""

    encoder: str
    weights: str


def find_digests(path: str | os.PathLike[str], step: int = -1) -> Digests:
    """The digests of a tokenizer's checkpoint (``latents.digest``).

    They are computed once for each checkpoint and kept in the workdir, if it can be written to.

    Args:
      path: workdir of the tokenizer.
      step: checkpoint; below 0 the newest sound one.

    Raises:
      VidlatentError: there is no such checkpoint.
    """
    config = configs.read(Path(path))
    model = model_of(config)
    with contextlib.closing(open_checkpoints(config, Path(path))) as checkpoints:
        number = checkpoints.latest() if step < 0 else step
        known = _read(path)["checkpoints"].get(_fingerprint(checkpoints.directory, number))
        if known:
            return Digests(**known)
        asked = None if step < 0 else step
        restored = checkpoints.restore_params(abstract_params(model), step=asked)
        found = Digests(hash_encoder(model, restored.state), hash_params(restored.state))
        mark = _fingerprint(checkpoints.directory, restored.step)
    _change(path, lambda record: record["checkpoints"].update({mark: found._asdict()}))
    return found


def _fingerprint(checkpoints: epath.Path, step: int | None) -> str:
    """What tells a checkpoint from another one of the same number, without reading its arrays."""
    total = hashlib.sha256()
    for file in sorted((checkpoints / str(step) / digests.ITEM).glob("*.json")):
        total.update(file.read_bytes())
    return f"{step}:{total.hexdigest()[:16]}"


def find_statistics(
    path: str | os.PathLike[str],
    encoder: str,
    cut: str | None = "",
    chunks: tuple[int, int] | None = None,
) -> Statistics | None:
    """The moments of an encoder's latents: a tokenizer's, or those of a run that it started from.

    Args:
      path: workdir of the tokenizer.
      encoder: digest of its encoder.
      cut: as of ``LatentSpace``.
      chunks: of each latent frame of these chunks; None: all latent frames pooled.
    """
    place = os.fspath(path)
    for _ in range(_ANCESTORS):
        if not place or not is_workdir(place):
            return None
        for stored in _read(place)["statistics"]:
            found = Statistics.from_json(stored)
            if found.key == (encoder, cut or "", chunks):
                return found
        place = configs.read(Path(place)).train.init_from
    return None


def store_statistics(path: str | os.PathLike[str], statistics: Statistics) -> bool:
    """Store measured moments with a tokenizer, unless it has some of that encoder already.

    Returns:
      Whether they were stored.

    Raises:
      VidlatentError: the workdir cannot be written to.
    """

    def add(record: dict[str, Any]) -> None:
        record["statistics"].append(statistics.to_json())

    if find_statistics(path, *statistics.key) is not None:
        return False
    if not _change(path, add):
        raise VidlatentError(
            f"the moments of the latents could not be stored in {path}: make it writable, or set "
            "config.latents.normalisation=spec."
        )
    return True


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    file = Path(path, RECORD)
    empty: dict[str, Any] = {"format": _FORMAT, "checkpoints": {}, "statistics": []}
    if not file.is_file():
        return empty
    remedy = "delete it, and measure the latents again by --mode=latents"
    record = read_json(file, remedy)
    if record.get("format") != _FORMAT:
        raise VidlatentError(f"{file} is of another version of vidlatent: {remedy}.")
    return {**empty, **record}


def _change(path: str | os.PathLike[str], change: Callable[[dict[str, Any]], None]) -> bool:
    """Change the record; whether that worked, which reading a digest does not depend on."""
    if not is_main():
        return True
    record = _read(path)
    change(record)
    try:
        write_json(Path(path, RECORD), record)
    except OSError as error:
        logging.warning("%s could not be written (%s)", Path(path, RECORD), error)
        return False
    return True
