"""Clips from disk to uint8 host batches.

Start at ``make_loader``. ``loader.py`` explains batches and resuming, ``options.py`` the fields of
``config.data``, ``sources/`` where clips come from and how to add a source of your own,
``media/decode.py`` how time maps to frames, ``media/errors.py`` why clips are left out.

Importing this package loads neither JAX nor Grain, so that decoding processes start quickly. (Grain
imports the jax module for its tree functions, but no process of the loader uses a device.)
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
    "ClipInfo": "vidlatent.media.probe",
    "Limits": "vidlatent.media.errors",
    "REASONS": "vidlatent.media.errors",
    "iter_frames": "vidlatent.media.decode",
    "probe": "vidlatent.media.probe",
    "read_window": "vidlatent.media.decode",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str):
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
