"""Still pictures as videos of one frame, by Pillow: it applies EXIF rotation, PyAV does not."""

from __future__ import annotations

import contextlib
import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vidlatent.media.errors import ClipError, Limits
from vidlatent.media.transforms import CENTRE, Crop, place

__all__ = ["AREA", "BILINEAR", "is_picture", "read_picture_size", "read_picture", "resize_bilinear"]

# How frames are resized. AREA: averaged when made smaller, bicubic when made larger, in one pass
# with the colour conversion. BILINEAR: with antialiasing, as torchvision does by default.
AREA, BILINEAR = "area", "bilinear"

# First bytes of PNG, JPEG, BMP and TIFF (either byte order).
_STARTS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"II*\x00", b"MM\x00*")


def is_picture(media: str | bytes) -> bool:
    """Whether a file (or its bytes) begins like PNG, JPEG, WebP, AVIF, BMP or TIFF."""
    if isinstance(media, bytes):
        head = media[:16]
    else:
        with open(media, "rb") as file:
            head = file.read(16)
    # Sound and video in RIFF begin alike; the kind stands four bytes later, after the size.
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return True
    return head.startswith(_STARTS) or head[4:12] == b"ftypavif"


def resize_bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 [H, W, 3] -> [height, width, 3], bilinearly and with antialiasing."""
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized)


@contextlib.contextmanager
def _opened(media: str | bytes, limits: Limits):
    try:
        with Image.open(io.BytesIO(media) if isinstance(media, bytes) else media) as image:
            limits.check_size(image.height, image.width)
            yield image
    except Image.DecompressionBombError as error:
        raise ClipError("too_large", str(error)[:160]) from error
    except UnidentifiedImageError as error:
        raise ClipError("unreadable", "Pillow does not know this picture") from error
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for damaged data
        reason = "truncated" if "truncated" in str(error) else "corrupt"
        raise ClipError(reason, str(error)[:160]) from error


def read_picture_size(media: str | bytes, limits: Limits) -> tuple[int, int]:
    """Displayed (height, width) in pixels; the whole picture is decoded to know that it can be."""
    with _opened(media, limits) as image:
        image.load()
        upright = ImageOps.exif_transpose(image)
        return upright.height, upright.width


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
    with _opened(media, limits or Limits()) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
        spot = place(upright.height, upright.width, size, crop or CENTRE)
        if (spot.height, spot.width) != (upright.height, upright.width):
            kinds = {AREA: Image.Resampling.BICUBIC, BILINEAR: Image.Resampling.BILINEAR}
            upright = upright.resize((spot.width, spot.height), kinds[resize])
        image = np.asarray(upright)
        return np.ascontiguousarray(image if crop is None else image[spot.slices])
