"""Programs of several processes: moving arrays between hosts and devices."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding

__all__ = ["is_main", "local_rows", "place_as", "tell_all", "to_global"]

_LONGEST_TEXT = 4096  # bytes, as paths have


def is_main() -> bool:
    """Whether this process prints and writes reports; saving and evaluation involve all of them."""
    return jax.process_index() == 0


def tell_all(text: str) -> str:
    """The text of the main process, on all of them."""
    if jax.process_count() == 1:
        return text
    letters = np.zeros(_LONGEST_TEXT, np.uint8)
    data = text.encode()
    if len(data) >= _LONGEST_TEXT:
        raise ValueError(f"a text of {len(data)} bytes is too long to tell")
    letters[: len(data)] = np.frombuffer(data, np.uint8)
    told = multihost_utils.broadcast_one_to_all(letters)
    return bytes(np.asarray(told)).rstrip(b"\0").decode()


def to_global(tree: Any, sharding: Sharding) -> Any:
    """Global arrays ``[B, ...]`` from host arrays that hold this process's rows of the batch."""
    return jax.tree.map(
        lambda rows: jax.make_array_from_process_local_data(sharding, np.asarray(rows)), tree
    )


def place_as(tree: Any, like: Any) -> Any:
    """Move host arrays, the same on every process, to devices with the shardings of ``like``.

    Each device receives only its own shard.

    Args:
      tree: pytree of arrays.
      like: ShapeDtypeStructs in the same structure; arrays are cast to their dtypes. Leaves without
        a sharding stay NumPy arrays.
    """

    def place(leaf, like):
        leaf = np.asarray(leaf, like.dtype)
        if like.sharding is None:
            return leaf
        return jax.make_array_from_callback(leaf.shape, like.sharding, lambda index: leaf[index])

    return jax.tree.map(place, tree, like)


def local_rows(array: jax.Array) -> np.ndarray:
    """This process's rows of a batch-sharded array ``[B, ...]``, in order and without copies."""
    rows: dict[int, Any] = {}
    for shard in array.addressable_shards:
        start = shard.index[0].start or 0
        # Devices along context and tensor hold copies of the same rows: one of them will do.
        rows.setdefault(start, shard.data)
    return np.concatenate([np.asarray(rows[start]) for start in sorted(rows)])
