"""Clips from disk to uint8 host batches.

``make_loader`` is the door; ``loader.py`` explains batches and resuming, ``options.py`` the fields
of ``config.data``, ``decode.py`` how time maps to frames, ``errors.py`` why clips are left out.

Importing this package loads neither JAX nor Grain: decoding processes start quickly. (Grain itself
imports the jax module for its tree functions; no process of the loader touches a device.)
"""

from __future__ import annotations

import importlib

_WHERE = {
    "make_loader": "vidlatent.data.loader",
    "Loader": "vidlatent.data.loader",
    "make_index": "vidlatent.data.loader",
    "Index": "vidlatent.data.index",
    "Clip": "vidlatent.data.index",
    "BadClips": "vidlatent.data.bad_clips",
    "DataOptions": "vidlatent.data.options",
    "ClipError": "vidlatent.media.errors",
    "ClipInfo": "vidlatent.media.decode",
    "Limits": "vidlatent.media.errors",
    "REASONS": "vidlatent.media.errors",
    "iter_frames": "vidlatent.media.decode",
    "probe": "vidlatent.media.decode",
    "read_window": "vidlatent.media.decode",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str):
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
