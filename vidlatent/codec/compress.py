"""A video to the bytes of a compressed file, with figures on what they hold."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vidlatent.codec.clock import Clock
from vidlatent.codec.coded import Coded, Sizes
from vidlatent.codec.packed import PackedVideo, pack, round_latent, unpack
from vidlatent.codec.progress import FrameProgress
from vidlatent.errors import VidlatentError
from vidlatent.media.decode import iter_timed_frames
from vidlatent.media.errors import ClipError
from vidlatent.media.sound import pack_sound
from vidlatent.media.write import as_fps

if TYPE_CHECKING:  # the codec's methods call this module
    from vidlatent.codec.codec import Codec

__all__ = ["compress", "describe"]


def compress(
    codec: Codec,
    video: np.ndarray | str | Path | Iterable[np.ndarray],
    fps: Fraction | float = 0.0,
    dtype: str = "float16",
    coder: str = "lzma",
    weights: bool = False,
) -> tuple[bytes, dict[str, Any]]:
    """``Codec.compress``, and figures on the result for ``describe``."""
    bytes_in, told, timed = 0, [], None
    sound, origin = b"", 0.0
    if isinstance(video, (str, Path)):
        try:
            info, moments = iter_timed_frames(str(video))
            clock = Clock(info)
            sound, origin, about_sound = pack_sound(str(video), info)
            with FrameProgress("compress", info.frames) as progress:
                coded = Coded.join(list(_watch(codec, clock.watch(moments), progress)))
        except ClipError as error:
            raise VidlatentError(f"{video} cannot be compressed: {error}.") from error
        bytes_in, told, fps = os.path.getsize(video), clock.tell(about_sound), clock.fps
        timed = tuple(float(moment or 0.0) for moment in clock.take(coded.frames))
        timed = timed if clock.varies else None
    elif not fps:
        raise VidlatentError("frames alone have no rate: pass fps=, their number in a second.")
    else:
        coded = codec.encode(video)
    coded = dataclasses.replace(coded, times=timed)
    decoder = codec.carry() if weights else None
    packed = PackedVideo(coded, as_fps(fps), sound, origin, decoder=decoder)
    data = pack(packed, dtype, coder)
    return data, _measure(coded, data, bytes_in, dtype, coder) | {"told": told}


def _watch(codec: Codec, frames: Iterable[np.ndarray], progress: FrameProgress) -> Iterator[Coded]:
    for piece in codec.encode_stream(frames):
        progress.advance(piece.frames)
        yield piece


def _measure(coded: Coded, data: bytes, bytes_in: int, dtype: str, coder: str) -> dict[str, Any]:
    sizes = Sizes()
    sizes.add(coded)
    parts = unpack(data).parts
    rounding = np.abs(round_latent(coded.latent, dtype).astype(np.float32) - coded.latent).max()
    pixels = coded.frames * coded.size[0] * coded.size[1]
    beside = parts.get("sound", 0) + parts.get("weights", 0)
    return {
        "frames": coded.frames,
        "height": coded.size[0],
        "width": coded.size[1],
        "dtype": dtype,
        "coder": coder,
        "rounding_error": float(rounding),
        "bytes_in": bytes_in,
        "bytes_out": len(data),
        "bytes_of_parts": parts,
        "bits_a_pixel": 8 * (len(data) - beside) / pixels,
        **sizes.report(),
    }


def describe(figures: dict[str, Any]) -> list[str]:
    """Sentences on a compressed file, each figure with its meaning."""
    before, after = figures["bytes_in"], figures["bytes_out"]
    parts = ", ".join(f"{name} {size:,}" for name, size in figures["bytes_of_parts"].items())
    smaller = (
        f"{before / after:.2f} times smaller"
        if before >= after
        else (f"{after / before:.2f} times larger")
    )
    weights = figures["bytes_of_parts"].get("weights", 0)
    without = "its sound and weights" if weights else "its sound"
    told = [
        f"{before:,} bytes in, {after:,} bytes out ({parts}): {smaller} than the file it was made "
        "of, sound included.",
        f"{figures['bits_a_pixel']:.3f} bits a pixel: of the file without {without}, for each "
        "pixel of each frame; raw RGB has 24.",
        f"{figures['values_per_kept_value']:.1f} to 1 in values: numbers of raw RGB for each "
        "number that is kept, whatever bytes either takes.",
        f"Latents are rounded to {figures['dtype']}, by at most {figures['rounding_error']:.3g}, "
        f"and packed without loss by {figures['coder']}.",
    ]
    if weights:
        told.append(
            f"{weights:,} of the bytes are the decoder's weights, the same for every video: with "
            "them the file is restored without the run."
        )
    return told
