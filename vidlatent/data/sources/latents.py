"""``data.source = 'latents'``: the clips that ``--mode=encode`` stored (``data.latent_set``).

There is no video to decode: fps, crop, flip and the limits on pixels and time do not apply.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from vidlatent.data.latent_set import Shard, Window, read_header, unpack
from vidlatent.data.options import DataOptions
from vidlatent.data.set_checks import find_moments_fault
from vidlatent.data.sources.base import Entry
from vidlatent.errors import VidlatentError
from vidlatent.media.errors import ClipError, Limits
from vidlatent.media.probe import ClipInfo
from vidlatent.paths import absolute, local_copy

__all__ = ["LatentSource", "make"]

# Texts differ in length: this array is padded to the longest of the set, with its length beside it.
_PADDED = "text"


@dataclasses.dataclass(frozen=True)
class _Records:
    """A file of records whose number is known, so that it need not be opened to count them.

    The names are those that ``ArrayRecordDataSource`` asks for.
    """

    filename: str
    take: int
    skip: int = 0

    @property
    def examples_in_shard(self) -> int:
        return self.take


class LatentSource:
    """The windows of a latent data set, each a clip that fits only buckets of exactly its size.

    It has ``read_arrays`` instead of ``read``.

    Raises:
      VidlatentError: no set in the folder ``path``, or its files do not agree with each other.
    """

    cacheable = False

    def __init__(self, path: str):
        self.root = absolute(path)
        self.header = read_header(path)
        self.where = f"the latent data set {self.root}"
        files = [os.path.join(self.root, name) for name in self.header.shards]
        shards = [Shard.load(file) for file in files]
        self.windows = tuple(window for shard in shards for window in shard.windows)
        self._numbers = {window.name: number for number, window in enumerate(self.windows)}
        # Windows are found by name, so no two may share one.
        if len(self._numbers) != len(self.windows) or len(self.windows) != self.header.windows:
            raise VidlatentError(
                f"{self.where} lists {len(self.windows)} windows, {len(self._numbers)} of them "
                f"different, and its header {self.header.windows}: encode the videos again."
            )
        if fault := find_moments_fault(self.header, shards):
            raise VidlatentError(f"{self.where} has {fault}: encode the videos again.")
        if not self.windows:
            raise VidlatentError(f"{self.where} is empty: no clip could be encoded.")
        self._arrays = {
            (row["frames"], row["height"], row["width"]): row["arrays"] for row in self.header.sizes
        }
        self._records = _open_records(
            [
                _Records(local_copy(file), len(shard.windows))
                for file, shard in zip(files, shards, strict=True)
            ]
        )

    def entries(self) -> list[Entry]:
        return [Entry(window.name, window.group, (), window.part) for window in self.windows]

    def check_sizes(self, sizes: Collection[tuple[int, int, int]]) -> None:
        """Raise unless the set can hold windows of all these (frames, height, width).

        It holds them, or it was encoded with such a bucket that no clip was nearest to.
        """
        encoded = {tuple(size) for size in self.header.source.get("buckets", ())}
        for size in sorted(sizes):
            if size not in self._arrays and size not in encoded:
                stored = ", ".join("x".join(map(str, known)) for known in sorted(self._arrays))
                raise VidlatentError(
                    f"data.buckets asks for {'x'.join(map(str, size))}, but {self.where} has "
                    f"{stored} (frames x height x width): latents are not cropped or scaled, so "
                    "take one of these or encode the videos at that size."
                )

    def window(self, name: str) -> Window:
        return self.windows[self._numbers[name]]

    def probe(self, name: str, limits: Limits) -> ClipInfo:
        del limits
        window = self.window(name)
        seconds = window.frames / window.fps if window.fps else 0.0
        still = window.frames == 1
        return ClipInfo(
            name, window.frames, window.fps, window.width, window.height, seconds, still
        )

    def verify(self, name: str, limits: Limits) -> None:
        del limits
        self.read_arrays(name)

    def labels(self) -> tuple[str, ...]:
        return self.header.label_names

    def describe(self, name: str) -> tuple[str, str]:
        window = self.window(name)
        return window.label, window.caption

    def read_arrays(self, name: str) -> dict[str, np.ndarray]:
        """Arrays of a window as a batch has them, without the batch axis.

        Raises:
          ClipError: the record is damaged.
        """
        number = self._numbers[name]
        try:
            arrays, window = unpack(self._records[number])
        except (ValueError, RuntimeError) as error:  # array_record raises RuntimeError
            raise ClipError("corrupt", " ".join(str(error).split())[:160]) from error
        # A file of records that was replaced by another set's would pass unnoticed otherwise.
        if window.name != name:
            raise ClipError("corrupt", f"the record of another window, {window.name}")
        return self._fit_arrays(arrays, window.size)

    def _fit_arrays(
        self, arrays: Mapping[str, np.ndarray], size: tuple[int, int, int]
    ) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, about in self._arrays[size].items():
            if name not in arrays:
                raise ClipError("corrupt", f"the record has no {name}")
            array, shape = arrays[name], tuple(about["shape"])
            if name == _PADDED:
                found["text_length"] = np.int32(len(array))
                # [N, D] -> [longest N of the set, D]
                rows = [(0, shape[0] - len(array)), *[(0, 0)] * (array.ndim - 1)]
                array = np.pad(array, rows)
            if array.shape != shape:
                raise ClipError("corrupt", f"{name} {list(array.shape)}, not {list(shape)}")
            # Half precision is for storage, batches have float32. What keeps its dtype is copied,
            # because `unpack` gives read-only views.
            kept = array.dtype in (np.uint8, np.int32)
            found[name] = np.array(array) if kept else array.astype(np.float32)
        return found

    def blank(self, size: tuple[int, int, int]) -> dict[str, Any]:
        """Zeros in the place of a window; a text's length is a scalar."""
        found: dict[str, Any] = {}
        for name, about in self._arrays[size].items():
            dtype = about["dtype"] if about["dtype"] in ("uint8", "int32") else "float32"
            found[name] = np.zeros(about["shape"], dtype)
            if name == _PADDED:
                found["text_length"] = np.int32(0)
        return found


def _open_records(files: Sequence[_Records]) -> Any:
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    return ArrayRecordDataSource([file for file in files if file.take])


def make(options: DataOptions, seed: int) -> LatentSource:
    """The latent data set in the folder ``data.path``."""
    del seed
    if not options.path:
        raise VidlatentError("data.path is empty: give the folder of the latent data set.")
    return LatentSource(options.path)
