"""What training logs: numbers in ``metrics.jsonl``, numbers and pictures for TensorBoard.

``make_writers`` returns a writer with the interface of ``clu.metric_writers``, without needing
TensorFlow; ``read_metrics`` reads the numbers back.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import math
import os
import sys
import time
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from PIL import Image

from vidlatent.errors import VidlatentError
from vidlatent.files import dump_json, parse_json
from vidlatent.paths import Mirror, as_path

__all__ = [
    "Histogram",
    "JsonlWriter",
    "MetricWriter",
    "TensorBoardWriter",
    "describe_curves",
    "make_writers",
    "read_metrics",
]

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"
_GIF_MILLISECONDS = 120  # of a frame; GIF counts in hundredths of a second
_GIF_SIDE = 512  # pixels: videos with a longer side are reduced by a whole factor


def _import_clu() -> types.ModuleType:
    """Import ``clu.metric_writers``, also where TensorFlow is not installed.

    The package imports its own writer of TensorFlow events. Without TensorFlow that would fail, so
    an empty module is put in its place first.
    """
    name = "clu.metric_writers.summary_writer"
    if name not in sys.modules and importlib.util.find_spec("tensorflow") is None:
        stand_in = types.ModuleType(name, "Stands in for clu's TensorFlow event writer.")
        stand_in.SummaryWriter = None  # type: ignore[attr-defined]
        sys.modules[name] = stand_in
    return importlib.import_module("clu.metric_writers")


_clu = _import_clu()


class Histogram(NamedTuple):
    """Counted values.

    Attributes:
      edges: of the buckets, ``[n + 1]``, rising from the least to the largest value.
      counts: of values in each, ``[n]``.
      total, squares: sum of the values, and of their squares.
    """

    edges: np.ndarray
    counts: np.ndarray
    total: float
    squares: float


class MetricWriter(_clu.MetricWriter):
    """clu's interface, every method of which does nothing; a back end overrides what it can write.

    clu asks for all of them: its helpers (progress reports, say) may call any.
    """

    def write_summaries(
        self, step: int, values: Mapping[str, Any], metadata: Mapping[str, Any] | None = None
    ) -> None:
        """Raw summaries of TensorBoard plugins."""

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Numbers, or arrays of one element, by name."""

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        """``[H, W, C]`` or ``[N, H, W, C]``, C 1 or 3; uint8, or floats in [0, 1] as clu has it."""

    def write_videos(self, step: int, videos: Mapping[str, Any]) -> None:
        """``[T, H, W, C]`` or ``[N, T, H, W, C]``."""

    def write_audios(self, step: int, audios: Mapping[str, Any], *, sample_rate: int) -> None:
        """Sound."""

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Texts by name."""

    def write_histograms(
        self,
        step: int,
        arrays: Mapping[str, Any],
        num_buckets: Mapping[str, int] | None = None,
    ) -> None:
        """How the values of arrays are distributed; a ``Histogram`` is counted already."""

    def write_pointcloud(self, step: int, point_clouds: Mapping[str, Any], **kwargs: Any) -> None:
        """Point clouds."""

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Settings of the run."""

    def flush(self) -> None:
        """Hand everything written so far to the operating system."""

    def close(self) -> None:
        """Flush, and close the files."""


def _to_float(value: Any) -> float:
    return float(np.asarray(value).reshape(()))


def _to_pictures(images: Any) -> np.ndarray:
    """uint8 ``[N, H, W, 3]`` of what ``write_images`` takes."""
    images = np.asarray(images)
    if images.dtype != np.uint8:
        unit = np.nan_to_num(images.astype(np.float32))
        images = np.rint(np.clip(unit, 0.0, 1.0) * 255).astype(np.uint8)
    if images.ndim == 3:
        images = images[None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise VidlatentError(f"pictures for the metric writers cannot have shape {images.shape}.")
    return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images


class JsonlWriter(MetricWriter):
    """Appends one line of JSON for each ``write_scalars``: step, wall time and the numbers.

    Numbers that are not finite are written as null, because JSON has none. After a resume a step
    may appear twice; the later line counts (see ``read_metrics``). An unfinished last line, left by
    a process that was killed, is removed when the file is opened.
    """

    def __init__(self, path: str | os.PathLike[str]):
        try:
            as_path(path).parent.mkdir(parents=True, exist_ok=True)
            self._mirror = Mirror(path)
            self.path = self._mirror.local
            self._drop_unfinished_line()
            self._file = open(self.path, "a", encoding="utf-8")
        except OSError as error:
            raise VidlatentError(f"cannot write the metrics file {path}: {error}") from error

    def _drop_unfinished_line(self) -> None:
        if self.path.exists():
            with open(self.path, "rb+") as file:
                end = file.seek(0, os.SEEK_END)
                # The last 64 KiB are enough to find the last line break; lines are far shorter.
                tail = min(end, 1 << 16)
                file.seek(end - tail)
                file.truncate(end - tail + file.read(tail).rfind(b"\n") + 1)

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        values = {name: _to_float(value) for name, value in scalars.items()}
        finite = {name: v if math.isfinite(v) else None for name, v in values.items()}
        row = {"step": int(step), "time": round(time.time(), 3), **finite}
        line = dump_json(row)
        try:
            self._file.write(line + "\n")
            # At once, so that a run that is killed has lost no line.
            self._file.flush()
        except OSError as error:
            raise VidlatentError(f"cannot write the metrics file {self.path}: {error}") from error

    def flush(self) -> None:
        if not self._file.closed:
            self._file.flush()

    def close(self) -> None:
        self._file.close()
        self._mirror.close()


def read_metrics(path: str | os.PathLike[str]) -> dict[str, tuple[list[int], list[float]]]:
    """Curves ``name → (steps, values)`` from a metrics file, in order of steps.

    If a step was written twice, the last line counts. An unfinished last line is skipped, and null
    becomes NaN. Damaged lines, as a power cut leaves them, are left out with a warning. A file that
    does not exist has no curves.
    """
    points: dict[str, dict[int, float]] = {}
    file = as_path(path)
    damaged = 0
    for line in file.read_bytes().split(b"\n")[:-1] if file.exists() else ():
        # A line without its end is one that a killed process did not finish.
        try:
            if line.strip():
                step, values = _read_line(line)
                for name, value in values.items():
                    points.setdefault(name, {})[step] = value
        except ValueError:
            damaged += 1
    if damaged:
        logging.warning("%d damaged lines of %s are left out", damaged, file)
    ordered = {name: sorted(values.items()) for name, values in points.items()}
    return {name: ([s for s, _ in v], [x for _, x in v]) for name, v in ordered.items()}


def _read_line(line: bytes) -> tuple[int, dict[str, float]]:
    row = parse_json(line)
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        raise ValueError("no row of metrics")
    row.pop("time", None)
    step = row.pop("step")
    if any(type(value) not in (int, float, type(None)) for value in row.values()):
        raise ValueError("no numbers")
    return step, {k: math.nan if v is None else v for k, v in row.items()}


class TensorBoardWriter(MetricWriter):
    """Event files for TensorBoard through tensorboardX."""

    def __init__(self, folder: str | os.PathLike[str]):
        from tensorboardX import SummaryWriter

        try:
            as_path(folder).mkdir(parents=True, exist_ok=True)
            self._mirror = Mirror(folder, folder=True)
            self._writer = SummaryWriter(os.fspath(self._mirror.local), flush_secs=30)
        except OSError as error:
            raise VidlatentError(f"cannot write event files in {folder}: {error}") from error

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, _to_float(value), step)

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        for name, batch in images.items():
            for tag, picture in _number(name, _to_pictures(batch)):
                buffer = io.BytesIO()
                Image.fromarray(picture).save(buffer, format="PNG")
                self._add_encoded(tag, buffer.getvalue(), picture.shape[:2], step)

    def write_videos(self, step: int, videos: Mapping[str, Any]) -> None:
        # TensorBoard has no kind for videos: an animated GIF among the pictures plays.
        for name, batch in videos.items():
            batch = np.asarray(batch)
            for tag, video in _number(name, batch[None] if batch.ndim == 4 else batch):
                frames = [Image.fromarray(frame) for frame in _to_pictures(video)]
                if (times := -(-max(frames[0].size) // _GIF_SIDE)) > 1:
                    frames = [frame.reduce(times) for frame in frames]
                first, *others = frames
                buffer = io.BytesIO()
                first.save(
                    buffer,
                    format="GIF",
                    save_all=True,
                    append_images=others,
                    duration=_GIF_MILLISECONDS,
                    loop=0,
                )
                self._add_encoded(tag, buffer.getvalue(), first.size[::-1], step)

    def write_histograms(
        self,
        step: int,
        arrays: Mapping[str, Any],
        num_buckets: Mapping[str, int] | None = None,
    ) -> None:
        for name, values in arrays.items():
            if not isinstance(values, Histogram):
                x = np.asarray(values, np.float64).ravel()
                counts, edges = np.histogram(x, (num_buckets or {}).get(name, 40))
                values = Histogram(edges, counts, x.sum(), np.square(x).sum())
            edges, counts, total, squares = values
            if np.isfinite(edges).all():  # others have no buckets
                self._writer.add_histogram_raw(
                    name,
                    *(float(edges[0]), float(edges[-1]), float(np.sum(counts))),
                    *(float(total), float(squares)),
                    *(np.asarray(edges[1:]).tolist(), np.asarray(counts).tolist()),
                    step,
                )

    def _add_encoded(self, tag: str, data: bytes, size: Sequence[int], step: int) -> None:
        from tensorboardX.proto.summary_pb2 import Summary

        # Colour space 3 is RGB in TensorBoard's format.
        image = Summary.Image(
            height=size[0], width=size[1], colorspace=3, encoded_image_string=data
        )
        summary = Summary(value=[Summary.Value(tag=tag, image=image)])
        self._writer.file_writer.add_summary(summary, step)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
        self._mirror.close()


def _number(name: str, batch: np.ndarray) -> list[tuple[str, np.ndarray]]:
    single = len(batch) == 1
    return [(name if single else f"{name}/{i}", item) for i, item in enumerate(batch)]


def make_writers(workdir: str | os.PathLike[str], *, tensorboard: bool) -> Any:
    """The writers of a run as a ``clu.metric_writers.MultiWriter``.

    On processes other than 0 the result has the same methods and writes nothing.

    Raises:
      VidlatentError: the folder cannot be written.
    """
    if jax.process_index() != 0:
        return _clu.MultiWriter([])
    folder = as_path(workdir)
    writers: list[MetricWriter] = [JsonlWriter(folder / METRICS_FILE)]
    if tensorboard:
        writers.append(TensorBoardWriter(folder / TENSORBOARD_FOLDER))
    return _clu.MultiWriter(writers)


def describe_curves(workdir: Path, tensorboard: bool) -> str:
    """One line for the end of a run: where its numbers over time are."""
    text = f"every number over time: {workdir / METRICS_FILE}"
    if tensorboard:
        text += f", and tensorboard --logdir={workdir / TENSORBOARD_FOLDER} (pip install it)"
    return text
