"""What the files of a latent data set may say: they may come from anywhere, and decide a training.

Headers with absurd numbers would train on in silence, or take all memory; names of files could
lead out of the folder. Each function returns what is wrong, '' if nothing is.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["find_header_fault", "find_moments_fault", "find_window_fault"]

_DTYPES = ("float16", "bfloat16", "float32")
_ARRAYS = (*_DTYPES, "uint8", "int32")
_LARGEST = 1e6  # a mean or deviation; latents of known tokenizers stay below 100
_SIDE, _FRAMES = 1 << 16, 1 << 20
_ARRAY_BYTES = 16 << 30  # of one window
_APART = 1e-3  # of a deviation: between the header's statistics and those of the shards


def find_header_fault(header: Any) -> str:
    """What is wrong with the fields of a ``latent_set.Header``."""
    c = header.spec.channels
    for name, low in (("mean", -_LARGEST), ("std", 0.0)):
        values = getattr(header, name)
        if values.shape != (c,):
            return f"{name} of shape {values.shape} for {c} channels"
        # Written so that NaN is refused as well.
        if not ((values >= low) & (values <= _LARGEST)).all():
            return f"a {name} that is not finite, or absurd"
    counts = {name: getattr(header, name) for name in ("n", "windows", "clips", "step")}
    for name, count in counts.items():
        if not _is_whole(count, 0 if name != "step" else -1, 1 << 62):
            return f"{name} {str(count)[:40]}"
    if header.dtype not in _DTYPES:
        return f"dtype {str(header.dtype)[:40]}"
    if not _is_number(header.fps, 0.0, 1e4):
        return f"fps {str(header.fps)[:40]}"
    if not isinstance(header.rounding, Mapping) or not all(
        _is_number(value, 0.0, 1e30) for value in header.rounding.values()
    ):
        return "rounding that is no numbers"
    for name in ("tokenizer", "weights", "encoder"):
        if type(getattr(header, name)) is not str:
            return f"{name} that is no text"
    if not _are_texts(header.label_names):
        return "label_names that are no different texts"
    if not isinstance(header.source, Mapping):
        return "source that is no object"
    return (
        _find_shard_fault(header.shards)
        or _find_sizes_fault(header)
        or _find_rows_fault(header.bad, "bad")
    )


def _is_whole(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def _is_number(value: Any, low: float, high: float) -> bool:
    return type(value) in (int, float) and low <= value <= high


def _are_texts(values: Sequence[Any]) -> bool:
    return all(type(value) is str for value in values) and len(set(values)) == len(values)


def _find_shard_fault(names: Sequence[Any]) -> str:
    if not names or not _are_texts(names):
        return "shards that are no different names"
    for name in names:
        plain = name == os.path.basename(name) and name.endswith(".array_record")
        if not plain or "\0" in name or "\\" in name or name.startswith("."):
            return f"a shard outside the folder, {name[:80]!r}"
    return ""


def _find_sizes_fault(header: Any) -> str:
    if isinstance(header.sizes, (str, Mapping)) or not isinstance(header.sizes, Sequence):
        return "sizes that are no list"
    for row in header.sizes:
        try:
            size = (row["frames"], row["height"], row["width"])
            limits = (_FRAMES, _SIDE, _SIDE)
            if not all(_is_whole(n, 1, most) for n, most in zip(size, limits, strict=True)):
                return f"a size of {str(size)[:60]}"
            for name, about in row["arrays"].items():
                if about["dtype"] not in _ARRAYS:
                    return f"{name[:40]} of type {str(about['dtype'])[:40]}"
                shape = about["shape"]
                if not all(_is_whole(n, 0, 1 << 32) for n in shape):
                    return f"{name[:40]} of shape {str(shape)[:60]}"
                if 4 * math.prod(shape) > _ARRAY_BYTES:
                    return f"{name[:40]} of {4 * math.prod(shape)} bytes a window"
            if row["arrays"]["latent"]["shape"][-1] != header.spec.channels:
                return "latents of another number of channels"
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            return f"sizes without {error}"
    return ""


def _find_rows_fault(rows: Any, what: str) -> str:
    right = isinstance(rows, Sequence) and not isinstance(rows, str)
    if right and all(isinstance(row, Sequence) and len(row) == 3 for row in rows):
        if all(type(x) is str for row in rows for x in row):
            return ""
    return f"{what} clips that are not (name, reason, detail)"


def find_window_fault(window: Any) -> str:
    """What is wrong with the fields of a ``latent_set.Window``."""
    wholes = {
        "first": (0, 1 << 40),
        "frames": (1, _FRAMES),
        "height": (1, _SIDE),
        "width": (1, _SIDE),
        "draw": (0, 1 << 32),
    }
    for name, (low, high) in wholes.items():
        if not _is_whole(getattr(window, name), low, high):
            return f"{name} {str(getattr(window, name))[:40]}"
    for name, most in (("start", 1e12), ("fps", 1e4)):
        if not _is_number(getattr(window, name), -most if name == "start" else 0.0, most):
            return f"{name} {str(getattr(window, name))[:40]}"
    for name in ("clip", "label", "caption", "group", "part"):
        if type(getattr(window, name)) is not str:
            return f"{name} that is no text"
    return "" if type(window.flip) is bool else "flip that is neither true nor false"


def find_moments_fault(header: Any, shards: Sequence[Any]) -> str:
    """Whether the header's mean and deviation are those of the shards.

    Generators normalise by them, and a wrong one shows in no other way than bad samples.
    """
    counts, means, aparts = [], [], []
    for shard in shards:
        try:
            count = float(shard.moments["n"])
            mean = np.asarray(shard.moments["mean"], np.float64)
            apart = np.asarray(shard.moments["apart"], np.float64)
        except (KeyError, TypeError, ValueError) as error:
            return f"statistics of a shard that cannot be read ({error})"
        if not mean.shape == apart.shape == header.mean.shape or not math.isfinite(count):
            return "statistics of a shard of another shape"
        if count:  # a shard of bad clips alone has none
            counts.append(count)
            means.append(mean)
            aparts.append(apart)
    if not counts:
        return ""
    weights = np.asarray(counts)[:, None]
    mean = (weights * means).sum(0) / weights.sum()
    apart = np.sum(aparts, axis=0) + (weights * np.square(np.asarray(means) - mean)).sum(0)
    std = np.sqrt(apart / weights.sum())
    # A channel may be constant; float32's rounding is the scale then.
    scale = _APART * (std + 1e-3 * np.abs(mean) + 1e-6)
    right = (np.abs(mean - header.mean) <= scale) & (np.abs(std - header.std) <= scale)
    return "" if right.all() else "a mean or std that is not that of its shards"
