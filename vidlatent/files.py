"""Small files: written whole or not at all, and JSON that every reader accepts.

A crash, a full disk or a power cut midway leaves the file as it was before.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

import numpy as np

from vidlatent.errors import VidlatentError
from vidlatent.paths import as_path, is_remote

__all__ = [
    "dump_json",
    "parse_json",
    "read_json",
    "read_npz",
    "replace_file",
    "unpacked_limit",
    "write_json",
    "write_text",
]

_SMALL = 64 << 20  # bytes that an archive may unpack to, however small it is
_RATIO = 100  # above that: how many times its own size


@contextlib.contextmanager
def replace_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a file for writing that takes the name ``path`` when the block ends without an error.

    Until then it lies beside it as ``<name>.<process number>.partial``. An object in a store is
    written when the block ends: stores show objects whole or not at all.

    Raises:
      OSError: it cannot be written; the old file is untouched.
    """
    path = os.fspath(path)
    if is_remote(path):
        whole = io.BytesIO()
        yield whole
        as_path(path).write_bytes(whole.getvalue())
        return
    # The process number keeps processes that write at the same time apart.
    part = f"{path}.{os.getpid()}.partial"
    try:
        with open(part, "wb") as file:
            yield file
            file.flush()
            # The data must be on disk before the name: after a power cut the file would be empty.
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Replace the text file ``path`` in one step (``replace_file``)."""
    with replace_file(path) as file:
        file.write(text.encode())


def write_json(
    path: str | os.PathLike[str], content: Any, *, indent: int | None = 1, sort_keys: bool = False
) -> None:
    """Replace the JSON file ``path`` in one step (``dump_json``, ``replace_file``)."""
    write_text(path, dump_json(content, indent=indent, sort_keys=sort_keys) + "\n")


def dump_json(content: Any, **options: Any) -> str:
    """``json.dumps`` that refuses NaN and infinity, which JSON does not have.

    Raises:
      VidlatentError: a number is not finite; the message names its keys.
    """
    try:
        return json.dumps(content, allow_nan=False, **options)
    except ValueError as error:
        where = _find_not_finite(content)
        if where is None:
            raise
        raise VidlatentError(
            f"{where or 'a number'} is not finite, and JSON cannot hold that: look at the data "
            "that it was computed from."
        ) from error


def _find_not_finite(content: Any, at: str = "") -> str | None:
    """Keys of the first number that is not finite, ``scores.psnr``; None if there is none."""
    if isinstance(content, float):
        return None if math.isfinite(content) else at
    pairs: Any = ()
    if isinstance(content, Mapping):
        pairs = content.items()
    elif isinstance(content, Sequence) and not isinstance(content, str):
        pairs = enumerate(content)
    for key, value in pairs:
        found = _find_not_finite(value, f"{at}.{key}" if at else str(key))
        if found is not None:
            return found
    return None


def parse_json(text: str | bytes) -> Any:
    """``json.loads`` that raises only ``ValueError``, also for NaN and for too deep a nesting."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(path: str | os.PathLike[str], remedy: str) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
      path: of the file.
      remedy: what to do if it is damaged; the end of the error's sentence.

    Raises:
      VidlatentError: the file holds something else than an object.
      OSError: it cannot be read.
    """
    try:
        content = parse_json(as_path(path).read_bytes())
    except ValueError as error:
        raise VidlatentError(f"{os.fspath(path)} is damaged ({error}): {remedy}.") from error
    if not isinstance(content, dict):
        raise VidlatentError(f"{os.fspath(path)} is damaged (it holds no object): {remedy}.")
    return content


def unpacked_limit(size: int) -> int:
    """Bytes that ``size`` packed bytes may unpack to: more is taken for an attack."""
    return max(_SMALL, _RATIO * size)


def read_npz(path: str | os.PathLike[str] | bytes, remedy: str) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz`` file by name; what they would take is checked before it is taken.

    Args:
      path: of the file, or its bytes. Objects, which only pickle can read, are refused.
      remedy: what to do if it is damaged; the end of the error's sentence.

    Raises:
      VidlatentError: it is missing, no such archive, damaged, or unpacks to far more than it holds.
    """
    file: str | io.BytesIO
    if not isinstance(path, bytes) and is_remote(path):
        path = _read_object(path, remedy)
    if isinstance(path, bytes):
        file, size, path = io.BytesIO(path), len(path), "<bytes>"
    else:
        file = path = os.fspath(path)
        size = -1
    try:
        limit = unpacked_limit(os.path.getsize(path) if size < 0 else size)
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            total = sum(member.file_size for member in members)
            if total > limit:
                raise ValueError(f"it would unpack to {total} bytes, {limit} is the most")
            return {
                member.filename.removesuffix(".npy"): _read_array(archive, member)
                for member in members
            }
    except FileNotFoundError as error:
        raise VidlatentError(f"there is no file {path}: {remedy}.") from error
    except _DAMAGE as error:
        reason = " ".join(str(error).split())[:200]
        raise VidlatentError(
            f"{path} is damaged or no .npz file ({type(error).__name__}: {reason}): {remedy}."
        ) from error


# What the zip and NumPy readers raise, depending on the damage.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    ValueError,
    KeyError,
    TypeError,
    SyntaxError,
    IndexError,
    NotImplementedError,
    OverflowError,
    RuntimeError,  # encrypted; also RecursionError
    MemoryError,
)


def _read_object(path: str | os.PathLike[str], remedy: str) -> bytes:
    try:
        return as_path(path).read_bytes()
    except FileNotFoundError as error:
        raise VidlatentError(f"there is no file {os.fspath(path)}: {remedy}.") from error


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """One array, whose header must agree with the size of its member."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"array format {version}")
        first = version == (1, 0)
        read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        if dtype.hasobject or dtype.fields is not None:
            raise ValueError(f"array of {dtype}")
        count = math.prod(shape)
        if any(size < 0 for size in shape) or count * dtype.itemsize > member.file_size:
            raise ValueError(f"{member.filename} of shape {shape} in {member.file_size} bytes")
        data = file.read(count * dtype.itemsize)
        array = np.frombuffer(data, dtype, count).reshape(shape, order="F" if fortran else "C")
        # The checksum of a member is compared at its end, which is reached only by reading on.
        if file.read():
            raise ValueError(f"{member.filename} goes on after its array")
        return array.copy()
