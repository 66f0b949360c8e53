"""Frames between decoded ones, made by an interpolator that is no part of this package.

A folder holds them as ``<clip>/<frame>.png``: the clip's name as reports have it, and the number of
the frame in the window, six digits from 0. A run that misses some writes the decoded frames there,
which are what an interpolator starts from.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vidlatent.data.loader import Loader
from vidlatent.errors import VidlatentError
from vidlatent.evaluate.protocols.definitions import Protocol
from vidlatent.media.errors import ClipError
from vidlatent.media.pictures import read_picture
from vidlatent.parallel.multihost import local_rows
from vidlatent.paths import as_path

__all__ = ["BetweenFrames"]


class BetweenFrames:
    """The frames that a protocol with ``keep`` above 1 does not decode.

    Args:
      folder: ``config.eval.interpolated``.
      protocol: the protocol, whose windows all have the same length.

    Raises:
      VidlatentError: no folder is named.
    """

    def __init__(self, folder: str, protocol: Protocol):
        if not folder:
            raise VidlatentError(
                f"config.eval.protocol={protocol.name} decodes every {protocol.keep}th frame and "
                "takes the others from an interpolator: name the folder of its frames, "
                "--config.eval.interpolated=FOLDER (one that is empty gets the decoded frames)."
            )
        self._folder = as_path(folder)
        self._keep, self._size = protocol.keep, protocol.size
        (self._frames,) = protocol.frames

    def find_incomplete(self, clips: Collection[str]) -> dict[str, list[Path]]:
        """Clip -> files that are missing, of the clips that miss any."""
        files = {clip: [self._file(clip, n) for n in self._between] for clip in clips}
        missing = {clip: [f for f in these if not f.is_file()] for clip, these in files.items()}
        return {clip: these for clip, these in missing.items() if these}

    def demand(
        self,
        missing: Mapping[str, list[Path]],
        eval_step: Callable,
        params: Any,
        loader: Loader,
    ) -> None:
        """Write the decoded frames of the clips that miss frames, and raise.

        Args:
          missing: from ``find_incomplete``.
          eval_step: compiled, with ``keep``.
          params: the tokenizer's.
          loader: of those clips alone.

        Raises:
          VidlatentError: always; it names the first missing file and what to do.
        """
        for batch in loader:
            arrays = {name: batch[name] for name in ("video", "mask", "clip", "start")}
            empty = np.zeros_like(arrays["video"])
            decoded = local_rows(eval_step(params, {**arrays, "between": empty})[1])
            for row in np.flatnonzero(arrays["mask"]):
                clip = loader.index[int(arrays["clip"][row])].path
                self._file(clip, 0).parent.mkdir(parents=True, exist_ok=True)
                for n in range(0, self._frames, self._keep):
                    Image.fromarray(decoded[row, n]).save(self._file(clip, n))
        height, width = self._size
        count = sum(map(len, missing.values()))
        raise VidlatentError(
            f"config.eval.interpolated={self._folder} lacks {count} frames of {len(missing)} "
            f"clips, the first {next(iter(missing.values()))[0]}: the decoded frames of these "
            "clips are there now, so interpolate the missing ones beside them, as PNG of "
            f"{height}x{width}, and run this again."
        )

    def attach(self, eval_step: Callable, clips: Mapping[int, str]) -> Callable:
        """``eval_step`` that finds these frames in its batch; ``clips``: number -> name."""

        def step(params, arrays):
            between = np.zeros_like(arrays["video"])
            for row, number in enumerate(np.asarray(arrays["clip"])):
                if number >= 0:
                    for n in self._between:
                        between[row, n] = self._read(self._file(clips[int(number)], n))
            return eval_step(params, {**arrays, "between": between})

        return step

    @property
    def _between(self) -> list[int]:
        return [n for n in range(self._frames) if n % self._keep]

    def _file(self, clip: str, number: int) -> Path:
        return self._folder / clip / f"{number:06d}.png"

    def _read(self, file: Path) -> np.ndarray:
        try:
            image = read_picture(str(file))
        except ClipError as error:
            raise VidlatentError(
                f"{file}: the interpolated frame cannot be read ({error}); write it again."
            ) from error
        if image.shape[:2] != self._size:
            found, wanted = ("x".join(map(str, s)) for s in (image.shape[:2], self._size))
            raise VidlatentError(
                f"{file} has {found} pixels, but the decoded frames have {wanted}: interpolate at "
                "their size."
            )
        return image
