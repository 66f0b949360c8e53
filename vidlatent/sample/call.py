"""Making one video from Python: ``generator(prompt, image=...)``, its arguments and their errors.

What is called is whatever ``load_generator`` returns. A class gets the call by deriving from
``GeneratorCall`` and having requests, latents and frames as ``sample.generator.Generator`` has
them; several networks in a row can be called in the same way.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypedDict, Unpack

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from vidlatent.errors import VidlatentError
from vidlatent.media.sheets import encode_picture
from vidlatent.paths import as_path
from vidlatent.registry import did_you_mean
from vidlatent.sample.requests import PYTHON, Request, Wording

__all__ = ["GeneratorCall", "Settings"]

_PICTURE = "give the path of a picture, a PIL picture, or uint8 [H, W, 3]"


class Settings(TypedDict, total=False):
    """Settings of a call, all by name.

    Attributes:
      size: height and width in pixels; any, the latent that covers it is cut.
      frames: number of frames.
      steps: of the sampler.
      seed: the same seed with the same arguments gives the same video.
      guidance: guidance scale, 1 for none; several for a generator with a chain of them.
    """

    size: tuple[int, int] | None
    frames: int | None
    steps: int | None
    seed: int
    guidance: float | Sequence[float] | None


class GeneratorCall:
    """A generator that is called like a function. Derived classes have the methods below it.

    Attributes:
      size: frames, height and width of the videos.
      seconds: that each of several parts took so far, by name.
    """

    size: tuple[int, int, int]
    seconds: Mapping[str, float] = {}

    @property
    def part_configs(self) -> dict[str, ConfigDict]:
        """Configs of parts before the last one, whose settings are stored beside its own."""
        return {}

    def __call__(
        self, prompt: str | int = "", image: Any = None, **settings: Unpack[Settings]
    ) -> np.ndarray:
        """One video, uint8 ``[T, H, W, 3]``.

        Args:
          prompt: text, or name or number of a class, as the generator reads it.
          image: the picture to start from: a path, a PIL picture or uint8 ``[H, W, 3]``. It is
            scaled and cut to the video's size.
          settings: of ``Settings``; what is left out is as the generator's config says.

        Raises:
          VidlatentError: an argument that the generator cannot read; the message names it.
        """
        return np.concatenate(list(self.stream(prompt, image, **settings)))

    def stream(
        self, prompt: str | int = "", image: Any = None, **settings: Unpack[Settings]
    ) -> Iterator[np.ndarray]:
        """As ``__call__``, the frames in pieces uint8 ``[n, H, W, 3]`` as they are decoded.

        Mistakes in the arguments are raised at once, before the first piece is asked for.
        """
        for name in settings:
            if name not in Settings.__annotations__:
                known = ["prompt", "image", *Settings.__annotations__]
                raise VidlatentError(f"a generator takes no {name!r}: {did_you_mean(name, known)}")
        size, frames = settings.get("size"), settings.get("frames")
        steps, guidance = settings.get("steps"), settings.get("guidance")
        seed = settings.get("seed", 0)
        _check_number("frames", frames, 1)
        _check_number("steps", steps, 1)
        _check_number("seed", seed, 0)
        if size is not None and not _is_size(size):
            raise VidlatentError(
                f"size={size!r}: give (height, width) in pixels, such as (64, 64)."
            )
        if not isinstance(prompt, str | int):
            raise VidlatentError(f"prompt={prompt!r}: give a text, or the number of a class.")
        scales = None if guidance is None else self._read_guidance(guidance)
        chosen = self.with_settings(size, frames, steps, scales)
        if prompt == "" and "text" in chosen.reads:
            raise VidlatentError("this generator reads texts: give prompt='...'.")
        row = {"prompt": prompt, **_read_image(image)}
        (request,) = chosen.requests_for([row], 1, int(seed))
        chosen.check([request])

        def pieces() -> Iterator[np.ndarray]:
            ((_, latent),) = chosen.latents([request])
            yield from chosen.decode(request, latent)

        return pieces()

    def _read_guidance(self, guidance: Any) -> tuple[float, ...]:
        several = isinstance(guidance, Sequence) and not isinstance(guidance, str)
        scales = tuple(guidance) if several else (guidance,)
        wanted = max(1, len(self.guidance))
        if len(scales) != wanted or not all(isinstance(s, int | float) for s in scales):
            many = "a number" if wanted == 1 else f"{wanted} numbers, such as {self.guidance}"
            raise VidlatentError(f"guidance={guidance!r}: give {many}.")
        return tuple(float(scale) for scale in scales)

    # What a derived class has.

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the conditions that are read, as ``models.generators.base.Generator`` has."""
        raise NotImplementedError

    @property
    def guidance(self) -> tuple[float, ...]:
        """Guidance scales, as configured."""
        raise NotImplementedError

    def with_settings(
        self,
        size: tuple[int, int] | None,
        frames: int | None,
        steps: int | None,
        guidance: Sequence[float] | None,
    ) -> GeneratorCall:
        """The same networks with other settings; None leaves one as it is."""
        raise NotImplementedError

    def requests_for(
        self, rows: Sequence[dict[str, object]], count: int, seed: int, wording: Wording = PYTHON
    ) -> list[Request]:
        """``count`` requests for each row of ``prompt``, ``image`` and ``seed``."""
        raise NotImplementedError

    def check(self, requests: Sequence[Request], wording: Wording = PYTHON) -> None:
        """Raise for requests that cannot be met, before anything is loaded."""
        raise NotImplementedError

    def latents(
        self, requests: Sequence[Request], watch: Callable[[int, int], None] | None = None
    ) -> Iterator[tuple[Request, np.ndarray]]:
        """Latents ``[t, h, w, c]`` of the requests."""
        raise NotImplementedError

    def decode(self, request: Request, latent: np.ndarray) -> Iterator[np.ndarray]:
        """Frames of a latent in pieces, uint8 ``[n, H, W, 3]``."""
        raise NotImplementedError


def _check_number(name: str, value: Any, least: int) -> None:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if value is not None and not (whole and value >= least):
        raise VidlatentError(f"{name}={value!r}: give a whole number of at least {least}.")


def _is_size(size: Any) -> bool:
    if not isinstance(size, Sequence) or len(size) != 2:
        return False
    return all(isinstance(side, int) and side > 0 for side in size)


def _read_image(image: Any) -> dict[str, object]:
    """``image`` as the entry of a row: a path, or a picture as the bytes of a PNG."""
    if image is None:
        return {}
    if isinstance(image, str | os.PathLike):
        if not as_path(image).is_file():
            raise VidlatentError(f"image={os.fspath(image)!r}: there is no such picture.")
        return {"image": os.fspath(image)}
    if isinstance(image, Image.Image):
        image = np.asarray(image.convert("RGB"))
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3 or 0 in array.shape:
        got = f"{array.dtype} {list(array.shape)}"
        raise VidlatentError(f"image is {got}: {_PICTURE}.")
    return {"encoded": encode_picture(array)}
