"""Names to factories, resolved lazily, with suggestions when a name is misspelt."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from typing import Any

from vidlatent.errors import VidlatentError

__all__ = ["Registry", "did_you_mean"]


_SHOWN = 16  # names in a message


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``did you mean 'x'?`` for the nearest known name, else the names, cut if they are many."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
    return f"known: {', '.join(known[:_SHOWN])}{more}."


class Registry:
    """A table ``name -> object``; entries may be ``'module.path:attribute'``, imported on use."""

    def __init__(self, kind: str):
        self.kind = kind
        self._entries: dict[str, Any] = {}

    def register(self, name: str, entry: Any) -> None:
        if name in self._entries:
            raise ValueError(f"{self.kind} {name!r} is registered twice")
        self._entries[name] = entry

    def names(self) -> list[str]:
        return sorted(self._entries)

    def get(self, name: str) -> Any:
        """The object behind ``name``; an unknown name raises with the nearest known one."""
        if name not in self._entries:
            hint = did_you_mean(name, self._entries)
            if hint.startswith("known"):
                hint += " A name from a package of your own needs --import=that_package."
            raise VidlatentError(f"unknown {self.kind} {name!r}: {hint}")
        entry = self._entries[name]
        if isinstance(entry, str):
            module, _, attribute = entry.partition(":")
            entry = getattr(importlib.import_module(module), attribute)
            self._entries[name] = entry
        return entry
