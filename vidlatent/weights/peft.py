"""Released files that hold low-rank adapters beside the kernels they adapt, in PEFT's layout."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vidlatent.errors import VidlatentError
from vidlatent.weights.lora import merge_kernel

__all__ = ["merge_peft"]

_BASE = ".base_layer."
# Parts of an adapter; PEFT writes the adapter's name between them in a whole model's file only.
_DOWN = (".lora_A.default.weight", ".lora_A.weight")
_UP = (".lora_B.default.weight", ".lora_B.weight")


def merge_peft(tensors: Mapping[str, np.ndarray], alpha: float) -> dict[str, np.ndarray]:
    """The tensors without adapters: each adapted kernel is ``W + alpha / rank * B A``.

    A merged kernel is float32, whatever the file's dtype: rounded to bfloat16 it would lose what
    the adapter adds to its last digits.

    Args:
      tensors: kernels ``name[.base_layer].weight [O, I]`` and, of some, ``name.lora_A[.default]
        .weight [r, I]`` and ``name.lora_B[.default].weight [O, r]``.
      alpha: PEFT's ``lora_alpha``, which files of weights do not hold.

    Raises:
      VidlatentError: half an adapter, one without its kernel or of other sizes, or one of another
        kind.
    """
    plain = {n.replace(_BASE, "."): x for n, x in tensors.items() if ".lora_" not in n}
    down, up = _find_parts(tensors, _DOWN), _find_parts(tensors, _UP)
    known = {name for part in (down, up) for name, _ in part.values()}
    other = [name for name in tensors if ".lora_" in name and name not in known]
    if other:
        raise VidlatentError(
            f"{other[0]} is no part of a low-rank adapter that can be merged: merge it where it "
            "was trained (PEFT's merge_and_unload) and save the whole model."
        )
    for module in sorted({*down, *up}):
        kernel = f"{module}.weight"
        if module not in down or module not in up or kernel not in plain:
            raise VidlatentError(
                f"the adapter of {module} is not whole: it needs lora_A, lora_B and the kernel "
                f"{kernel}, in this file or in another one named beside it."
            )
        plain[kernel] = _merge(kernel, plain[kernel], down[module][1], up[module][1], alpha)
    return plain


def _find_parts(
    tensors: Mapping[str, np.ndarray], endings: tuple[str, ...]
) -> dict[str, tuple[str, np.ndarray]]:
    """Name of the adapted layer -> (tensor's name, tensor)."""
    found = {}
    for name, x in tensors.items():
        for ending in endings:
            if name.endswith(ending):
                found[name.removesuffix(ending)] = (name, x)
    return found


def _merge(
    name: str, kernel: np.ndarray, down: np.ndarray, up: np.ndarray, alpha: float
) -> np.ndarray:
    sizes = {x.shape for x in (kernel, down, up) if x.ndim != 2}
    if sizes or (up.shape[0], down.shape[1]) != kernel.shape or up.shape[1] != down.shape[0]:
        raise VidlatentError(
            f"the adapter of {name} {kernel.shape} has the shapes {down.shape} and {up.shape}, "
            "which do not multiply to it."
        )
    # Torch's kernels are [O, I], so the factors come in the other order.
    return np.asarray(merge_kernel(np.asarray(kernel, np.float32), up, down, alpha / len(down)))
