"""The on-disk cache of compiled programs, and lines that say what is being compiled.

Running the same program again skips compilation.
"""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path
from typing import Any

import jax
from absl import logging

from vidlatent.paths import cache_root

__all__ = [
    "QUICKEST",
    "announce_compilations",
    "cache_folder",
    "fusion_emitters",
    "keep_compiled",
    "quick_options",
]

_PATIENCE_SECONDS = 3.0  # of compiling before a word is said: most programs take less
# JAX reports it as a number when it begins, and as a duration when it is done.
_COMPILING = "/jax/core/compile/backend_compile_duration"


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


def fusion_emitters(used: bool) -> dict[str, Any]:
    """The ``compiler_options`` for CPUs to use XLA's fusion emitters or not, if there is a choice.

    Without them code is generated in a third of the time. Newer versions of JAX always use them,
    and refuse the option.
    """
    return {"xla_cpu_use_fusion_emitters": used} if jax.__version_info__ < (0, 11) else {}


# Compile fast, run slowly, on CPUs: for programs that are only looked at, or run once on little.
QUICKEST = {"xla_backend_optimization_level": 0, **fusion_emitters(False)}


class _Announcer:
    """Says that a program is being compiled if that takes long, and how long it took.

    Threads compile independently, so each has its own timer.
    """

    def __init__(self) -> None:
        self._waiting: dict[int, threading.Timer] = {}
        self._told: set[int] = set()

    def begin(self, event: str, value: float, **about: Any) -> None:
        """Listen to JAX's numbers: a program is about to be compiled."""
        del value
        if event == _COMPILING:
            thread = threading.get_ident()
            timer = threading.Timer(_PATIENCE_SECONDS, self._tell, (thread, _name(about)))
            timer.daemon = True  # a program that ends must not wait for it
            self._waiting[thread] = timer
            timer.start()

    def end(self, event: str, duration_secs: float, **about: Any) -> None:
        """Listen to JAX's durations: a program was compiled, or read from the cache."""
        if event != _COMPILING:
            return
        thread = threading.get_ident()
        if timer := self._waiting.pop(thread, None):
            timer.cancel()
        elif thread in self._told:
            self._told.remove(thread)
            logging.info("compiled %s in %.1f s", _name(about), duration_secs)

    def _tell(self, thread: int, name: str) -> None:
        # Cancelled too late: the program was compiled in the meantime.
        if self._waiting.pop(thread, None):
            self._told.add(thread)
            logging.info("compiling %s ...", name)


_announcer: _Announcer | None = None


def announce_compilations() -> None:
    """From now on log what is being compiled, and for how long, where it takes seconds."""
    global _announcer
    if _announcer is None and jax.process_index() == 0:
        _announcer = _Announcer()
        jax.monitoring.register_scalar_listener(_announcer.begin)
        jax.monitoring.register_event_duration_secs_listener(_announcer.end)


def _name(about: dict[str, Any]) -> str:
    """``train_step`` of ``jit(train_step)`` or ``jit_train_step``."""
    name = str(about.get("fun_name", "a program"))
    return re.sub(r"^jit(?:\((.*)\)|_(.*))$", lambda found: found[1] or found[2], name).strip("_")
