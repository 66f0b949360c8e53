"""``data.source = 'folder'``: video and picture files in a folder, or those that a list names."""

from __future__ import annotations

import os

from vidlatent.data.options import DataOptions
from vidlatent.data.sources.base import Entry, MediaSource
from vidlatent.data.text.captions import read_caption, read_table
from vidlatent.errors import VidlatentError
from vidlatent.media.errors import ClipError, Limits
from vidlatent.media.probe import ClipInfo

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
        self.root = os.path.abspath(os.path.expanduser(path))
        if not os.path.isdir(self.root):
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
        beside = os.path.splitext(self.media(name))[0] + ".txt"
        if caption:
            return label, caption
        try:
            return label, read_caption(beside)
        except (OSError, VidlatentError) as error:
            # One odd text does not end a run: its clip is left out.
            raise ClipError("caption", str(error)[:300]) from error

    def _read_captions(self) -> dict[str, tuple[str, str]]:
        table = os.path.join(self.root, "captions.jsonl")
        return read_table(table) if os.path.isfile(table) else {}


class ListSource(FolderSource):
    """The files that a list names, wherever they are (``text.captions.read_table`` says how)."""

    def __init__(self, path: str, labels: str = ""):
        self.list = os.path.abspath(os.path.expanduser(path))
        super().__init__(os.path.dirname(self.list), labels)
        self.where = self.list

    def _read_captions(self) -> dict[str, tuple[str, str]]:
        return read_table(self.list)

    def entries(self) -> list[Entry]:
        self._table = self._read_captions()
        return [self._make_entry(self.media(name)) for name in sorted(self._table)]


def make(options: DataOptions, seed: int) -> FolderSource:
    """The source of ``data.path``, which may be a folder or a file that lists clips."""
    del seed
    listed = os.path.isfile(os.path.expanduser(options.path))
    return (ListSource if listed else FolderSource)(options.path, options.labels)
