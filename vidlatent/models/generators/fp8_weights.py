"""Which weights of a generator are stored as fp8 for sampling (``config.sampler.fp8``)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vidlatent.kernels.fp8 import quantise_fp8

__all__ = ["cast_to_fp8", "is_large"]

# Projections of attention and feed-forward layers: nearly all of the work. First and last layers,
# embeddings, modulations and routers stay as they are: they are small, and their rounding errors
# would not average out over many blocks.
_LARGE = re.compile(r"(^|/)blocks/.*(^|/)(q|k|v|o|k_img|v_img|fc1|fc2)/kernel$")


def is_large(path: str) -> bool:
    """Whether a path such as ``blocks/self_attn/q/kernel`` is a kernel that fp8 pays off for."""
    return _LARGE.search(path) is not None


def cast_to_fp8(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Parameters with the blocks' large kernels as fp8, with one scale per layer.

    Next to such a ``kernel`` ``[L, I, ...]`` stands ``kernel_scale`` ``[L]``; ``dense.Linear``
    multiplies by both. Other leaves stay as they are.
    """
    out: dict[str, Any] = {}
    for name, leaf in params.items():
        path = f"{prefix}/{name}" if prefix else name
        if isinstance(leaf, Mapping):
            out[name] = cast_to_fp8(leaf, path)
        elif is_large(path):
            # Layers lie on the first axis; a scale for each lets the scan slice scales with
            # kernels.
            out["kernel"], out["kernel_scale"] = quantise_fp8(leaf, tuple(range(1, leaf.ndim)))
        else:
            out[name] = leaf
    return out
