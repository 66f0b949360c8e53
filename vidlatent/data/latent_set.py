"""Latent data sets: clips that a tokenizer encoded once, read without decoding a video.

A set is a folder. ``header.json`` says what the latents are (``Header``).
``part-00000-of-00004.array_record`` holds one record for each window, and
``part-00000-of-00004.json`` one row for each, in the same order. A record is laid out like a
safetensors file, so that any reader of those can open it; its metadata ``window`` is the row.
``data.sources.latents`` reads sets, ``encode`` writes them. Arrays of a record:

    latent   [t, h, w, c]       float16, bfloat16 or float32, not standardised
    content  uint8 [n, H, W, 3] content frames, if the decoder reads any
    text     [N, D]             states of a text encoder, without those of padding
    image    [I, D]             tokens of an image encoder
    content_latent  [h, w, c]   of the content frame, by an image autoencoder
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from vidlatent.data.set_checks import find_header_fault, find_window_fault
from vidlatent.errors import VidlatentError
from vidlatent.files import dump_json, parse_json, read_json
from vidlatent.paths import absolute, as_path, size_of
from vidlatent.spec import LatentSpec

__all__ = ["Header", "Shard", "Window", "pack", "read_header", "unpack"]

FORMAT = 1
_REMEDY = "encode the videos again"
HEADER = "header.json"
PLAN = "plan.json"  # in an unfinished set: what it will hold
NULL_TEXT = "null_text.npy"  # states [n, D] float32 of the empty text
# Names of the safetensors format.
_DTYPES = {
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
    "U8": np.dtype(np.uint8),
    "I32": np.dtype(np.int32),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclasses.dataclass(frozen=True)
class Window:
    """One record's row.

    Attributes:
      clip: its name in the source that was encoded; ``group`` and ``part`` as of ``sources.Entry``.
      first: number of the source frame that the window begins with; ``start``: its time in seconds.
      frames, height, width: of the window in pixels, as a bucket has them.
      fps: of its frames; 0 for a picture.
      draw: number of the sample drawn from the posterior; 0 for its mean.
      flip: frames were mirrored left to right before they were encoded.
      label, caption: '' for none.
    """

    clip: str
    first: int
    start: float
    frames: int
    height: int
    width: int
    fps: float
    draw: int = 0
    label: str = ""
    caption: str = ""
    group: str = ""
    part: str = ""
    flip: bool = False

    @property
    def size(self) -> tuple[int, int, int]:
        return self.frames, self.height, self.width

    @property
    def name(self) -> str:
        """Unique in the set."""
        tail = ":flip" if self.flip else ""
        tail += f":{self.draw}" if self.draw else ""
        return f"{self.clip}:{self.first}:{self.frames}x{self.height}x{self.width}{tail}"


@dataclasses.dataclass(frozen=True)
class Header:
    """What a set holds.

    Attributes:
      spec: what the latents are.
      mean, std: of each channel over all stored latents, float64 ``[c]``.
      n: number of values that each channel's mean and standard deviation are taken over.
      windows, clips: how many of each.
      dtype: that latents are stored in.
      rounding: ``max`` and ``rms`` of the absolute error of storing them in that dtype.
      sizes: one mapping for each ``(frames, height, width)`` stored: these, ``windows``, and
        ``arrays``, name -> ``dtype`` and ``shape`` as a loader delivers it.
      label_names: of the classes in their order.
      fps: of all windows; 0 where they differ.
      tokenizer: hash of the config that the tokenizer was trained with; ``step`` its checkpoint,
        ``weights`` a digest of its parameters.
      encoder: digest of what encodes; '' in sets of older versions.
      cut: the rule by which large frames were cut, where that changes the latents; '' for none,
        None in sets of older versions.
      moments: what generators normalise by: the tokenizer's measured means and deviations, as
        ``latents.statistics.Statistics`` writes them; empty in sets of older versions.
      shards: files.
      source: what was encoded and how, for people.
      bad: clips left out, ``(name, reason, detail)``.
    """

    spec: LatentSpec
    mean: np.ndarray
    std: np.ndarray
    n: int
    windows: int
    clips: int
    dtype: str
    rounding: Mapping[str, float]
    sizes: Sequence[Mapping[str, Any]]
    label_names: tuple[str, ...]
    fps: float
    tokenizer: str
    step: int
    weights: str
    shards: tuple[str, ...]
    source: Mapping[str, Any]
    bad: Sequence[tuple[str, str, str]] = ()
    encoder: str = ""
    cut: str | None = None
    moments: Sequence[Mapping[str, Any]] = ()

    def check(self, spec: LatentSpec, where: str = "this latent data set") -> None:
        """Raise ``VidlatentError`` unless the latents are those of ``spec``.

        Which weights encoded them is compared by ``latents.contract.require_same``.
        """
        if self.spec.hash != spec.hash:
            raise VidlatentError(
                f"{where} was made by {_card(self.spec)}, not by {_card(spec)}: take the tokenizer "
                "that encoded it, or encode the videos again."
            )

    def to_json(self) -> dict[str, Any]:
        fields = {**vars(self), "mean": self.mean.tolist(), "std": self.std.tolist()}
        return {
            "format": FORMAT,
            **fields,
            "spec": self.spec.to_json(),
            "spec_hash": self.spec.hash,
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any], where: str) -> Header:
        """What ``to_json`` made.

        Raises:
          VidlatentError: it is something else, of another version, or was changed since.
        """
        fields = dict(stored)
        try:
            form, known = fields.pop("format"), fields.pop("spec_hash")
            spec = LatentSpec.from_json(fields.pop("spec"))
            arrays = {name: np.asarray(fields.pop(name), np.float64) for name in ("mean", "std")}
            tuples = {name: tuple(fields.pop(name)) for name in ("label_names", "shards")}
            header = cls(spec=spec, **arrays, **tuples, **fields)
        except (KeyError, TypeError, ValueError, VidlatentError) as error:
            raise VidlatentError(
                f"{where} is no header of a latent data set ({error}): encode the videos again."
            ) from error
        if form != FORMAT or spec.hash != known:
            raise VidlatentError(
                f"{where} is stale: its latent specification does not have the hash stored with "
                "it, so another version wrote it or it was changed; encode the videos again."
            )
        if fault := find_header_fault(header):
            raise VidlatentError(f"{where} is damaged, it has {fault}: encode the videos again.")
        return header


def _card(spec: LatentSpec) -> str:
    scaled = f", scale {spec.scale:g}" if spec.scale != 1 else ""
    return (
        f"{spec.name} ({spec.channels} channels, {spec.t}x{spec.h}x{spec.w}, {spec.rule} frames"
        f"{scaled}, hash {spec.hash[:8]})"
    )


def read_header(path: str | os.PathLike[str]) -> Header:
    """The header of the set in the folder ``path``.

    Raises:
      VidlatentError: there is none, it is not finished, or its header is damaged or stale.
    """
    folder = absolute(path)
    file = os.path.join(folder, HEADER)
    if not as_path(file).is_file():
        if as_path(folder, PLAN).is_file():
            raise VidlatentError(
                f"the latent data set {folder} is not finished: run --mode=encode again, it goes "
                "on where it was."
            )
        raise VidlatentError(
            f"data.path = {os.fspath(path)!r} holds no latent data set (no {HEADER}): make one by "
            "--mode=encode."
        )
    return Header.from_json(read_json(file, _REMEDY), file)


@dataclasses.dataclass(frozen=True)
class Shard:
    """What lies beside a finished file of records.

    Attributes:
      windows: of its records, in their order.
      bytes: of the file.
      moments: ``n``, and ``mean`` and ``apart`` ``[c]`` (summed squared distances from it).
      rounding: ``max``, and ``squares``, the sum of squared errors.
      arrays: by size ``'frames x height x width'``: name -> dtype and longest shape.
      bad: clips met while it was written, ``(name, reason, detail)``.
    """

    windows: tuple[Window, ...]
    bytes: int
    moments: Mapping[str, Any]
    rounding: Mapping[str, float]
    arrays: Mapping[str, Mapping[str, Any]]
    bad: tuple[tuple[str, str, str], ...] = ()

    def to_json(self) -> dict[str, Any]:
        rows = [row_of(window) for window in self.windows]
        return {"format": FORMAT, **vars(self), "windows": rows}

    @classmethod
    def load(cls, records: str) -> Shard:
        """Of the file of records ``records``.

        Raises:
          VidlatentError: the two do not belong together, or one of them is damaged.
        """
        stored = read_json(os.path.splitext(records)[0] + ".json", _REMEDY)
        try:
            rows = tuple(Window(**row) for row in stored.pop("windows"))
            bad = tuple(tuple(row) for row in stored.pop("bad"))
            stored.pop("format")
            shard = cls(windows=rows, bad=bad, **stored)
            if fault := next(filter(None, map(find_window_fault, rows)), ""):
                raise ValueError(f"a window has {fault}")
        except (KeyError, TypeError, ValueError) as error:
            raise VidlatentError(
                f"the rows beside {records} are damaged ({error}): encode the videos again."
            ) from error
        # The size tells a file that was cut off without reading all of it.
        if size_of(records) != shard.bytes:
            raise VidlatentError(
                f"{records} is missing or was cut off: delete it and run --mode=encode again, it "
                "makes what is missing."
            )
        return shard


def row_of(window: Window) -> dict[str, Any]:
    """The fields of a window that are not at their defaults."""
    fields = {field.name: field.default for field in dataclasses.fields(window)}
    return {name: value for name, value in vars(window).items() if value != fields[name]}


def pack(arrays: Mapping[str, np.ndarray], window: Window) -> bytes:
    """A record; the same bytes for the same content."""
    table: dict[str, Any] = {"__metadata__": {"window": dump_json(row_of(window))}}
    blobs, end = [], 0
    # Sorted, so that the order of the mapping leaves no trace in the bytes.
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        blobs.append(array.tobytes())
        begin, end = end, end + array.nbytes
        # `ascontiguousarray` gives scalars an axis, so the shape is that of the original.
        about = {"dtype": _NAMES[array.dtype], "shape": list(arrays[name].shape)}
        table[name] = {**about, "data_offsets": [begin, end]}
    head = dump_json(table, separators=(",", ":")).encode()
    # Spaces, which the format allows, so that the arrays begin at a multiple of 8 bytes.
    head += b" " * (-len(head) % 8)
    return b"".join([len(head).to_bytes(8, "little"), head, *blobs])


def unpack(record: bytes) -> tuple[dict[str, np.ndarray], Window]:
    """What ``pack`` was given; the arrays are read-only views.

    Raises:
      ValueError: it is no such record.
    """
    try:
        # 8 bytes with the length of the head, the head as JSON, the arrays.
        begin = 8 + int.from_bytes(record[:8], "little")
        table = parse_json(record[8:begin])
        window = Window(**parse_json(table.pop("__metadata__")["window"]))
        if fault := find_window_fault(window):
            raise ValueError(f"its window has {fault}")
        arrays = {}
        for name, about in table.items():
            start, end = about["data_offsets"]
            if not 0 <= start <= end <= len(record) - begin or min(about["shape"], default=0) < 0:
                raise ValueError(f"{name} lies outside the record")
            flat = np.frombuffer(record[begin + start : begin + end], _DTYPES[about["dtype"]])
            arrays[name] = flat.reshape(about["shape"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no record of a latent data set: {error}") from error
    return arrays, window
