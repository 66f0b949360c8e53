"""Still pictures as videos of one frame, by Pillow: it applies EXIF rotation, PyAV does not."""

from __future__ import annotations

import contextlib
import io
import re

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vidlatent.media.errors import ClipError, Limits, named_errors
from vidlatent.media.transforms import CENTRE, Crop, place

__all__ = [
    "AREA",
    "BILINEAR",
    "describe_picture",
    "is_animated_webp",
    "is_motion_jpeg",
    "is_picture",
    "open_picture",
    "read_picture",
    "read_picture_size",
    "resize_bilinear",
    "to_rgb",
]

# How frames are resized. AREA: averaged when made smaller, bicubic when made larger, in one pass
# with the colour conversion. BILINEAR: with antialiasing, as torchvision does by default.
AREA, BILINEAR = "area", "bilinear"

# First bytes of JPEG, BMP and TIFF (either byte order).
_STARTS = (b"\xff\xd8\xff", b"BM", b"II*\x00", b"MM\x00*")
_PNG = b"\x89PNG\r\n\x1a\n"
_SEARCHED = 64 << 20  # bytes in which the end of a JPEG is looked for

_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xff]")

# Modes of Pillow whose values have no defined meaning in eight bits.
_UNBOUNDED = frozenset(("F", "I"))
# In these formats mode I holds 16 bits; in others, such as TIFF, 32 of any meaning.
_SIXTEEN_BITS = frozenset(("PNG", "PPM"))


def is_picture(media: str | bytes) -> bool:
    """Whether a file (or its bytes) is a still PNG, JPEG, WebP, AVIF, BMP or TIFF.

    Animated PNG and AVIF and sequences of JPEG are videos that FFmpeg reads; for WebP see
    ``is_animated_webp``.
    """
    with _reading(media) as file:
        head = file.read(64)
        # Sound and video in RIFF begin alike; the kind stands four bytes later, after the size.
        if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
            return not _animates_webp(head)
        if head.startswith(_PNG):
            return not _animates_png(file)
        if head[4:8] == b"ftyp":
            # The brands of the file, the main one first. `avis` is a sequence of pictures.
            brands = head[8 : int.from_bytes(head[:4], "big")]
            return brands[:4] == b"avif" and b"avis" not in brands
        if head.startswith(b"\xff\xd8\xff"):
            return not _is_followed_by_jpeg(file)
        return head.startswith(_STARTS)


def is_motion_jpeg(media: str | bytes) -> bool:
    """Whether it is raw Motion JPEG: pictures of one size, one after the other."""
    with _reading(media) as file:
        return file.read(3) == b"\xff\xd8\xff" and _is_followed_by_jpeg(file)


def is_animated_webp(media: str | bytes) -> bool:
    """Whether it is a WebP file that moves, which FFmpeg does not read and Pillow does."""
    with _reading(media) as file:
        head = file.read(64)
    return head[:4] == b"RIFF" and head[8:12] == b"WEBP" and _animates_webp(head)


def _reading(media: str | bytes):
    return io.BytesIO(media) if isinstance(media, bytes) else open(media, "rb")


def _animates_webp(head: bytes) -> bool:
    # The second flag of the extended header.
    return head[12:16] == b"VP8X" and len(head) > 20 and bool(head[20] & 2)


def _animates_png(file) -> bool:
    """Whether a chunk ``acTL`` that counts more than one frame stands before the first pixels."""
    file.seek(len(_PNG))
    for _ in range(1000):
        chunk = file.read(8)
        size = int.from_bytes(chunk[:4], "big")
        if len(chunk) < 8 or chunk[4:] == b"IDAT":
            return False
        if chunk[4:] == b"acTL":
            return int.from_bytes(file.read(4), "big") > 1
        file.seek(size + 4, 1)
    return False


def _is_followed_by_jpeg(file) -> bool:
    """Whether another JPEG of the same size begins where the first one ends.

    Cameras append pictures of other sizes, or a video, to a photo: that is still a photo.
    """
    file.seek(0)
    content = file.read(_SEARCHED)
    first = _find_jpeg_end(content, 0)
    if first is None or first[1] is None:
        return False
    size, end = first
    if content[end : end + 3] != b"\xff\xd8\xff":
        return False
    second = _find_jpeg_end(content, end)
    # Photos with several views (MPF) are no sequence.
    return second is not None and second[0] == size and b"MPF\0" not in content[:65536]


def _find_jpeg_end(content: bytes, at: int) -> tuple[bytes, int | None] | None:
    """(bytes of height and width, where the JPEG that begins at ``at`` ends); None if damaged.

    The end is None if it is not in ``content``.
    """
    size, at = b"", at + 2
    while at + 4 <= len(content):
        if content[at] != 0xFF:
            return None
        kind = content[at + 1]
        if kind == 0xFF:  # filling
            at += 1
            continue
        if kind == 0xD9:
            return size, at + 2
        # Markers of frames: all 0xC. but the tables DHT, JPG and DAC.
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            size = content[at + 5 : at + 9]
        at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        if kind == 0xDA:
            # Compressed data goes on to the next marker that is no escape and no restart.
            marker = _MARKER.search(content, at)
            if marker is None:
                return size, None
            at = marker.start()
    if at + 2 <= len(content) and content[at : at + 2] == b"\xff\xd9":
        return size, at + 2
    return size, None


def resize_bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 [H, W, 3] -> [height, width, 3], bilinearly and with antialiasing."""
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized)


@contextlib.contextmanager
def open_picture(media: str | bytes, limits: Limits):
    """Yield Pillow's picture of a file or the bytes of one; raises ``ClipError``."""
    try:
        with (
            named_errors("corrupt"),
            Image.open(io.BytesIO(media) if isinstance(media, bytes) else media) as image,
        ):
            limits.check_size(image.height, image.width)
            yield image
    except ClipError as error:
        cause = error.__cause__
        if isinstance(cause, Image.DecompressionBombError):
            raise ClipError("too_large", str(cause)[:160]) from cause
        if isinstance(cause, UnidentifiedImageError):
            raise ClipError("unreadable", "Pillow does not know this picture") from cause
        if isinstance(cause, OSError) and "truncated" in str(cause):
            raise ClipError("truncated", str(cause)[:160]) from cause
        # Pillow says of damaged data that it cannot be read; the file itself can.
        if error.reason == "unreadable":
            raise ClipError("corrupt", error.detail) from cause
        raise


def to_rgb(image: Image.Image, kind: str | None) -> Image.Image:
    """A picture of a file format in 8-bit RGB; 16 bits are scaled.

    Raises:
      ClipError: floating-point or 32-bit values: what black and white are is not defined.
    """
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and kind in _SIXTEEN_BITS)
    if sixteen:
        # Pillow would cut all values above 255.
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray((np.clip(values, 0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in _UNBOUNDED:
        raise ClipError(
            "unsupported", f"{kind} with values of mode {image.mode}: save it in 8 or 16 bits"
        )
    return image.convert("RGB")


def read_picture_size(media: str | bytes, limits: Limits) -> tuple[int, int, list[str]]:
    """Displayed (height, width) in pixels, and keys of ``probe.REMARKS``.

    The whole picture is decoded to know that it can be.
    """
    with open_picture(media, limits) as image:
        image.load()
        to_rgb(image.crop((0, 0, 1, 1)), image.format)  # refuses what has no 8-bit values
        upright = ImageOps.exif_transpose(image)
        return upright.height, upright.width, describe_picture(image)


def describe_picture(image: Image.Image) -> list[str]:
    """Keys of ``probe.REMARKS`` for what is lost of a picture."""
    clear = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
    return ["alpha"] if clear else []


def read_picture(
    media: str | bytes,
    size: tuple[int, int] | None = None,
    crop: Crop | None = CENTRE,
    limits: Limits | None = None,
    resize: str = AREA,
) -> np.ndarray:
    """The picture as uint8 [H, W, 3], scaled to cover ``size`` and cut to it at ``crop``.

    ``crop`` None keeps the whole scaled picture. ``resize`` ``AREA`` is bicubic with antialiasing
    here.

    Raises:
      ClipError: it cannot be read, or is larger than ``limits`` allow.
    """
    limits = limits or Limits()
    with open_picture(media, limits) as picture:
        upright = to_rgb(ImageOps.exif_transpose(picture), picture.format)
        spot = place(upright.height, upright.width, size, crop or CENTRE)
        limits.check_scaled(spot.height, spot.width, size)
        if (spot.height, spot.width) != (upright.height, upright.width):
            kinds = {AREA: Image.Resampling.BICUBIC, BILINEAR: Image.Resampling.BILINEAR}
            upright = upright.resize((spot.width, spot.height), kinds[resize])
        image = np.asarray(upright)
        return np.ascontiguousarray(image if crop is None else image[spot.slices])
