"""Compressed files: a coded video in 16 bits, packed without loss, with rate, times and sound.

A file is an ``.npz`` archive of byte strings. ``about`` is JSON. Numbers are stored channel by
channel and byte by byte: the high bytes of neighbours, which hold sign and exponent, resemble each
other, and a general-purpose packer finds that. Decoder weights, where they are asked for, are a
safetensors file as it is.
"""

from __future__ import annotations

import dataclasses
import io
import lzma
import math
import zlib
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from vidlatent.codec.carried import Carried
from vidlatent.codec.coded import Coded
from vidlatent.errors import VidlatentError
from vidlatent.files import dump_json, parse_json, read_npz, unpacked_limit
from vidlatent.latents.contract import LatentSpace
from vidlatent.media.sound import is_sound
from vidlatent.media.write import as_fps
from vidlatent.registry import did_you_mean

__all__ = ["CODERS", "DTYPES", "PackedVideo", "pack", "unpack"]

DTYPES = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
}
CODERS = ("lzma", "zlib", "none")
_KIND = "vidlatent compressed video, version 1"
_REMEDY = "write it again by --mode=compress or codec.compress"
_MOST_MEMORY = 256 << 20  # bytes for a packer's dictionary, which a file may ask for


@dataclasses.dataclass(frozen=True)
class PackedVideo:
    """What a compressed file holds.

    Attributes:
      coded: the latents; its ``times`` are set only where the frame rate varies.
      fps: mean frames a second.
      sound, origin: as of ``media.sound.pack_sound``.
      parts: bytes of each part in the file; empty before it is packed.
      decoder: what decodes it, if the file is to be restored without the run; None: nothing.
    """

    coded: Coded
    fps: Fraction
    sound: bytes = dataclasses.field(default=b"", repr=False)
    origin: float = 0.0
    parts: dict[str, int] = dataclasses.field(default_factory=dict)
    decoder: Carried | None = None


def pack(video: PackedVideo, dtype: str = "float16", coder: str = "lzma") -> bytes:
    """The bytes of a compressed file.

    Args:
      video: what it is to hold.
      dtype: the latent is rounded to it, one of ``DTYPES``.
      coder: what packs without loss, one of ``CODERS``.

    Raises:
      VidlatentError: unknown dtype or coder, or a latent too large for the dtype.
    """
    for value, known, name in ((dtype, DTYPES, "dtype"), (coder, CODERS, "coder")):
        if value not in known:
            raise VidlatentError(f"{name} {value!r} is unknown: {did_you_mean(value, known)}")
    coded = video.coded
    latent = round_latent(coded.latent, dtype)
    space = LatentSpace.of_spec(coded.spec, encoder=coded.encoder, cut=coded.cut)
    about = {
        "kind": _KIND,
        "space": space.to_json(),
        "shape": latent.shape,
        "dtype": dtype,
        "coder": coder,
        "frames": coded.frames,
        "size": coded.size,
        "chunks": coded.chunks,
        "content": None if coded.content is None else len(coded.content),
        "timed": coded.times is not None,
        "fps": [video.fps.numerator, video.fps.denominator],
        "origin": video.origin,
    }
    # [t, h, w, c] -> [c, t, h, w]: neighbours in time and space resemble each other.
    parts = {"latent": _shrink(np.moveaxis(latent, -1, 0), coder)}
    if coded.content is not None:
        parts["content"] = _shrink(coded.content, coder)
    if coded.times is not None:
        parts["times"] = _shrink(np.asarray(coded.times, np.float64), coder)
    if video.sound:
        parts["sound"] = video.sound  # packed already by its own codec
    if video.decoder is not None:
        about["decoder"], parts["weights"] = video.decoder.about, video.decoder.weights
    parts["about"] = dump_json(about).encode()
    file = io.BytesIO()
    np.savez(file, **{name: np.frombuffer(part, np.uint8) for name, part in parts.items()})
    return file.getvalue()


def round_latent(latent: np.ndarray, dtype: str) -> np.ndarray:
    """The latent in the dtype that it is stored in.

    Raises:
      VidlatentError: it has a number beyond the dtype's largest.
    """
    with np.errstate(over="ignore"):
        stored = latent.astype(DTYPES[dtype])
    if not np.isfinite(stored.astype(np.float32)).all():
        largest = float(np.abs(latent).max())
        raise VidlatentError(f"{dtype} cannot hold the latent's {largest:.4g}: take bfloat16.")
    return stored


def unpack(source: bytes | str | Path) -> PackedVideo:
    """What ``pack`` made, of a file or its bytes; ``coded.latent`` is float32 again.

    Sizes are compared with those of the packed bytes before memory is taken.

    Raises:
      VidlatentError: the file is missing, damaged or something else.
    """
    stored = read_npz(source, _REMEDY)
    name = "<bytes>" if isinstance(source, bytes) else str(source)
    if "about" not in stored or "latent" not in stored:
        raise VidlatentError(f"{name} is no compressed video: {_REMEDY}.")
    try:
        video = _read(stored)
        wrong = video.coded.find_contradiction()
    except (VidlatentError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise VidlatentError(
            f"{name} is no compressed video ({type(error).__name__}: {error}): {_REMEDY}."
        ) from error
    if wrong:
        raise VidlatentError(f"{name} is no compressed video, since {wrong}: {_REMEDY}.")
    return video


def _read(stored: dict[str, np.ndarray]) -> PackedVideo:
    data = {name: part.tobytes() for name, part in stored.items()}
    about = parse_json(data["about"])
    if about["kind"] != _KIND:
        raise ValueError(f"its kind is {str(about['kind'])[:60]!r}, not {_KIND!r}")
    space, coder = LatentSpace.from_json(about["space"]), about["coder"]
    frames, size = about["frames"], tuple(about["size"])
    dtype, (t, h, w, c) = DTYPES[about["dtype"]], about["shape"]
    latent = np.moveaxis(_expand(data["latent"], (c, t, h, w), dtype, coder), 0, -1)
    content = times = None
    if about["content"] is not None:
        shape = (about["content"], *size, 3)
        content = _expand(data["content"], shape, np.dtype(np.uint8), coder)
    if about["timed"]:
        moments = _expand(data["times"], (frames,), np.dtype(np.float64), coder)
        times = tuple(moments.tolist())
    sound, origin = data.get("sound", b""), float(about["origin"])
    if (sound and not is_sound(sound)) or not math.isfinite(origin):
        raise ValueError("its sound is none")
    coded = Coded(
        latent=np.ascontiguousarray(latent, np.float32),
        spec=space.spec,
        frames=frames,
        size=size,
        content=content,
        chunks=None if about["chunks"] is None else tuple(about["chunks"]),
        encoder=space.encoder,
        times=times,
        cut=space.cut,
    )
    over, under = about["fps"]
    if type(over) is not int or type(under) is not int or under < 1:
        raise ValueError("its frame rate is none")
    decoder = Carried(about["decoder"], data["weights"]) if about.get("decoder") else None
    parts = {name: len(part) for name, part in data.items()}
    return PackedVideo(coded, as_fps(Fraction(over, under)), sound, origin, parts, decoder)


def _shrink(array: np.ndarray, coder: str) -> bytes:
    """An array's bytes, the first of all numbers before the second of all, packed."""
    flat = np.ascontiguousarray(array).view(np.uint8).reshape(-1, array.dtype.itemsize)
    data = flat.T.tobytes()
    if coder == "none":
        return data
    packed = zlib.compress(data, 9) if coder == "zlib" else lzma.compress(data, preset=6)
    if len(data) > unpacked_limit(len(packed)):
        raise VidlatentError(
            f"{coder} packs these {len(data)} bytes into {len(packed)}, which readers take for an "
            "attack: take the coder none."
        )
    return packed


def _expand(data: bytes, shape: Sequence[Any], dtype: np.dtype[Any], coder: str) -> np.ndarray:
    """The inverse of ``_shrink``; ``shape`` is of a file, so it is checked."""
    if any(type(side) is not int or side < 1 for side in shape):
        raise ValueError(f"an array of {str(tuple(shape))[:80]}")
    size = math.prod(shape) * dtype.itemsize
    if coder not in CODERS or size > unpacked_limit(len(data)):
        raise ValueError(f"{len(data)} bytes for {size} by the coder {str(coder)[:20]!r}")
    if coder == "zlib":
        unzip = zlib.decompressobj()
        try:
            raw = unzip.decompress(data, size + 1)
        except zlib.error as error:
            raise ValueError(str(error)) from error
        whole = unzip.eof and not unzip.unused_data
    elif coder == "lzma":
        try:
            unxz = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MOST_MEMORY)
            # The end of a stream is seen only by reading beyond its last byte.
            raw = unxz.decompress(data, size + 1)
        except (lzma.LZMAError, EOFError) as error:
            raise ValueError(str(error)) from error
        whole = unxz.eof and not unxz.unused_data
    else:
        raw, whole = data, True
    if len(raw) != size or not whole:
        raise ValueError(f"{len(raw)} bytes of the {size} that its shape needs")
    planes = np.frombuffer(raw, np.uint8).reshape(dtype.itemsize, -1)
    return np.ascontiguousarray(planes.T).reshape(-1).view(dtype).reshape(tuple(shape))
