"""What is stored of a tokenizer's latents in its workdir: encoder digests and measured moments.

``<tokenizer>/latent_space/`` holds, for each checkpoint that was asked about, the digests of its
parameters, and for each encoder the mean and deviation of its latents, measured once. Moments are
found by the encoder's digest: a tokenizer whose encoder trained on has none until they are measured
again, and one that was fine-tuned with a frozen encoder has those of the run that it started from.

Each is a small file that is created once and never changed, so that processes that work with one
tokenizer at the same time agree in what they read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from etils import epath

from vidlatent import config as configs
from vidlatent.checkpoint import digests
from vidlatent.checkpoint.storage import agree_on_all_processes
from vidlatent.errors import VidlatentError
from vidlatent.files import read_json, write_json
from vidlatent.latents.digest import hash_encoder, hash_params
from vidlatent.models.load import abstract_params, model_of, open_checkpoints
from vidlatent.parallel.multihost import is_main
from vidlatent.paths import as_path, is_remote
from vidlatent.weights.files import is_workdir, restore_weights

__all__ = [
    "FOLDER",
    "Digests",
    "Statistics",
    "copy_statistics",
    "find_digests",
    "find_former_step",
    "find_step_of",
    "find_statistics",
    "store_statistics",
]

FOLDER = "latent_space"
_REMEDY = "delete it, and measure the latents again by --mode=latents"
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
    config = configs.read(as_path(path))
    model = model_of(config)
    with contextlib.closing(open_checkpoints(config, as_path(path))) as checkpoints:
        number = checkpoints.latest() if step < 0 else step
        file = _digest_file(path, checkpoints.directory, number)
        # Agreed, because reading parameters takes all processes: shared folders may show a file
        # to one of them earlier than to another.
        if agree_on_all_processes(file.is_file()):
            return Digests(**_read(file, Digests._fields))
        restored = restore_weights(
            checkpoints, abstract_params(model), step=None if step < 0 else step
        )
        found = Digests(hash_encoder(model, restored.state), hash_params(restored.state))
        _create(_digest_file(path, checkpoints.directory, restored.step), found._asdict())
    return found


def find_step_of(path: str | os.PathLike[str], encoder: str) -> int | None:
    """The newest checkpoint of a tokenizer whose encoder has this digest; None: there is none."""
    config = configs.read(as_path(path))
    with contextlib.closing(open_checkpoints(config, as_path(path))) as checkpoints:
        steps = checkpoints.all_steps()
    for step in reversed(steps):
        if find_digests(path, step).encoder == encoder:
            return step
    return None


def find_former_step(path: str | os.PathLike[str], encoder: str) -> int | None:
    """The step that had this encoder, by the digests kept in the workdir, though it may be gone."""
    for file in sorted(as_path(path, FOLDER).glob("digests-*.json")):
        step = file.name.split("-")[1]
        if step.isdigit() and _read(file, Digests._fields)["encoder"] == encoder:
            return int(step)
    return None


def _digest_file(path: str | os.PathLike[str], checkpoints: epath.Path, step: int | None) -> Path:
    """Where the digests of a step are; another step of the same number has another name."""
    total = hashlib.sha256()
    for file in sorted((checkpoints / str(step) / digests.ITEM).glob("*.json")):
        total.update(file.read_bytes())
    return as_path(path, FOLDER, f"digests-{step}-{total.hexdigest()[:16]}.json")


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
    place, key = os.fspath(path), (encoder, cut or "", chunks)
    for _ in range(_ANCESTORS):
        if not place or not is_workdir(place):
            return None
        file = _moments_file(place, key)
        if file.is_file():
            fields = [field.name for field in dataclasses.fields(Statistics)]
            return Statistics.from_json(_read(file, fields))
        place = configs.read(as_path(place)).train.init_from
    return None


def store_statistics(path: str | os.PathLike[str], statistics: Statistics) -> bool:
    """Store measured moments with a tokenizer, unless it has some of that encoder already.

    Returns:
      Whether they were stored.

    Raises:
      VidlatentError: the workdir cannot be written to.
    """
    if find_statistics(path, *statistics.key) is not None:
        return False
    if not _create(_moments_file(path, statistics.key), statistics.to_json()):
        raise VidlatentError(
            f"the moments of the latents could not be stored in {path}: make it writable, or set "
            "config.latents.normalisation=spec."
        )
    return True


def copy_statistics(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Copy the moments of one tokenizer's workdir into another's that has the same weights."""
    for file in as_path(source, FOLDER).glob("moments-*.json"):
        _create(as_path(target, FOLDER, file.name), read_json(file, _REMEDY))


def _moments_file(path: str | os.PathLike[str], key: tuple[Any, ...]) -> Path:
    name = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
    return as_path(path, FOLDER, f"moments-{name}.json")


def _read(file: Path, fields: Sequence[str]) -> dict[str, Any]:
    stored = read_json(file, _REMEDY)
    if missing := [name for name in fields if name not in stored]:
        raise VidlatentError(f"{file} is damaged (no {missing[0]}): {_REMEDY}.")
    return {name: stored[name] for name in fields}


def _create(file: Path, content: Mapping[str, Any]) -> bool:
    """Write a file unless it is there; whether it is there now."""
    if not is_main():
        return True
    part = file.with_name(f"{file.name}.{os.getpid()}.new")
    try:
        file.parent.mkdir(exist_ok=True)
        if is_remote(file):
            # The same content whoever writes it, and the last of two writers is no worse.
            if not file.exists():
                write_json(file, content)
            return True
        write_json(part, content)
        try:
            # The first of several processes wins: a link, unlike a new name, replaces nothing.
            os.link(part, file)
        except FileExistsError:
            logging.info("%s was written by another process", file)
        except OSError:  # a file system without links
            if not file.exists():
                os.replace(part, file)
        part.unlink(missing_ok=True)
    except OSError as error:
        logging.warning("%s could not be written (%s)", file, error)
        return False
    return True
