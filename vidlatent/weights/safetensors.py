"""Reading and writing safetensors files as NumPy arrays (bfloat16 and FP8 included). No pickle."""

from __future__ import annotations

import os
from collections.abc import Container, Mapping

import numpy as np
import safetensors
import safetensors.numpy

from vidlatent.errors import VidlatentError
from vidlatent.files import parse_json
from vidlatent.paths import is_remote, local_copy, local_file
from vidlatent.weights.fp8 import FP8_TYPES, restore_fp8

__all__ = ["load_safetensors", "save_safetensors"]

# What NumPy can hold, by the names of the format. ``safetensors`` knows bfloat16 by itself.
_KNOWN = "F64 F32 F16 BF16 I64 I32 I16 I8 U64 U32 U16 U8 BOOL C64".split()


def load_safetensors(
    path: str | os.PathLike[str], names: Container[str] | None = None
) -> dict[str, np.ndarray]:
    """All tensors of a file by name, with stored shapes and dtypes; FP8 ones as float32.

    FP8 weights are multiplied by the scales stored beside them (``weights.fp8``).

    Args:
      path: of the file.
      names: read only those of these that are there; None: all.

    Raises:
      VidlatentError: missing file, one that is not a sound safetensors file, or a tensor of a type
        that cannot be read.
    """
    try:
        path = local_copy(path)
        with safetensors.safe_open(path, framework="numpy") as file:
            # Opening has checked the header: every tensor lies inside the file, none overlaps.
            offsets = _read_offsets(path)
            tensors = {}
            for name in file.keys():  # noqa: SIM118 (it is no dictionary)
                if names is not None and name not in names:
                    continue
                kind = file.get_slice(name).get_dtype()
                if kind in FP8_TYPES:
                    shape = tuple(file.get_slice(name).get_shape())
                    count = int(np.prod(shape, dtype=np.int64))
                    flat = np.fromfile(path, FP8_TYPES[kind], count, offset=offsets[name])
                    tensors[name] = flat.reshape(shape)
                elif kind in _KNOWN:
                    tensors[name] = file.get_tensor(name)
                else:
                    raise VidlatentError(
                        f"{path}: {name} is of type {kind}, which is not read: use a file with "
                        "bfloat16, float16, float32 or FP8 (F8_E4M3, F8_E5M2) weights."
                    )
    except FileNotFoundError as error:
        raise VidlatentError(f"no weights file at {path}.") from error
    except (safetensors.SafetensorError, OSError, ValueError, TypeError, OverflowError) as error:
        raise VidlatentError(
            f"{path} is not a sound safetensors file ({error}): fetch or export it again."
        ) from error
    return restore_fp8(tensors, path)


def _read_offsets(path: str) -> dict[str, int]:
    """Where each tensor of a sound file begins, in bytes."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = parse_json(file.read(length))
    return {
        name: 8 + length + about["data_offsets"][0]
        for name, about in header.items()
        if name != "__metadata__"
    }


def save_safetensors(
    tensors: Mapping[str, np.ndarray],
    path: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write tensors of any shape by name; an interrupted write leaves no file of that name.

    Raises:
      VidlatentError: it cannot be written, for a full disk or missing permissions.
    """
    if is_remote(path):
        with local_file(path) as local:
            save_safetensors(tensors, local, metadata)
        return
    path = os.fspath(path)
    partial = f"{path}.{os.getpid()}.partial"
    # The format has no strides, and exported kernels are transposed views.
    arrays = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    try:
        safetensors.numpy.save_file(arrays, partial, dict(metadata) if metadata else None)
        os.replace(partial, path)
    except (safetensors.SafetensorError, OSError) as error:
        raise VidlatentError(
            f"{path} cannot be written ({error}): free some space, or name another file; what was "
            "there before is untouched."
        ) from error
    finally:
        if os.path.exists(partial):
            os.unlink(partial)
