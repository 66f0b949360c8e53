"""Nested dictionaries (configs, parameters) as flat ones, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["flatten", "unflatten"]


def flatten(
    tree: Mapping[str, Any], separator: str = "/", *, keep_empty: bool = False
) -> dict[str, Any]:
    """Nested dict to ``{'a/b/c': leaf}``.

    Args:
      tree: its leaves are whatever is no mapping.
      separator: between the keys.
      keep_empty: an empty mapping is a leaf; otherwise it leaves nothing behind.
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and (value or not keep_empty):
            inner = flatten(value, separator, keep_empty=keep_empty)
            flat |= {f"{key}{separator}{rest}": leaf for rest, leaf in inner.items()}
        else:
            flat[str(key)] = value
    return flat


def unflatten(flat: Mapping[str, Any], separator: str = "/") -> dict[str, Any]:
    """The inverse of ``flatten``."""
    tree: dict[str, Any] = {}
    for name, leaf in flat.items():
        *keys, last = name.split(separator)
        inner = tree
        for key in keys:
            inner = inner.setdefault(key, {})
        inner[last] = leaf
    return tree
