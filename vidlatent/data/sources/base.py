"""What a source of clips is, and the table of those that ``data.source`` can name.

This module imports nothing but ``media``: ``data.options`` looks into ``SOURCES`` to check a
config, and decoding processes import it when they start.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import TYPE_CHECKING, Protocol

import numpy as np

from vidlatent.media import decode, probe
from vidlatent.media.decoders import Decoders
from vidlatent.media.errors import Limits
from vidlatent.media.pictures import AREA
from vidlatent.media.probe import ClipInfo
from vidlatent.media.transforms import Crop
from vidlatent.registry import Registry

if TYPE_CHECKING:
    from vidlatent.data.options import DataOptions

__all__ = ["SOURCES", "Entry", "MediaSource", "Source", "make_source"]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One clip that a source lists, before anybody looked inside.

    Attributes:
      name: unique in the source; a folder's is the path relative to it.
      group: clips with the same content share it, so that they are never split between training
        and validation.
      stamp: integers that change when the clip does (size and time of change of a file). What was
        found in a clip is kept in ``data.index_cache`` for as long as they stay the same.
      part: 'train' or 'validation' where the source decides; '' leaves it to
        ``data.validation_share``.
    """

    name: str
    group: str
    stamp: tuple[int, ...]
    part: str = ""


class Source(Protocol):
    """What the loader asks of a source of clips.

    A source must be picklable, because each decoding process (``data.num_workers``) gets a copy:
    leave open files and locks out of ``__getstate__``. Its methods are called from several threads
    at once, and a process that unpickles it imports the module of its class.

    A clip that cannot be used raises ``media.errors.ClipError`` with the reason, from ``probe``,
    ``verify``, ``describe`` or a read: it is left out, counted and listed. Any other exception of
    these counts as the reason 'unreadable', so that one odd clip does not end a run. Wrong options
    raise ``VidlatentError`` when the source is made.

    Attributes:
      where: names the source in messages, such as the path of a folder.
      cacheable: decoding costs enough that a small data set is decoded once and kept in memory
        (``data.memory_mb``). Only then is ``read_all`` called.
    """

    where: str
    cacheable: bool

    def entries(self) -> list[Entry]:
        """All clips, in an order that does not change from call to call."""
        ...

    def probe(self, name: str, limits: Limits) -> ClipInfo:
        """Size, frames and rate of the clip ``name``; the result's ``path`` is that name."""
        ...

    def verify(self, name: str, limits: Limits) -> ClipInfo | None:
        """Decode the whole clip, to know that every frame of it can be read.

        Returns what it found where that differs from ``probe``; else None.
        """
        ...

    def labels(self) -> tuple[str, ...]:
        """Names of the classes in order; () takes the sorted labels that the clips have."""
        ...

    def describe(self, name: str) -> tuple[str, str]:
        """(label, caption) of a clip, each '' if there is none."""
        ...

    def read(
        self,
        info: ClipInfo,
        start: float,
        count: int,
        fps: float,
        size: tuple[int, int] | None,
        crop: Crop,
        limits: Limits,
    ) -> np.ndarray:
        """A window, uint8 [count, height, width, 3], as ``media.decode.read_window`` reads it.

        Args:
          info: what ``probe`` said of the clip.
          start: seconds after the first frame.
          count: frames wanted; a picture is repeated.
          fps: of the window; 0 takes the clip's own.
          size: (height, width) to scale to and cut out; None keeps the clip's.
          crop: where to cut, see ``media.transforms.place``.
          limits: frame size and seconds allowed.
        """
        ...

    def read_all(
        self, info: ClipInfo, size: tuple[int, int], limits: Limits
    ) -> tuple[np.ndarray, np.ndarray]:
        """Time stamps float64 [N] in seconds, and all frames uint8 [N, h, w, 3].

        The frames are scaled to cover ``size`` (height, width), not cut.
        """
        ...


class MediaSource(abc.ABC):
    """A source whose entries are encoded files, or the bytes of one: it only has to find them.

    A subclass writes ``entries`` and ``media``, and sets ``where``.

    Attributes:
      decoders: decoders to leave open between windows; set by a reader that goes through the clips
        in order.
      resize: how frames are brought to a size, see ``media.pictures``; set by ``make_source``.
    """

    where: str
    cacheable = True
    decoders: Decoders | None = None
    resize: str = AREA

    @abc.abstractmethod
    def entries(self) -> list[Entry]:
        """See ``Source.entries``."""

    @abc.abstractmethod
    def media(self, name: str) -> str | bytes:
        """Path or bytes of an entry."""

    def probe(self, name: str, limits: Limits) -> ClipInfo:
        # By its name in the source: where the file lies on this machine must not matter.
        return dataclasses.replace(probe.probe(self.media(name), limits), path=name)

    def verify(self, name: str, limits: Limits) -> ClipInfo | None:
        found = probe.verify(self.media(name), limits)
        return None if found is None else dataclasses.replace(found, path=name)

    def labels(self) -> tuple[str, ...]:
        return ()

    def describe(self, name: str) -> tuple[str, str]:
        del name
        return "", ""

    def read(self, info, start, count, fps, size, crop, limits):
        keys = size, crop, limits, self.decoders, self.resize, info
        return decode.read_window(self.media(info.path), start, count, fps, *keys)

    def read_all(self, info, size, limits):
        return decode.read_all(self.media(info.path), size, limits, self.resize, info)


# The one list of what ``data.source`` may say: name -> function of (DataOptions, seed) that makes
# the source. ``seed`` matters to sources that draw their clips.
SOURCES = Registry("data.source")
# Registered as text, so that a source is imported only where it is used.
for _name in ("folder", "samples", "tfds", "synthetic", "latents", "pairs", "prompts"):
    SOURCES.register(_name, f"vidlatent.data.sources.{_name}:make")


def make_source(options: DataOptions, seed: int) -> Source:
    """The source that ``data.source`` names.

    Raises:
      VidlatentError: an unknown name, or options that the source cannot work with.
    """
    source = SOURCES.get(options.source)(options, seed)
    if isinstance(source, MediaSource):
        source.resize = options.resize
    return source
