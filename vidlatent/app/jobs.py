"""What the page does, without the page: a video restored, a video made."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vidlatent.codec.codec import Codec
from vidlatent.codec.compress import compress
from vidlatent.codec.packed import unpack
from vidlatent.codec.preview import Preview
from vidlatent.errors import VidlatentError
from vidlatent.media.decode import iter_frames
from vidlatent.media.errors import ClipError
from vidlatent.media.sheets import pick_frames
from vidlatent.media.write import side_by_side, write_video
from vidlatent.metrics.psnr import psnr
from vidlatent.metrics.ssim import ssim
from vidlatent.paths import as_path

__all__ = ["Bounds", "Restored", "make_video", "restore"]

_PAIRS = 8  # frames to compare with the slider
_LEAST_SIDE = 11  # pixels; SSIM's window


@dataclasses.dataclass(frozen=True)
class Bounds:
    """How much of an upload is used.

    Attributes:
      frames: from the first; what follows is left out.
      height: in pixels; higher videos are scaled down.
      megabytes: of a file; larger ones are refused.
    """

    frames: int = 240
    height: int = 480
    megabytes: int = 200


@dataclasses.dataclass(frozen=True)
class Restored:
    """Files and figures of a restored video.

    Attributes:
      video, both, latent: paths of the restored video, both side by side, and the latent file.
      preview: path of the latent's preview as a video; None without one.
      pairs: original and restored frames uint8 ``[H, W, 3]``, from the first to the last.
      facts: bytes, scores, and what was left out, a line of Markdown each.
    """

    video: Path
    both: Path
    latent: Path
    preview: Path | None
    pairs: list[tuple[np.ndarray, np.ndarray]]
    facts: list[str]


def restore(
    codec: Codec,
    path: str,
    folder: Path,
    bounds: Bounds,
    preview: Preview | None = None,
    progress: Callable[[float, str], Any] = lambda share, what: None,
) -> Restored:
    """Compress and restore an uploaded video.

    Args:
      codec: that does it.
      path: of the upload.
      folder: for what is made, which exists.
      bounds: how much of the video is used.
      preview: linear map from latents to small pictures.
      progress: called with the share that is done (0 to 1) and what comes next.

    Raises:
      VidlatentError: the file is too large, or no video.
    """
    size = os.path.getsize(path)
    if size > bounds.megabytes * 1_000_000:
        raise VidlatentError(
            f"the file has {size / 1e6:.0f} MB, and at most {bounds.megabytes} are taken "
            "(--max_megabytes)."
        )
    progress(0.0, "reading")
    try:
        original, fps, told = _read(path, bounds)
    except ClipError as error:
        raise VidlatentError(f"this file cannot be read as a video: {error.detail}.") from error
    progress(0.2, "encoding")
    data, figures = compress(codec, original, fps)
    coded = unpack(data).coded
    progress(0.5, "decoding")
    restored = codec.decode(coded)
    progress(0.8, "writing")
    files = [folder / name for name in ("restored.mp4", "side_by_side.mp4", "latent.vlat")]
    write_video(files[0], restored, fps)
    write_video(files[1], side_by_side(original, restored), fps)
    files[2].write_bytes(data)
    shown = None
    if preview is not None:
        small = preview(coded.latent)
        shown = folder / "preview.mp4"
        write_video(shown, small.repeat(codec.spec.h, 1).repeat(codec.spec.w, 2), fps)
    pairs = [(original[i], restored[i]) for i in pick_frames(len(original), _PAIRS)]
    facts = [
        f"{size:,} bytes uploaded, {original.nbytes:,} bytes of pixels, **{len(data):,} bytes** in "
        f"the latent file: {original.nbytes / len(data):.1f} times less than pixels.",
        f"PSNR **{_mean(psnr, original, restored):.2f} dB**, "
        f"SSIM **{_mean(ssim, original, restored):.3f}**; "
        f"{figures['bits_a_pixel']:.2f} bits a pixel.",
        *told,
    ]
    return Restored(*files, shown, pairs, facts)


def _read(path: str, bounds: Bounds) -> tuple[np.ndarray, float, list[str]]:
    """Frames uint8 ``[T, H, W, 3]``, their rate, and what was left out."""
    info, frames = iter_frames(path)
    told = []
    if info.height > bounds.height:
        size = bounds.height, max(2, 2 * round(info.width * bounds.height / info.height / 2))
        told.append(f"Scaled from {info.width}x{info.height} to {size[1]}x{size[0]}.")
        info, frames = iter_frames(path, size=size)
    video = np.stack(list(itertools.islice(frames, bounds.frames)))
    if min(video.shape[1:3]) < _LEAST_SIDE:
        raise ClipError("too_small", f"{video.shape[2]}x{video.shape[1]} pixels")
    if info.frames > len(video):
        told.append(f"The first {len(video)} of {info.frames} frames; the sound is left out.")
    return video, float(info.fps or 1.0), told


def _mean(metric: Any, original: np.ndarray, restored: np.ndarray) -> float:
    # Frame by frame: SSIM of all at once would take many times their memory.
    pairs = zip(original, restored, strict=True)
    return float(np.mean([metric(a[None, None], b[None, None])[0, 0] for a, b in pairs]))


def make_video(
    generator: Any,
    prompt: str,
    picture: np.ndarray | None,
    seed: int,
    steps: int,
    folder: Path,
    fps: float,
    progress: Callable[[float, str], Any] = lambda share, what: None,
) -> Path:
    """Draw a video and write it; returns its path.

    Args:
      generator: of ``vidlatent.load_generator``.
      prompt: text, or name of a class.
      picture: to start from, uint8 ``[H, W, 3]``; None for none.
      seed: the same one gives the same video.
      steps: of the sampler; 0 for those of its config.
      folder: for the video, which exists.
      fps: frames a second.
      progress: as of ``restore``.

    Raises:
      VidlatentError: an argument that the generator cannot read.
    """
    progress(0.0, "sampling; the first video compiles for a while")
    pieces = generator.stream(prompt, picture, seed=seed, steps=steps or None)
    made, total = [], generator.size[0]
    for piece in pieces:
        made.append(piece)
        done = sum(map(len, made))
        progress(0.5 + 0.5 * min(1.0, done / total), f"decoded {done} of {total} frames")
    path = as_path(folder, "made.mp4")
    write_video(path, np.concatenate(made), fps)
    return path
