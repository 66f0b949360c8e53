"""Reading and writing safetensors files as NumPy arrays (bfloat16 included). No pickle."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
import safetensors
import safetensors.numpy

from vidlatent.errors import VidlatentError

__all__ = ["load_safetensors", "save_safetensors"]


def load_safetensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """All tensors of a file by name, with stored shapes and dtypes.

    Raises:
      VidlatentError: missing file, or one that is not a sound safetensors file.
    """
    try:
        return safetensors.numpy.load_file(os.fspath(path))
    except FileNotFoundError as error:
        raise VidlatentError(f"no weights file at {path}.") from error
    except safetensors.SafetensorError as error:
        raise VidlatentError(
            f"{path} is not a sound safetensors file ({error}): fetch or export it again."
        ) from error


def save_safetensors(
    tensors: Mapping[str, np.ndarray],
    path: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write tensors of any shape by name; an interrupted write leaves no file of that name."""
    path = os.fspath(path)
    partial = path + ".partial"
    # The format has no strides, and exported kernels are transposed views.
    arrays = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    safetensors.numpy.save_file(arrays, partial, dict(metadata) if metadata else None)
    os.replace(partial, path)
