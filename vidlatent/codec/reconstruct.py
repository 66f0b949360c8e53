"""The mode ``reconstruct``: one video through the codec, with scores and pictures."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from vidlatent.codec.clock import Clock
from vidlatent.codec.codec import Codec
from vidlatent.codec.coded import Sizes
from vidlatent.codec.load import open_codec
from vidlatent.codec.progress import FrameProgress
from vidlatent.errors import VidlatentError
from vidlatent.files import write_json
from vidlatent.media.decode import iter_timed_frames
from vidlatent.media.errors import ClipError
from vidlatent.media.sheets import contact_sheet
from vidlatent.media.sound import SoundTracks
from vidlatent.media.write import VideoWriter, side_by_side
from vidlatent.metrics import psnr, ssim
from vidlatent.metrics.flicker import BorderDifferences, FrameDifferences
from vidlatent.metrics.ssim import WINDOW as SSIM_WINDOW
from vidlatent.paths import as_path, same_place

__all__ = ["reconstruct_video"]

_GAIN = 5.0  # of differences on the sheet
# Compiled, because PSNR run operation by operation takes thirty times as long.
_METRICS = {
    name: jax.jit(functools.partial(metric, data_range=255.0))
    for name, metric in (("psnr", psnr), ("ssim", ssim))
}


def reconstruct_video(
    config: ConfigDict, workdir: Path, step: int, input: str, output: str, **weights: str
) -> int:
    """Encode and decode one video of any length and size.

    Beside ``output`` it writes ``<name>_scores.json`` and, with ``config.eval.compare``,
    ``<name>_side_by_side.mp4`` and ``<name>_contact_sheet.png``. It holds a few pieces of the video
    in memory, never all of it. ``weights`` are the flags ``from`` and ``from_table``
    (``codec.load.open_codec``).
    """
    if not input or not output:
        raise VidlatentError("--mode=reconstruct needs --input=my.mp4 and --output=restored.mp4.")
    if same_place(input, output):
        raise VidlatentError(f"--output={output} would overwrite the input: choose another name.")
    try:
        codec = open_codec(config, workdir, step, **weights)
        return _reconstruct(config, codec, input, as_path(output))
    except ClipError as error:
        raise VidlatentError(f"--input={input} cannot be restored: {error}.") from error


def _reconstruct(config: ConfigDict, codec: Codec, input: str, target: Path) -> int:
    info, timed = iter_timed_frames(input)
    if config.eval.compare and min(info.size) < SSIM_WINDOW:
        raise VidlatentError(
            f"--input={input} is {info.width}x{info.height}: SSIM needs {SSIM_WINDOW} pixels a "
            "side; set --config.eval.compare=false to restore it without scores."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    sound = SoundTracks(input, info)
    clock = Clock(info)
    count, sizes = 0, Sizes()
    compared = _Compared(codec, target, clock, info.frames) if config.eval.compare else None
    with (
        VideoWriter(target, clock.fps, timed=clock.varies, sound=sound) as restored,
        compared or contextlib.nullcontext(),
        FrameProgress("reconstruct", info.frames) as bar,
    ):
        for original, reconstruction in codec.reconstruct_stream(clock.watch(timed), sizes.add):
            moments = clock.take(len(original))
            for frame, moment in zip(reconstruction, moments, strict=True):
                restored.add(frame, moment)
            if compared:
                compared.add(original, reconstruction, moments)
            count += len(original)
            bar.advance(len(original))
    about = {"height": info.height, "width": info.width, "fps": float(info.fps)}
    scores = {"input": as_path(input).name, "coded_in": codec.time, "frames": count}
    scores |= about | sizes.report() | (compared.scores() if compared else {})
    scores["told"] = clock.tell(sound.told)
    path = _beside(target, "scores.json")
    write_json(path, scores)
    quality = f"PSNR {scores['psnr']:.2f} dB, SSIM {scores['ssim']:.3f}, " if compared else ""
    logging.info("%d frames, %s%s", count, quality, _compression(scores))
    for sentence in scores["told"]:
        logging.warning("%s: %s", input, sentence)
    title = f"{scores['input']}: {quality}{_compression(scores)}"
    for file in (target, *(compared.write(title) if compared else ()), path):
        logging.info("wrote %s", file)
    return 0


def _beside(target: Path, ending: str) -> Path:
    return target.with_name(f"{target.stem}_{ending}")


class _Compared:
    """Scores of a restored video, both videos side by side, and a contact sheet of a few frames."""

    def __init__(self, codec: Codec, target: Path, clock: Clock, expected: int):
        self._tally, self._borders = _Tally(expected), _Borders(codec)
        self._sheet = _beside(target, "contact_sheet.png")
        self._video = _beside(target, "side_by_side.mp4")
        self._clock = clock

    def __enter__(self) -> _Compared:
        # The side-by-side video is twice as wide, so use a fast x264 preset: keeping up with
        # scoring matters more than file size.
        clock = self._clock
        self._writer = VideoWriter(self._video, clock.fps, preset="veryfast", timed=clock.varies)
        return self

    def __exit__(self, *error) -> bool | None:
        return self._writer.__exit__(*error)

    def add(
        self,
        original: np.ndarray,
        reconstruction: np.ndarray,
        moments: Sequence[float | None],
    ) -> None:
        self._tally.add(original, reconstruction)
        self._borders.add(original, reconstruction)
        for frame, moment in zip(side_by_side(original, reconstruction), moments, strict=True):
            self._writer.add(frame, moment)

    def scores(self) -> dict[str, Any]:
        return {**self._tally.scores(), **self._borders.scores()}

    def write(self, title: str) -> tuple[Path, Path]:
        """Writes the contact sheet; returns the files to look at."""
        self._sheet.write_bytes(self._tally.contact_sheet(title))
        return self._video, self._sheet


class _Tally:
    """Running scores and a few evenly spread frames of a video of unknown length."""

    SHOWN = 8

    def __init__(self, expected: int):
        self.frames = 0
        self._sums = {"psnr": 0.0, "ssim": 0.0}
        # ``expected`` is what the file claims, and may be 0 or wrong.
        self._stride = max(1, expected // self.SHOWN)
        self._kept: list[tuple[int, np.ndarray, np.ndarray]] = []

    def add(self, original: np.ndarray, reconstruction: np.ndarray) -> None:
        # Frame by frame, because SSIM holds about ten float32 arrays of a frame's size.
        for pair in zip(original, reconstruction, strict=True):
            for name, metric in _METRICS.items():
                # Metrics take [B, T, H, W, 3] and give [B, T].
                self._sums[name] += float(metric(*(frame[None, None] for frame in pair))[0, 0])
        for position in range(len(original)):
            if (self.frames + position) % self._stride == 0:
                number = self.frames + position
                # Copy: a view of one frame would keep its whole piece in memory.
                pair = original[position].copy(), reconstruction[position].copy()
                self._kept.append((number, *pair))
        if len(self._kept) > 4 * self.SHOWN:  # the container's frame count was too low
            self._kept, self._stride = self._kept[::2], self._stride * 2
        self.frames += len(original)

    def scores(self) -> dict[str, float]:
        return {name: total / self.frames for name, total in self._sums.items()}

    def contact_sheet(self, title: str) -> bytes:
        numbers, original, reconstruction = zip(*self._kept, strict=True)
        rows = [np.stack(original), np.stack(reconstruction)]
        labels = ["original", "reconstruction"]
        shown = {"columns": self.SHOWN, "numbers": numbers, "title": title}
        return contact_sheet(rows, labels, difference=_GAIN, **shown)


class _Borders:
    """Measures whether borders of chunks and tiles are visible, see ``metrics.flicker``."""

    def __init__(self, codec: Codec):
        self._codec = codec
        self._time = [FrameDifferences(codec.chunk_borders()) for _ in range(2)]
        self._space: list[BorderDifferences] = []

    def add(self, original: np.ndarray, reconstruction: np.ndarray) -> None:
        if not self._space:
            # Known only now: with space='auto' the first decoded frame decides on the tiles.
            lines = self._codec.tile_borders(*original.shape[1:3])
            self._space = [BorderDifferences(*lines) for _ in range(2)]
        for meters in (self._time, self._space):
            # The original is measured too: its own edges and cuts are no fault of the codec.
            for meter, frames in zip(meters, (reconstruction, original), strict=True):
                meter.add(frames)

    def scores(self) -> dict[str, dict[str, Any]]:
        """For each kind of border, the mean difference near borders and far from them."""
        found = {}
        for name, meters, axis in (
            ("chunk_borders", self._time, "frames"),
            ("tile_borders", self._space, "rows and columns"),
        ):
            restored, original = (meter.means() for meter in meters)
            if "near" in restored:
                measure = f"mean |second difference| over {axis}, 8-bit levels"
                found[name] = {"measure": measure, **restored}
                found[name] |= {f"{place}_original": value for place, value in original.items()}
        return found


def _compression(scores: Mapping[str, Any]) -> str:
    """A sentence with the compression: RGB values per value that is kept."""
    latent = f"compression {scores['values_per_latent_value']:.0f} to 1"
    if not scores["content_frames"]:
        return latent
    return (
        f"{latent} in the latent alone, {scores['values_per_kept_value']:.1f} to 1 with the "
        f"{scores['content_frames']} content frames that are kept beside it"
    )
