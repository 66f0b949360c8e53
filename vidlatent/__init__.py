"""vidlatent: highly compressed video latents in JAX/Flax, from training to serving."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# What users of the package start from, imported when it is first asked for.
_PUBLIC = {"Coded": "vidlatent.codec.coded", "load_codec": "vidlatent.codec.codec"}
__all__ = ["Coded", "__version__", "load_codec"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
