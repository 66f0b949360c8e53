"""One decoded frame as pixels: upright, whole, in eight bits, scaled and cut."""

from __future__ import annotations

import struct
from fractions import Fraction

import av
import numpy as np
from av.sidedata.sidedata import Type

from vidlatent.media.container import to_fraction
from vidlatent.media.errors import ClipError, Limits
from vidlatent.media.pictures import AREA, resize_bilinear
from vidlatent.media.transforms import CENTRE, Crop, place

__all__ = ["check_frame", "describe_frame", "display_size", "frame_to_array"]

# Since PyAV 18, scaling starts threads of its own, which would compete with the loader's.
_SCALING = {"threads": 1} if int(av.__version__.split(".")[0]) >= 18 else {}
_HDR = (16, 18)  # of ITU-T H.273: the transfer curves of HDR, PQ and HLG


def _read_orientation(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """(sides swap, rows are reversed, columns are reversed), done in this order.

    The display matrix of a file maps stored places to shown ones: ``x' = a x + c y`` and
    ``y' = b x + d y``. Turns by other angles than 90 degrees are rounded, as players without a
    graphics card do.
    """
    data = frame.side_data.get(Type.DISPLAYMATRIX)
    if data is None:
        return False, False, False
    a, b, _, c, d = struct.unpack("=5i", bytes(data)[:20])
    if abs(b) + abs(c) > abs(a) + abs(d):
        return True, b < 0, c < 0
    return False, d < 0, a < 0


def display_size(frame: av.VideoFrame, stream) -> tuple[int, int]:
    """Displayed (height, width): square pixels, upright."""
    aspect = to_fraction(stream.sample_aspect_ratio)
    # Beyond 16 to 1 it is a damaged header.
    aspect = aspect if Fraction(1, 16) <= aspect <= 16 else Fraction(1)
    width = max(1, round(frame.width * aspect))
    return (width, frame.height) if _read_orientation(frame)[0] else (frame.height, width)


def frame_to_array(
    frame: av.VideoFrame,
    shown: tuple[int, int],
    size: tuple[int, int] | None,
    crop: Crop | None,
    resize: str = AREA,
    limits: Limits | None = None,
) -> np.ndarray:
    """One frame as uint8 [H, W, 3], upright, scaled to cover ``size`` and cut to it at ``crop``.

    With ``AREA`` the frame is scaled while its colours are converted, in one pass.

    Args:
      frame: of PyAV.
      shown: displayed (height, width) of the clip's first frame. A frame of another size is scaled
        to it, as players do when the size changes within a file.
      size: (height, width); None keeps ``shown``.
      crop: None keeps the whole scaled frame.
      resize: ``pictures.AREA`` or ``BILINEAR``.
      limits: bound the scaled frame, before it is made.
    """
    spot = place(*shown, size, crop or CENTRE)
    (limits or Limits()).check_scaled(spot.height, spot.width, size)
    swapped, upside_down, mirrored = _read_orientation(frame)
    # A frame on its side is scaled before it is turned, so its sides swap.
    to_height, to_width = (spot.width, spot.height) if swapped else (spot.height, spot.width)
    how = {}
    if resize == AREA:
        smaller = to_height < frame.height or to_width < frame.width
        how = {"width": to_width, "height": to_height}
        how["interpolation"] = "AREA" if smaller else "BICUBIC"
    image = _make_progressive(frame).reformat(format="rgb24", **how, **_SCALING).to_ndarray()
    if resize != AREA:
        image = resize_bilinear(image, to_height, to_width)
    if swapped:
        image = image.swapaxes(0, 1)
    image = image[:: -1 if upside_down else 1, :: -1 if mirrored else 1]
    return image if crop is None else image[spot.slices]


def _make_progressive(frame: av.VideoFrame) -> av.VideoFrame:
    """The same pixels without the flag of interlaced frames.

    FFmpeg's scaler scales the two fields of flagged frames apart and weaves them again, which
    combs every edge once the size changes. Scaling whole frames is what its command line does.
    """
    if not frame.interlaced_frame:
        return frame
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=frame.width,
        height=frame.height,
        format=frame.format.name,
        time_base=Fraction(1, 1000),
    )
    plain, sink = graph.add("setfield", "mode=prog"), graph.add("buffersink")
    source.link_to(plain)
    plain.link_to(sink)
    graph.configure()
    source.push(frame)
    return sink.pull()


def check_frame(frame: av.VideoFrame, limits: Limits) -> None:
    """Raise ``ClipError`` if a decoded frame is damaged, too large, or has no 8-bit values."""
    if frame.is_corrupt:
        raise ClipError("corrupt", "the decoder marks a frame as damaged")
    # The size may change within a stream, so the header's is not enough.
    limits.check_size(frame.height, frame.width)
    if any(kind in frame.format.name for kind in ("f32", "f16")):
        raise ClipError("unsupported", f"floating-point pixels ({frame.format.name})")


def describe_frame(frame: av.VideoFrame) -> list[str]:
    """Keys of ``probe.REMARKS`` for what is lost or changed in frames like this one."""
    found = []
    if any(component.is_alpha for component in frame.format.components):
        found.append("alpha")
    if int(frame.color_trc) in _HDR:
        found.append("hdr")
    if frame.interlaced_frame:
        found.append("interlaced")
    return found
