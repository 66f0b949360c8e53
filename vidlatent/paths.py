"""Paths of files, in a local folder or in an object store (``gs://bucket/run``, ``s3://``).

``as_path`` gives a path that is used the same way in both cases. Three things that object stores
cannot do have a function of their own: libraries that read local files alone get ``local_copy``,
those that write them ``local_file``, and a file that grows is a ``Mirror``.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import logging

from vidlatent.errors import VidlatentError

__all__ = [
    "Mirror",
    "absolute",
    "as_path",
    "cache_root",
    "is_remote",
    "list_files",
    "local_copy",
    "local_file",
    "local_folder",
    "move_file",
    "same_place",
    "size_of",
]

# Schemes that etils.epath knows, and the extra with the library that each needs.
_EXTRAS = {"gs": "gcs", "s3": "s3"}
_TIMES = ("mtime", "updated", "LastModified", "last_modified", "created")  # by library
_SYNC_S = 30.0  # between uploads of a file that grows
_DOWNLOADS_GIB = 32.0  # $VIDLATENT_DOWNLOADS_GIB


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` names an object in a store: it has a scheme, ``gs://``."""
    return "://" in os.fspath(path)


def as_path(path: str | os.PathLike[str], *parts: str) -> Path:
    """The path of a local file, or of an object in a store, with ``pathlib``'s methods.

    Args:
      path: of the file or folder.
      parts: names to go on with, as of ``Path.joinpath``.

    Raises:
      VidlatentError: a scheme that is not known, or whose library is not installed.
    """
    text = os.fspath(path)
    if not is_remote(text):
        return Path(text, *parts)
    # Imported late: local runs need neither.
    import fsspec
    from etils import epath

    scheme = text.partition("://")[0]
    if scheme not in _EXTRAS:
        known = ", ".join(f"{name}://" for name in _EXTRAS)
        raise VidlatentError(
            f"{text}: paths that begin with {scheme}:// cannot be read or written; use a local "
            f"folder, or one of {known}."
        )
    # What other processes write is seen at once.
    for name in (scheme, "gcs"):
        fsspec.config.conf.setdefault(name, {}).setdefault("use_listings_cache", False)
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        raise VidlatentError(
            f"{text}: {scheme}:// needs another library: pip install "
            f"'vidlatent[{_EXTRAS[scheme]}]'."
        ) from error
    return epath.Path(text, *parts)  # type: ignore[return-value]  # has the methods of a pathlib.Path


def absolute(path: str | os.PathLike[str]) -> str:
    """The path from the root of its file system, ``~`` resolved; that of an object as it is."""
    text = os.fspath(path)
    return text.rstrip("/") if is_remote(text) else os.path.abspath(os.path.expanduser(text))


def same_place(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    """Whether two paths lead to the same file, links followed."""
    if is_remote(one) or is_remote(other):
        return absolute(one) == absolute(other)
    return Path(one).resolve() == Path(other).resolve()


def cache_root() -> Path:
    """``vidlatent`` in the user's cache folder (``$XDG_CACHE_HOME``)."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "vidlatent"


def local_copy(path: str | os.PathLike[str]) -> str:
    """A local file with the content of ``path``, for libraries that read nothing else.

    A local path is given back as it is. An object is downloaded once and kept in ``cache_root``
    under a name that changes with its size and time of writing; what was not used for longest is
    removed beyond ``$VIDLATENT_DOWNLOADS_GIB`` (32).

    Raises:
      OSError: there is no such object, or no space for it.
    """
    if not is_remote(path):
        return os.fspath(path)
    source, (size, written) = as_path(path), _look_up(path)
    stamp = f"{os.fspath(path)}\0{size}\0{written}"
    place = cache_root() / "downloads" / hashlib.sha256(stamp.encode()).hexdigest()[:24]
    target = place / source.name
    if target.is_file():
        os.utime(target)  # used now
        return str(target)
    place.mkdir(parents=True, exist_ok=True)
    _make_room(place.parent, size)
    part = place / f"{source.name}.{os.getpid()}.{threading.get_ident()}.partial"
    try:
        with source.open("rb") as remote, open(part, "wb") as local:
            shutil.copyfileobj(remote, local, 1 << 22)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return str(target)


def _make_room(folder: Path, size: int) -> None:
    """Remove downloads, the one that was not used for longest first, until ``size`` bytes fit."""
    limit = float(os.environ.get("VIDLATENT_DOWNLOADS_GIB", _DOWNLOADS_GIB)) * 2**30
    files = []
    for file in folder.glob("*/*"):
        with contextlib.suppress(OSError):  # another process removes it, too
            status = file.stat()
            files.append((status.st_mtime, status.st_size, file))
    total = size + sum(bytes_ for _, bytes_, _ in files)
    for _, bytes_, file in sorted(files):
        if total <= limit:
            return
        shutil.rmtree(file.parent, ignore_errors=True)
        total -= bytes_


@contextlib.contextmanager
def local_file(path: str | os.PathLike[str]) -> Iterator[str]:
    """A local name to write ``path`` under; an object is uploaded when the block ends well.

    A local path is given back as it is, and may hold half of the file after an error.
    """
    if not is_remote(path):
        yield os.fspath(path)
        return
    target = as_path(path)
    with tempfile.TemporaryDirectory(prefix="vidlatent-") as folder:
        local = os.path.join(folder, target.name)
        yield local
        _upload(Path(local), target)


@contextlib.contextmanager
def local_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """A local folder to write files in before ``move_file`` moves them into ``folder``.

    It is ``folder`` itself where that is local, so that moving is renaming.
    """
    if not is_remote(folder):
        yield Path(folder)
        return
    with tempfile.TemporaryDirectory(prefix="vidlatent-", ignore_cleanup_errors=True) as place:
        yield Path(place)


def move_file(source: Path, target: Path) -> None:
    """Give a local file its place; it replaces what is there in one step."""
    if is_remote(target):
        _upload(source, target)
        source.unlink()
    else:
        os.replace(source, target)


def list_files(folder: str | os.PathLike[str]) -> dict[str, tuple[int, ...]]:
    """All files below a folder of an object store, with one question to it for every 1,000.

    Returns:
      Name below the folder -> (bytes, microseconds since 1970 at which it was written).
    """
    import fsspec

    system, root = fsspec.core.url_to_fs(os.fspath(folder))
    found = system.find(root, detail=True).items()
    return {path[len(root.rstrip("/")) + 1 :]: _stamp_of(about) for path, about in found}


def _look_up(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Bytes of an object, and a number that changes when it is written."""
    import fsspec

    system, name = fsspec.core.url_to_fs(os.fspath(as_path(path)))
    about = system.info(name)
    if about["type"] == "directory":
        raise IsADirectoryError(f"{os.fspath(path)} is a folder")
    return _stamp_of(about)


def _stamp_of(about: Mapping[str, Any]) -> tuple[int, int]:
    written = next((about[key] for key in _TIMES if about.get(key)), 0)
    if isinstance(written, str):
        written = datetime.datetime.fromisoformat(written)
    if isinstance(written, datetime.datetime):
        written = written.timestamp() * 1e6
    return int(about["size"] or 0), int(written)


def size_of(path: str | os.PathLike[str]) -> int:
    """Bytes of a file; -1 if there is none."""
    try:
        if is_remote(path):
            return _look_up(path)[0]
        return os.path.getsize(path) if os.path.isfile(path) else -1
    except OSError:
        return -1


def _upload(local: Path, target: Path) -> None:
    with local.open("rb") as source, target.open("wb") as remote:
        shutil.copyfileobj(source, remote, 1 << 22)


class Mirror:
    """A file, or a folder of files, that grows, although objects in a store cannot.

    It is written under ``local``, which begins with what the store holds. Every 30 seconds, with
    ``sync`` and when the process ends, files that have changed are uploaded whole. A process that
    is killed loses what it wrote since then. For local paths ``local`` is the path itself.

    Args:
      path: of the file or folder.
      folder: whether it is a folder. What the store holds of it is left there and not read.
    """

    _all: list[Mirror] = []
    _guard = threading.Lock()
    _thread: threading.Thread | None = None

    def __init__(self, path: str | os.PathLike[str], *, folder: bool = False):
        self.path = as_path(path)
        self.local = Path(self.path)
        self._remote, self._folder = is_remote(path), folder
        self._sent: dict[str, tuple[int, int]] = {}
        self._warned = False
        if not self._remote:
            return
        self._kept = tempfile.TemporaryDirectory(prefix="vidlatent-", ignore_cleanup_errors=True)
        self.local = Path(self._kept.name) / self.path.name
        if folder:
            self.local.mkdir()
        elif self.path.exists():
            with self.path.open("rb") as source, self.local.open("wb") as file:
                shutil.copyfileobj(source, file)
        self._watch(self)

    @classmethod
    def _watch(cls, mirror: Mirror) -> None:
        with cls._guard:
            cls._all.append(mirror)
            if cls._thread is None:
                cls._thread = threading.Thread(target=cls._sync_all, daemon=True, name="uploads")
                cls._thread.start()
                atexit.register(cls._sync_once)

    @classmethod
    def _sync_all(cls) -> None:
        pause = threading.Event()
        while not pause.wait(_SYNC_S):
            cls._sync_once()

    @classmethod
    def _sync_once(cls) -> None:
        with cls._guard:
            mirrors = list(cls._all)
        for mirror in mirrors:
            mirror.sync()

    def sync(self) -> None:
        """Upload what has changed. A failure is warned of once, and tried again the next time."""
        if not self._remote:
            return
        with self._guard:
            try:
                for file in self._find_changed():
                    _upload(file, self._target(file))
                    self._warned = False
            except Exception as error:  # libraries of stores raise errors of all kinds
                self._sent.clear()
                if not self._warned:
                    logging.warning("%s is not written now (%s); it is tried again", self, error)
                self._warned = True

    def close(self) -> None:
        """Upload the rest, and forget the local copy."""
        self.sync()
        with self._guard:
            if self in self._all:
                self._all.remove(self)
        if self._remote:
            self._kept.cleanup()

    def _find_changed(self) -> list[Path]:
        files = sorted(self.local.rglob("*")) if self._folder else [self.local]
        changed = []
        for file in files:
            if file.is_file():
                status = file.stat()
                stamp = (status.st_size, status.st_mtime_ns)
                if self._sent.get(str(file)) != stamp:
                    self._sent[str(file)] = stamp
                    changed.append(file)
        return changed

    def _target(self, file: Path) -> Path:
        return self.path / file.relative_to(self.local).as_posix() if self._folder else self.path

    def __str__(self) -> str:
        return os.fspath(self.path)
