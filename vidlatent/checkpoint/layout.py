"""How a training state is laid out in a checkpoint: items, key paths and structure checks."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np

from vidlatent.checkpoint import digests
from vidlatent.errors import VidlatentError

__all__ = [
    "compare_structure",
    "find_players",
    "merge",
    "name_on_disk",
    "nested",
    "split",
    "target",
    "with_todays_names",
]

_MODEL = ("params", "opt", "ema")
_REST = "extra"
# Item -> its name in checkpoints of older versions.
_FORMER_NAMES = {"discriminator": "critic"}


def find_players(state: Mapping[str, Any]) -> list[str]:
    """Names of the parts of a state that are trained beside the model: they have ``params``."""
    return [
        name
        for name, part in state.items()
        if name not in _MODEL and isinstance(part, Mapping) and "params" in part
    ]


def nested(tree: Any) -> dict[str, Any]:
    """The leaves of any pytree as nested dicts with string keys: independent of container types."""
    nested: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        keys = [jax.tree_util.keystr((key,), simple=True) for key in path]
        inner = nested
        for key in keys[:-1]:
            inner = inner.setdefault(key, {})
        inner[keys[-1]] = leaf
    return nested


def split(state: Mapping[str, Any], saved: Collection[str] = ()) -> dict[str, Any]:
    """A state as the items of a checkpoint, without those that hold no array.

    Parameters, optimizer, EMA and each player are an item; ``extra`` holds everything else.

    Args:
      state: dict of pytrees.
      saved: paths of the arrays of a step, to be split as that step was: older versions kept the
        loss helpers, a player without an item of its own, in ``extra``.
    """
    items, rest = {}, {}
    players = find_players(state)
    for name, tree in state.items():
        inside = any(path.startswith(f"{_REST}/{name}/") for path in saved)
        if name in _MODEL or (name in players and not inside):
            items[name] = tree
        else:
            rest[name] = tree
    items[_REST] = rest
    return {name: tree for name, tree in items.items() if jax.tree_util.tree_leaves(tree)}


def merge(abstract: Mapping[str, Any], items: Mapping[str, Any]) -> dict[str, Any]:
    """The state again from its items; parts that hold no array come from ``abstract``."""
    parts = {**items.get(_REST, {}), **{k: v for k, v in items.items() if k != _REST}}
    return {name: parts.get(name, abstract[name]) for name in abstract}


def with_todays_names(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Saved arrays by path, where an item of an older version has its name of today."""
    today = {former: item for item, former in _FORMER_NAMES.items()}
    parts = ((path.split("/", 1), record) for path, record in saved.items())
    return {"/".join((today.get(item, item), rest)): record for (item, rest), record in parts}


def name_on_disk(item: str, step_folder: Any) -> str:
    """The name that an item has in a step folder, which an older version may have written."""
    former = _FORMER_NAMES.get(item)
    return former if former and (step_folder / former).exists() else item


def target(leaf: Any, dtype: str) -> jax.ShapeDtypeStruct:
    """Where and as what to restore ``leaf``; without a sharding: on the first local device."""
    sharding = leaf.sharding if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) else None
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(tuple(leaf.shape), np.dtype(dtype), sharding=sharding)


def compare_structure(
    where: str, wanted: Mapping[str, Any], saved: Mapping[str, digests.ArrayRecord], dtypes: bool
) -> None:
    """Raise ``VidlatentError`` that lists every missing, unexpected and misshaped array."""

    def listing(title: str, lines: list[str]) -> str:
        more = f" and {len(lines) - 20} more" if len(lines) > 20 else ""
        return f" {title}: {'; '.join(lines[:20])}{more}." if lines else ""

    missing = [name for name in wanted if name not in saved]
    extra = [name for name in saved if name not in wanted]
    shapes = [
        f"{name} saved {list(saved[name].shape)} wanted {list(leaf.shape)}"
        for name, leaf in wanted.items()
        if name in saved and saved[name].shape != tuple(leaf.shape)
    ]
    types = [
        f"{name} saved {saved[name].dtype} wanted {np.dtype(leaf.dtype).name}"
        for name, leaf in wanted.items()
        if dtypes and name in saved and saved[name].dtype != np.dtype(leaf.dtype).name
    ]
    if missing or extra or shapes or types:
        raise VidlatentError(
            f"The checkpoint {where} belongs to another model or optimizer; resume with the "
            "config that it was trained with, or choose another --workdir."
            + listing("Missing from the checkpoint", missing)
            + listing("In the checkpoint only", extra)
            + listing("Of another shape", shapes)
            + listing("Of another dtype", types)
        )
