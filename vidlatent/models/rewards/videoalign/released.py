"""VideoAlign's released files as plain Qwen2-VL with a head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging

from vidlatent.weights.peft import merge_peft

__all__ = ["ALPHA", "fit_head", "merge_released"]

# lora_alpha of the release, of rank 64.
ALPHA = 128.0
# Wrappers of PEFT, and of newer versions of transformers, in the order in which they lie.
_WRAPPERS = (
    ("base_model.model.", ""),
    ("model.language_model.", "model."),
    ("model.visual.", "visual."),
)
_TABLE, _COPY, _HEAD = "model.embed_tokens.weight", "lm_head.weight", "rm_head.weight"


def merge_released(
    tensors: Mapping[str, np.ndarray], alpha: float = ALPHA
) -> dict[str, np.ndarray]:
    """Adapters merged, wrappers of names removed, and the second copy of the token table dropped.

    The released ``model.pth`` holds all of it. With several files, such as the base model's and an
    adapter's, what a later one holds replaces what an earlier one does.

    Args:
      tensors: of all files, in their order.
      alpha: of the adapters, see ``weights.peft.merge_peft``.

    Raises:
      VidlatentError: adapters that cannot be merged.
    """
    merged = merge_peft({_unwrap(name): x for name, x in tensors.items()}, alpha)
    copy = merged.pop(_COPY, None)
    table = merged.get(_TABLE)
    if copy is not None and table is not None and not np.array_equal(copy, table):
        # The published code has one array under both names and reads lm_head last.
        logging.warning("%s and %s differ: the second is taken, as published.", _TABLE, _COPY)
        merged[_TABLE] = copy
    return merged


def _unwrap(name: str) -> str:
    for wrapper, plain in _WRAPPERS:
        if name.startswith(wrapper):
            name = plain + name.removeprefix(wrapper)
    return name


def fit_head(shapes: Any, tensors: Mapping[str, np.ndarray]) -> Any:
    """``shapes`` of the parameters with as many outputs of the head as the file's has: 1 or 3."""
    head = tensors.get(_HEAD)
    if head is None or len(head) not in (1, 3):
        return shapes
    kernel = shapes["head"]["kernel"]
    fitted = jax.ShapeDtypeStruct((kernel.shape[0], len(head)), kernel.dtype)
    return {**shapes, "head": {"kernel": fitted}}
