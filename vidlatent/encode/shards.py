"""Shards of a latent data set: written under another name and renamed when they are complete."""

from __future__ import annotations

import collections
import contextlib
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from absl import logging
from array_record.python.array_record_module import ArrayRecordWriter

from vidlatent.data.latent_set import HEADER, Header, Shard, Window, pack
from vidlatent.encode.statistics import LatentMoments
from vidlatent.errors import VidlatentError
from vidlatent.files import write_json
from vidlatent.paths import local_folder, move_file
from vidlatent.spec import LatentSpec

__all__ = ["ShardWriter", "read_finished_shard", "merge_shards", "round_to_dtype"]

# One record a group, so that any record can be read alone. Latents compress little: the fastest
# level of zstd.
_OPTIONS = "group_size:1,zstd:1"
_FLOATS = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}


def round_to_dtype(values: np.ndarray, dtype: str, what: str) -> np.ndarray:
    """``values`` rounded to ``dtype``.

    Raises:
      VidlatentError: values are not finite, before or after rounding; ``what`` names them.
    """
    values = np.asarray(values, np.float32)
    # What overflows becomes infinite, which is reported below.
    with np.errstate(over="ignore"):
        stored = values.astype(_FLOATS[dtype])
    if not np.isfinite(stored.astype(np.float32)).all():
        if np.isfinite(values).all():
            largest = float(np.abs(values).max())
            raise VidlatentError(
                f"{what} has values up to {largest:.3g}, more than {dtype} holds: set "
                "config.encode.dtype=bfloat16 or float32."
            )
        raise VidlatentError(
            f"{what} is not finite: look at the clip, or compute with "
            "config.precision.compute=float32."
        )
    return stored


class ShardWriter:
    """Writes one shard.

    Args:
      path: of the finished shard.
      spec: of the latents.

    Raises (``add`` and ``publish``):
      VidlatentError: the file cannot be written.
    """

    def __init__(self, path: Path, spec: LatentSpec):
        self.path = path
        for left in path.parent.glob(f"{path.name}.*.partial"):  # of a run that was killed
            left.unlink(missing_ok=True)
        self._rooms = contextlib.ExitStack()
        place = self._rooms.enter_context(local_folder(path.parent))
        self._part = place / f"{path.name}.{os.getpid()}.partial"
        self._windows: list[Window] = []
        self._bad: list[tuple[str, str, str]] = []
        self._arrays: dict[str, dict[str, Any]] = {}
        self._moments = LatentMoments(spec)
        self._largest = self._squares = 0.0
        self._writer = ArrayRecordWriter(os.fspath(self._part), _OPTIONS)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the file if it was not published."""
        if self._part.exists():
            try:
                if self._writer.is_open():
                    self._writer.close()
            except RuntimeError as error:
                logging.debug("closing %s: %s", self._part, error)
            self._part.unlink(missing_ok=True)
        self._rooms.close()

    def add(self, window: Window, arrays: Mapping[str, np.ndarray], exact: np.ndarray) -> None:
        """Add a window with its arrays as they are stored; ``exact`` is the unrounded latent."""
        stored = arrays["latent"].astype(np.float32)
        # Of the rounded values, since these are what generators will read.
        self._moments.add(stored)
        error = np.abs(stored.astype(np.float64) - exact)
        self._largest = max(self._largest, float(error.max()))
        self._squares += float(np.square(error).sum())
        # A text, because keys of JSON objects are.
        known = self._arrays.setdefault("x".join(map(str, window.size)), {})
        for name, array in arrays.items():
            row = {"dtype": array.dtype.name, "shape": list(array.shape)}
            known[name] = _merge_shapes(known[name] if name in known else row, row)
        self._windows.append(window)
        try:
            self._writer.write(pack(arrays, window))
        except RuntimeError as error:
            raise self._write_error(error) from error

    def bad(self, clips: Iterable[tuple[str, str, str]]) -> None:
        """Add clips that could not be read, (name, reason, detail)."""
        # A clip comes up again for each of its windows.
        self._bad += [row for row in clips if row not in self._bad]

    def publish(self) -> Shard:
        """Finish the file and move it and its list of windows into place."""
        try:
            self._writer.close()
        except RuntimeError as error:
            raise self._write_error(error) from error
        # The data must be on disk before the name: after a power cut the shard would count as
        # finished and be empty.
        with open(self._part, "rb+") as file:
            os.fsync(file.fileno())
        shard = Shard(
            windows=tuple(self._windows),
            bytes=self._part.stat().st_size,
            moments=self._moments.to_json(),
            rounding={"max": self._largest, "squares": self._squares},
            arrays=self._arrays,
            bad=tuple(self._bad),
        )
        # The records are moved last: a shard counts as finished once they are there.
        write_json(self.path.with_suffix(".json"), shard.to_json())
        move_file(self._part, self.path)
        return shard

    def _write_error(self, error: RuntimeError) -> VidlatentError:
        return VidlatentError(
            f"{self.path} could not be written ({' '.join(str(error).split())[:160]}): free some "
            "space and run the same command again; finished shards are kept."
        )


def read_finished_shard(path: Path) -> Shard | None:
    """The shard at ``path``; None if it is missing or damaged and must be written."""
    if not path.exists():
        return None
    try:
        return Shard.load(os.fspath(path))
    except (VidlatentError, OSError) as error:
        logging.warning("%s; it is written again", error)
        return None


def merge_shards(
    folder: Path,
    files: Sequence[str],
    shards: Sequence[Shard],
    spec: LatentSpec,
    indexed: Sequence[tuple[str, str, str]],
    text_length: int = 0,
    settle: Callable[[LatentMoments], Sequence[Mapping[str, Any]]] = lambda measured: (),
    **about: Any,
) -> Header:
    """Write the header of a set whose shards are all finished.

    Statistics are merged in the order of the shards, so they do not depend on which process wrote
    which shard.

    Args:
      folder: of the set.
      files: names of the shards.
      shards: in the same order.
      spec: of the tokenizer.
      indexed: clips that were bad already in the index, (name, reason, detail).
      text_length: tokens that texts are padded to when they are read; 0: the longest text's.
      settle: gives ``Header.moments`` from what was measured (``encode.statistics``).
      about: the other fields of ``Header``.
    """
    merged = LatentMoments(spec)
    bad: dict[str, Any] = {row[0]: tuple(row) for row in indexed}
    for shard in shards:
        merged.merge(shard.moments)
        bad |= {row[0]: row for row in shard.bad if row[0] not in bad}
    moments = merged.pooled
    if not moments.n:
        raise VidlatentError(
            f"{folder}: not one window could be encoded; its shards list the clips and why."
        )
    windows = [window for shard in shards for window in shard.windows]
    values = moments.n * spec.channels
    # Pictures have no rate, and sets of several rates have none to give.
    rates = {window.fps for window in windows if window.frames > 1}
    header = Header(
        spec=spec,
        mean=moments.mean,
        std=moments.std,
        n=moments.n,
        windows=len(windows),
        clips=len({window.clip for window in windows}),
        rounding={
            "max": max(shard.rounding["max"] for shard in shards),
            "rms": math.sqrt(math.fsum(shard.rounding["squares"] for shard in shards) / values),
        },
        sizes=_count_sizes(shards, text_length),
        fps=rates.pop() if len(rates) == 1 else 0.0,
        shards=tuple(files),
        bad=[bad[name] for name in sorted(bad)],
        moments=settle(merged),
        **about,
    )
    # Written last: a set that has its header is complete.
    write_json(folder / HEADER, header.to_json())
    return header


def _count_sizes(shards: Sequence[Shard], text_length: int) -> list[dict[str, Any]]:
    """``Header.sizes``."""
    counts: collections.Counter[tuple[int, int, int]] = collections.Counter()
    arrays: dict[str, dict[str, Any]] = {}
    for shard in shards:
        counts.update(window.size for window in shard.windows)
        for key, found in shard.arrays.items():
            known = arrays.setdefault(key, {})
            for name, row in found.items():
                known[name] = _merge_shapes(known[name] if name in known else row, row)
                if name == "text" and text_length:
                    known[name]["shape"][0] = text_length
    return [
        {
            **dict(zip(("frames", "height", "width"), size, strict=True)),
            "windows": counts[size],
            "arrays": arrays["x".join(map(str, size))],
        }
        for size in counts
    ]


def _merge_shapes(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The smallest shape that holds arrays of both descriptions."""
    pairs = zip(one["shape"], other["shape"], strict=True)
    return {"dtype": one["dtype"], "shape": [max(pair) for pair in pairs]}
