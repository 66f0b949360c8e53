"""Compiled programs on disk: a second process of the same program starts without compiling."""

from __future__ import annotations

import os
from pathlib import Path

import jax

__all__ = ["cache_folder", "keep_compiled"]


def cache_folder() -> Path:
    """``$JAX_COMPILATION_CACHE_DIR``, else ``vidlatent/jax`` in the user's cache folder."""
    named = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "vidlatent" / "jax"


def keep_compiled() -> None:
    """Keep compiled programs in ``cache_folder`` from now on; called by every command."""
    jax.config.update("jax_compilation_cache_dir", str(cache_folder()))
