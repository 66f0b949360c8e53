"""The on-disk cache of compiled programs: running the same program again skips compilation."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax

from vidlatent.paths import cache_root

__all__ = ["cache_folder", "keep_compiled", "quick_options"]


def cache_folder() -> Path:
    """``$JAX_COMPILATION_CACHE_DIR``, else ``vidlatent/jax`` in the user's cache folder."""
    named = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if named:
        return Path(named)
    return cache_root() / "jax"


def keep_compiled() -> None:
    """Turn on JAX's compilation cache in ``cache_folder``; every command calls this."""
    # As it was given: a Path would make gs:/bucket of gs://bucket, which JAX can use.
    named = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    jax.config.update("jax_compilation_cache_dir", named or str(cache_folder()))


def quick_options(level: int = 1) -> dict[str, Any] | None:
    """``compiler_options`` of ``jax.jit`` for a program that runs once, such as an ``init``.

    On CPUs LLVM's optimisation takes longer than it saves in such a program (20 of 22 s for
    FSVideo's tokenizer). None, the default options, on accelerators.

    Args:
      level: XLA's backend optimisation level; 0 compiles fastest, 1 still vectorises.
    """
    return {"xla_backend_optimization_level": level} if jax.default_backend() == "cpu" else None
