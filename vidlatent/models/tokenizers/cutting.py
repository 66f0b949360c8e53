"""How tokenizers cut long and large videos: what each one offers, and the functions that do it.

A codec asks a tokenizer for its ways (``Tokenizer.list_time_ways`` and ``list_space_ways``) and
gets a ``FrameCoder`` from the one it picks. Nobody outside a tokenizer's package knows how its
tiles work.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax

from vidlatent.errors import VidlatentError

__all__ = ["CutSize", "FrameCoder", "SpaceWay", "TimeWay", "WindowProgram", "make_latent_coder"]

# Rows and columns of a frame at which one tile gives way to another.
Borders = tuple[tuple[int, ...], tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class TimeWay:
    """One way of cutting a video in time.

    Attributes:
      name: ``'stream'`` (piece by piece with caches), ``'windows'`` (each decoded together with the
        latent frames around it, for decoders that look ahead) or ``'chunks'`` (each by itself).
      exact: the result is that of the whole video.
    """

    name: str
    exact: bool


@dataclasses.dataclass(frozen=True)
class CutSize:
    """One size of the parts of a ``SpaceWay``, for choosing by the memory at hand.

    Attributes:
      words: what the log calls it.
      keys: of ``config.codec`` that ask for it.
      cuts: frames of at most so many pixels a side are not cut at all.
    """

    words: str
    keys: Mapping[str, Any]
    cuts: int = 0


@dataclasses.dataclass(frozen=True)
class SpaceWay:
    """One way of cutting frames.

    Attributes:
      name: value of ``config.codec.space``.
      exact: the result is that of whole frames.
      keys: of ``config.codec`` that it reads; others that only ways of cutting read are refused.
      make: from ``config.codec`` (its keys are attributes) to the functions that code this way;
        raises ``VidlatentError`` for values that the model cannot follow.
      sizes: what ``config.codec.space='auto'`` tries, from the largest parts to the smallest.
      remark: follows the name where a message suggests it.
      rule: 'auto' always takes this way, in its first size, however much memory there is: it is how
        the tokenizer's authors code large frames, and not the function of whole ones.
    """

    name: str
    exact: bool
    keys: tuple[str, ...]
    make: Callable[[Any], FrameCoder]
    sizes: tuple[CutSize, ...] = ()
    remark: str = ""
    rule: bool = False


@dataclasses.dataclass(frozen=True)
class WindowProgram:
    """The dearest program of decoding in windows, for plan mode.

    Attributes:
      function: ``(params, *arguments) -> video``.
      arguments: their shapes.
      frames: of video that a window adds.
      latents: latent frames that the program decodes for them.
      tiles: programs that a window takes; 1: its frames are whole.
      size: height and width in pixels of what the program returns.
    """

    function: Callable[..., jax.Array]
    arguments: tuple[Any, ...]
    frames: int
    latents: int
    tiles: int
    size: tuple[int, int]


class FrameCoder:
    """A tokenizer's operations as functions of its parameters; here with frames whole.

    A tokenizer that can cut frames subclasses it. All but ``decode_windows`` can be traced by
    ``jax.jit``, except on frames of which ``cut_into_tiles`` says that they take several programs.

    Attributes:
      model: the tokenizer.
      cut: names the way of cutting where it changes the latents, so that latents of two names are
        two spaces; '' for whole frames and for ways with their result.
    """

    cut: str = ""

    def __init__(self, model: Any):
        self.model = model

    def encode(self, params: Any, video: jax.Array, cache: Any = None) -> tuple[Any, Any]:
        """``[B, T, H, W, 3]`` in [-1, 1] -> posterior and cache, as ``Tokenizer.encode``."""
        return self.model.apply({"params": params}, video, cache=cache, method="encode")

    def encode_condition(self, params: Any, frames: jax.Array) -> Any:
        """Content frames ``[n, H, W, 3]`` in [-1, 1] -> what ``decode`` takes of them."""
        return self.model.apply({"params": params}, frames, method="encode_condition")

    def decode(
        self, params: Any, latent: jax.Array, condition: Any = None, cache: Any = None
    ) -> tuple[jax.Array, Any]:
        """``[B, t, h, w, c]`` -> video ``[B, T, H, W, 3]`` and cache, as ``Tokenizer.decode``."""
        return self.model.apply(
            {"params": params}, latent, condition=condition, cache=cache, method="decode"
        )

    def decode_windows(
        self, params: Any, latents: Iterable[jax.Array], size: int, condition: Any
    ) -> Iterator[jax.Array]:
        """Decode a stream in windows, for a tokenizer whose ``list_time_ways`` has them.

        Args:
          params: the tokenizer's parameters.
          latents: latent frames ``[B, h, w, c]`` in order.
          size: latent frames that a window adds.
          condition: as of ``decode``.

        Yields:
          Videos ``[B, T, H, W, 3]`` in order.
        """
        raise VidlatentError(f"{self.model.latent_spec.name} cannot decode in windows.")

    def count_window_latents(self, size: int) -> int:
        """Latent frames that a window of ``size`` decodes at full resolution, margins included."""
        return size

    def plan_window(
        self, params: Any, latent: Any, size: int, condition: Any = None
    ) -> WindowProgram:
        """The program of the first window of a clip; arguments are shapes, ``latent`` whole."""
        raise VidlatentError(f"{self.model.latent_spec.name} cannot decode in windows.")

    def cut_into_tiles(self, height: int, width: int) -> tuple[int, tuple[int, int]] | None:
        """Number and (height, width) of tiles that are coded by a call each; None: one call."""
        return None

    def find_borders(self, height: int, width: int) -> Borders:
        """Rows and columns of a decoded frame at which one tile gives way to another."""
        return (), ()


def make_latent_coder(model: Any, codec: Any) -> FrameCoder:
    """The functions that decide what latents are: whole frames, or a way that changes them.

    Whatever else ``config.codec`` asks for gives the same latents by other means.

    Args:
      model: the tokenizer.
      codec: ``config.codec``.
    """
    for way in model.list_space_ways():
        if way.rule if codec.space == "auto" else not way.exact and way.name == codec.space:
            return way.make(codec)
    return model.make_frame_coder()
