"""``data.source = 'folder'``: video and picture files in a folder, or those that a list names."""

from __future__ import annotations

import os

from vidlatent.data.options import DataOptions
from vidlatent.data.sources.base import Entry, MediaSource
from vidlatent.data.text.captions import read_caption, read_table
from vidlatent.errors import VidlatentError
from vidlatent.media.errors import ClipError, Limits
from vidlatent.media.probe import ClipInfo
from vidlatent.paths import absolute, as_path, is_remote, list_files, local_copy

__all__ = ["FolderSource", "ListSource", "make"]


# Side files that data sets keep beside their clips: skipped, not reported as broken videos.
_SIDECARS = frozenset(
    ".txt .md .rst .json .jsonl .csv .tsv .yaml .yml .toml .xml .html .srt .vtt .ass .sub .nfo "
    ".log .py .sh .ipynb .npy .npz .pkl .pt .pth .safetensors .parquet .zip .tar .gz .tgz .7z "
    ".sha256 .md5 .pdf .tfrecord .array_record".split()
)


class FolderSource(MediaSource):
    """Every file below a folder, links followed, except hidden ones and known side files.

    Files whose names differ only in the suffix (``a.mp4``, ``a.webm``) are taken for the same
    content, so both are trained on or both held out. Captions are read from a text file beside the
    clip (``a.txt``) or from the folder's ``captions.jsonl`` (``text.captions.read_table``).

    Args:
      path: the folder.
      labels: 'folders' makes the first folder in a clip's name its class; '' takes classes from
        ``captions.jsonl`` only.

    Raises:
      VidlatentError: there is no such folder.
    """

    def __init__(self, path: str, labels: str = ""):
        if not path:
            raise VidlatentError("data.path is empty: give the folder that holds the clips.")
        self.root = absolute(path)
        if not as_path(self.root).is_dir():
            raise VidlatentError(f"data.path = {path!r} is no folder and no list of files.")
        self.where = self.root
        self._by_folder = labels == "folders"
        self._misnamed: set[str] = set()
        self._table: dict[str, tuple[str, str]] | None = None

    def entries(self) -> list[Entry]:
        self._table = self._read_captions()
        found, seen = [], set()
        for folder, folders, files in os.walk(self.root, followlinks=True):
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:  # links can form loops
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            # Changed in place, because os.walk goes on with this very list.
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(files):
                suffix = os.path.splitext(name)[1].lower()
                if not name.startswith(".") and suffix not in _SIDECARS:
                    found.append(self._make_entry(os.path.join(folder, name)))
        # File systems list names in different orders, and training depends on the order of clips.
        return sorted(found, key=lambda entry: entry.name)

    def _make_entry(self, path: str) -> Entry:
        name = os.path.relpath(path, self.root).replace(os.sep, "/")
        # Python holds the bytes of a name that is no UTF-8 as characters that cannot be written.
        readable = os.fsencode(name).decode("utf-8", "backslashreplace")
        if readable != name:
            self._misnamed.add(readable)
            return Entry(readable, os.path.splitext(readable)[0], ())
        try:
            status = os.stat(path)
            stamp: tuple[int, ...] = (status.st_size, status.st_mtime_ns)
        except OSError:  # a broken link: ``probe`` reports it
            stamp = ()
        return Entry(name, os.path.splitext(name)[0], stamp)

    def media(self, name: str) -> str:
        return os.path.join(self.root, name)

    def probe(self, name: str, limits: Limits) -> ClipInfo:
        if name in self._misnamed:
            raise ClipError("unreadable", "the file's name is no UTF-8: rename it")
        return super().probe(name, limits)

    def describe(self, name: str) -> tuple[str, str]:
        if self._table is None:
            self._table = self._read_captions()
        label, caption = self._table.get(name, ("", ""))
        first, slash, _ = name.partition("/")
        # A label in captions.jsonl goes before the folder's name.
        if self._by_folder and slash and not label:
            label = first
        if caption:
            return label, caption
        try:
            return label, self._read_beside(os.path.splitext(name)[0] + ".txt")
        except (OSError, VidlatentError) as error:
            # One odd text does not end a run: its clip is left out.
            raise ClipError("caption", str(error)[:300]) from error

    def _read_beside(self, name: str) -> str:
        return read_caption(os.path.join(self.root, name))

    def _read_captions(self) -> dict[str, tuple[str, str]]:
        table = os.path.join(self.root, "captions.jsonl")
        return read_table(table) if as_path(table).is_file() else {}


class BucketSource(FolderSource):
    """The clips below an address of an object store, ``gs://bucket/clips``.

    The store is asked once for the names, sizes and times of all objects. A clip is downloaded when
    it is read, and kept as ``paths.local_copy`` says.
    """

    def entries(self) -> list[Entry]:
        self._table = self._read_captions()
        self._objects = list_files(self.root)
        found = []
        for name, stamp in self._objects.items():
            hidden = any(part.startswith(".") for part in name.split("/"))
            if not hidden and os.path.splitext(name)[1].lower() not in _SIDECARS:
                found.append(Entry(name, os.path.splitext(name)[0], stamp))
        return sorted(found, key=lambda entry: entry.name)

    def media(self, name: str) -> str:
        try:
            return local_copy(os.path.join(self.root, name))
        except OSError as error:
            raise ClipError("unreadable", " ".join(str(error).split())[:160]) from error

    def _read_beside(self, name: str) -> str:
        # Only where the listing shows one: a question for each clip would take longer than all.
        return super()._read_beside(name) if name in self._objects else ""


class ListSource(FolderSource):
    """The files that a list names, wherever they are (``text.captions.read_table`` says how)."""

    def __init__(self, path: str, labels: str = ""):
        self.list = absolute(path)
        super().__init__(os.path.dirname(self.list), labels)
        self.where = self.list

    def _read_captions(self) -> dict[str, tuple[str, str]]:
        return read_table(self.list)

    def entries(self) -> list[Entry]:
        self._table = self._read_captions()
        return [self._make_entry(self.media(name)) for name in sorted(self._table)]


class BucketListSource(ListSource, BucketSource):
    """A list in an object store, and the clips there that it names."""

    def entries(self) -> list[Entry]:
        self._table = self._read_captions()
        self._objects = list_files(self.root)
        # A clip that is named but not there: ``probe`` reports it.
        names = sorted(self._table)
        return [Entry(n, os.path.splitext(n)[0], self._objects.get(n, ())) for n in names]


def make(options: DataOptions, seed: int) -> FolderSource:
    """The source of ``data.path``, which may be a folder or a file that lists clips."""
    del seed
    path = options.path
    listed = bool(path) and as_path(absolute(path)).is_file()
    if is_remote(path):
        return (BucketListSource if listed else BucketSource)(path, options.labels)
    return (ListSource if listed else FolderSource)(path, options.labels)
