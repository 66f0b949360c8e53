"""Checksums of saved arrays, and the Orbax item that commits them together with the step.

Orbax notices a missing or shortened file but restores most flipped bytes without a word. So each
process lists the CRC-32 of every array shard that it writes, keyed by the array's path and the
shard's place in the global array, and the list becomes part of the same atomically renamed step
folder. The list also holds shapes and dtypes, so that a checkpoint that belongs to another model
is recognised before any data is read.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import math
import os
import random
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from vidlatent.files import dump_json

__all__ = [
    "ArrayRecord",
    "DigestHandler",
    "DigestSave",
    "Manifest",
    "json_crc",
    "leaf_paths",
    "make_manifest",
    "find_mismatched_arrays",
    "read_manifest",
    "write_manifest",
]

ITEM = "digests"
_FORMAT = 1
_FILE = re.compile(r"process_(\d+)-of-(\d+)\.json")
# Arrays are checked in groups, so that gathered host copies do not pile up.
_GROUP_BYTES = 1 << 30
# Enough to keep several cores busy: zlib releases the interpreter lock while it sums.
_THREADS = max(1, min(8, os.cpu_count() or 1))


@dataclasses.dataclass
class ArrayRecord:
    """One saved array: global shape, dtype name, and the CRC-32 of each saved slice."""

    shape: tuple[int, ...]
    dtype: str
    shards: dict[str, int]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclasses.dataclass
class Manifest:
    """The digests of one step: ``arrays[item/path]`` and the CRC-32 of the JSON metadata."""

    step: int
    arrays: dict[str, ArrayRecord]
    meta: int | None

    def item(self, name: str) -> dict[str, ArrayRecord]:
        """The arrays of one item, keyed by the path inside the item."""
        start = name + "/"
        return {k[len(start) :]: v for k, v in self.arrays.items() if k.startswith(start)}


def leaf_paths(tree: Any) -> dict[str, Any]:
    """Leaves of a pytree keyed by their slash-joined path, in tree order."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def json_crc(data: Any) -> int:
    """CRC-32 of the canonical JSON text of ``data``."""
    # Plain json: older versions stored scores that are NaN, and their checksums must stay the same.
    return zlib.crc32(json.dumps(data, sort_keys=True, separators=(",", ":")).encode())


def _array_crc(array: np.ndarray) -> int:
    # Through uint8, because the buffer protocol does not know bfloat16 and its kin.
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def _slice_key(index: tuple[slice, ...], shape: tuple[int, ...]) -> str:
    # slice(None) and slice(0, n) are the same place and must get the same key.
    bounds = (s.indices(n)[:2] for s, n in zip(index, shape, strict=True))
    return ",".join(f"{start}:{stop}" for start, stop in bounds)


def _slices(key: str) -> tuple[slice, ...]:
    parts = (part.split(":") for part in key.split(",")) if key else ()
    return tuple(slice(int(start), int(stop)) for start, stop in parts)


def _local_shards(array: Any, *, every_replica: bool) -> Iterator[tuple[str, Any]]:
    """Slice key and single-device data of the shards that this process can read."""
    if isinstance(array, jax.Array):
        for shard in array.addressable_shards:
            # Of several copies one is saved, so one digest is enough.
            if every_replica or shard.replica_id == 0:
                yield _slice_key(shard.index, array.shape), shard.data
    elif jax.process_index() == 0 or every_replica:
        yield _slice_key((slice(None),) * np.ndim(array), np.shape(array)), array


def _crc_all(jobs: Iterable[tuple[Any, Any]]) -> dict[Any, int]:
    """CRC-32 of many ``(key, array or shard)`` pairs on a few threads."""
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        # Copies from the devices are made in the threads, too.
        futures = {key: pool.submit(lambda d=data: _array_crc(np.asarray(d))) for key, data in jobs}
        return {key: future.result() for key, future in futures.items()}


def make_manifest(step: int, items: Mapping[str, Any], meta: Any) -> Manifest:
    """Digests of this process's shards of ``items`` (name → pytree of arrays).

    The work is done before the call returns, so the caller may donate the arrays afterwards.
    """
    arrays, jobs = {}, []
    for item, tree in items.items():
        for path, leaf in leaf_paths(tree).items():
            name = f"{item}/{path}"
            arrays[name] = ArrayRecord(tuple(np.shape(leaf)), np.dtype(leaf.dtype).name, {})
            shards = _local_shards(leaf, every_replica=False)
            jobs.extend(((name, key), data) for key, data in shards)
    for (name, key), crc in _crc_all(jobs).items():
        arrays[name].shards[key] = crc
    return Manifest(step, arrays, json_crc(meta) if jax.process_index() == 0 else None)


def write_manifest(folder: epath.Path, manifest: Manifest) -> None:
    """Write this process's part of the digests into ``folder``."""
    # The list has a checksum too: a byte flipped in it would condemn sound arrays.
    body = {"format": _FORMAT, **dataclasses.asdict(manifest)}
    name = f"process_{jax.process_index()}-of-{jax.process_count()}.json"
    (folder / name).write_text(dump_json({"crc": json_crc(body), "body": body}))


def _read_part(path: epath.Path) -> dict[str, Any]:
    data = json.loads(path.read_text())
    body = data["body"]
    if json_crc(body) != data["crc"]:
        raise ValueError(f"the digest list {path.name} does not match its own checksum")
    if body["format"] != _FORMAT:
        raise ValueError(f"the digest list {path.name} has the unknown format {body['format']}")
    return body


def read_manifest(folder: epath.Path) -> Manifest:
    """Merge the digest lists of all processes that wrote a step.

    Raises:
      ValueError, KeyError, OSError: when a list is missing, unreadable, or does not cover every
        array completely.
    """
    found = {p.name: _FILE.fullmatch(p.name) for p in folder.glob("process_*.json")}
    parts = sorted((int(m[1]), int(m[2])) for m in found.values() if m)
    if not parts or parts != [(i, parts[0][1]) for i in range(parts[0][1])]:
        raise ValueError(f"digest lists are missing (found {sorted(found) or 'none'})")
    bodies = [_read_part(folder / f"process_{i}-of-{n}.json") for i, n in parts]
    arrays: dict[str, ArrayRecord] = {}
    for body in bodies:
        for name, record in body["arrays"].items():
            empty = ArrayRecord(tuple(record["shape"]), record["dtype"], {})
            arrays.setdefault(name, empty).shards.update(record["shards"])
    for name, record in arrays.items():
        # Slices do not overlap, so their sizes must add up to that of the array.
        sizes = (math.prod(s.stop - s.start for s in _slices(key)) for key in record.shards)
        if sum(sizes) != math.prod(record.shape):
            raise ValueError(f"the digests do not cover the array {name}")
    return Manifest(bodies[0]["step"], arrays, bodies[0]["meta"])


def _sample(records: Mapping[str, ArrayRecord], budget: int, seed: int) -> list[str]:
    """A random choice of whole arrays of about ``budget`` bytes, the same on every process."""
    names = sorted(records)
    # A generator of its own: the global one may differ between processes.
    random.Random(seed).shuffle(names)
    chosen, total = [], 0
    for name in names:
        if total < budget:
            chosen.append(name)
            total += records[name].nbytes
    return chosen


def _saved_slices(array: Any, record: ArrayRecord) -> Iterator[tuple[str, Any]]:
    """The saved slices of a restored array that this process can or must check."""
    if isinstance(array, jax.Array):
        placed = array.sharding.devices_indices_map(array.shape).values()
        # Placed as it was saved: every process checks the slices that it holds.
        if set(record.shards) <= {_slice_key(index, array.shape) for index in placed}:
            local = dict(_local_shards(array, every_replica=True))
            yield from ((key, local[key]) for key in record.shards if key in local)
            return
        if not array.is_fully_addressable:
            # Sharded differently from the way it was saved, over several processes: everybody
            # takes the same branch, since shardings and digests are known globally.
            array = multihost_utils.process_allgather(array, tiled=True)
    whole = np.asarray(array)
    yield from ((key, whole[_slices(key)]) for key in record.shards)


def find_mismatched_arrays(
    restored: Mapping[str, Any],
    records: Mapping[str, ArrayRecord],
    *,
    sample_bytes: int | None = None,
    seed: int = 0,
) -> list[str]:
    """Paths of the restored arrays whose bytes differ from those that were saved.

    Args:
      restored: path → array, in the dtype it was saved in, under any sharding.
      records: path → saved record; the same paths.
      sample_bytes: check only about so many bytes, chosen by ``seed`` (None: everything).
    """
    # In one order on all processes, since checking may gather an array among them.
    names = sorted(records) if sample_bytes is None else _sample(records, sample_bytes, seed)
    bad: set[str] = set()
    jobs: list[tuple[tuple[str, str], Any]] = []
    pending = 0
    for i, name in enumerate(names):
        jobs += [((name, key), data) for key, data in _saved_slices(restored[name], records[name])]
        pending += records[name].nbytes
        if pending >= _GROUP_BYTES or i + 1 == len(names):
            crcs = _crc_all(jobs)
            bad |= {n for (n, key), crc in crcs.items() if records[n].shards[key] != crc}
            jobs, pending = [], 0
    return sorted(bad)


class DigestHandler(ocp.handlers.AsyncCheckpointHandler):
    """Orbax handler that lets every process write its digest list into the step being saved."""

    async def async_save(self, directory: Any, args: DigestSave) -> list[ocp.future.Future]:
        async def commit() -> None:
            write_manifest(epath.Path(directory), args.manifest)

        return [ocp.future.CommitFutureAwaitingContractedSignals(commit(), name="digests")]

    def save(self, directory: Any, args: DigestSave) -> None:
        write_manifest(epath.Path(directory), args.manifest)

    def restore(self, directory: Any, args: Any = None) -> Manifest:
        return read_manifest(epath.Path(directory))

    def finalize(self, directory: Any) -> None:
        pass

    def close(self) -> None:
        pass


@ocp.args.register_with_handler(DigestHandler, for_save=True)
@dataclasses.dataclass
class DigestSave(ocp.args.CheckpointArgs):
    """Save arguments of ``DigestHandler``."""

    manifest: Manifest


@ocp.args.register_with_handler(DigestHandler, for_restore=True)
@dataclasses.dataclass
class DigestRestore(ocp.args.CheckpointArgs):
    """Restore arguments of ``DigestHandler``; Orbax wants the pair."""
