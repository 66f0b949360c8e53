"""A tokenizer's operations compiled for a codec, from and to uint8 pixels.

How frames are cut is the business of the tokenizer's ``FrameCoder``; here its functions become
programs, and runs of pieces become one program with a loop. On a mesh the rows of every map are
spread over all devices, also where they do not divide: results and caches are padded to heights
that do, since those of a compiled program must.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vidlatent.errors import VidlatentError
from vidlatent.latents.pixels import from_pixels, to_pixels
from vidlatent.models.tokenizers.base import decode_checked, encode_checked
from vidlatent.models.tokenizers.cutting import Borders, FrameCoder
from vidlatent.parallel.sharding import pad_rows

__all__ = ["CodecPrograms"]


def _compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    return jax.jit(function, **options)


class CodecPrograms:
    """The compiled operations of one way of cutting frames.

    Frames that their way cuts into tiles of a program each (``FrameCoder.cut_into_tiles``) run the
    same functions without a program around them.

    Attributes:
      coder: the functions that are compiled.
      model: the tokenizer behind them, its layers tiled if that is the way.
    """

    def __init__(self, coder: FrameCoder):
        self.coder, self.model = coder, coder.model
        # A piece's caches are of no use once the next piece's exist: their memory is handed on.
        self._encode = _compiled(functools.partial(_encode, coder), donate_argnums=2)
        self._condition = _compiled(functools.partial(_condition, coder))
        self._decode = _compiled(functools.partial(_decode, coder), donate_argnums=3)
        self._encode_run = _compiled(functools.partial(_encode_run, coder), donate_argnums=2)
        self._decode_run = _compiled(functools.partial(_decode_run, coder), donate_argnums=3)

    @property
    def condition_kind(self) -> str:
        """``'none'``, ``'first'`` or ``'content'``, see ``Tokenizer.condition_kind``."""
        return self.model.condition_kind

    def encode(
        self, params: Any, pixels: Any, cache: Any, key: Any, start: int
    ) -> tuple[jax.Array, Any]:
        """uint8 ``[B, T, H, W, 3]`` -> latent ``[B, t, h, w, c]`` and the cache.

        The latent is the posterior's mode without a ``key``; with one a draw, whose noise depends
        on the key and on the place of each latent frame in the stream (``start`` and on) alone, so
        that it is the same however the stream is cut. Keys ``[B, n]`` are n draws of each clip:
        latents ``[B, n, t, h, w, c]``.
        """
        if self.coder.cut_into_tiles(*pixels.shape[2:4]):
            return _encode(self.coder, params, jnp.asarray(pixels), cache, key, start)
        return self._encode(params, pixels, cache, key, start)

    def encode_run(
        self, params: Any, pixels: Any, cache: Any, key: Any, start: int
    ) -> tuple[jax.Array, Any]:
        """Pieces uint8 ``[n, B, T, H, W, 3]``, one after the other -> ``[B, n * t, h, w, c]``."""
        if not self.coder.cut_into_tiles(*pixels.shape[3:5]):
            return self._encode_run(params, pixels, cache, key, start)
        # Tiles are programs of their own and cannot be inside a loop on the device.
        latents = []
        for piece in pixels:
            latent, cache = self.encode(params, piece, cache, key, start)
            latents.append(latent)
            start += latent.shape[-4]
        return jnp.concatenate(latents, axis=-4), cache

    def choose(self, kind: str, params: Any, shape: tuple[int, int, int]) -> CodecPrograms:
        """Themselves, whatever the size; ``AutoPrograms`` choose."""
        return self

    def pick_content_frames(self, pixels: np.ndarray, first: bool) -> np.ndarray | None:
        """The frames ``[n, H, W, 3]`` of a piece ``[T, H, W, 3]`` that the decoder reads.

        None where it reads none, or (``'first'``) none of a later piece.
        """
        if self.condition_kind == "none" or (self.condition_kind == "first" and not first):
            return None
        return np.asarray(self.model.apply({}, pixels[None], method="pick_content_frames"))

    def encode_condition(self, params: Any, frames: np.ndarray) -> Any:
        """What the decoder takes of content frames, uint8 ``[n, H, W, 3]``."""
        if self.coder.cut_into_tiles(*frames.shape[1:3]):
            return _condition(self.coder, params, jnp.asarray(frames))
        return self._condition(params, frames)

    def decode(
        self, params: Any, latent: jax.Array, condition: Any, cache: Any
    ) -> tuple[jax.Array, Any]:
        """Latent ``[1, t, h, w, c]`` -> video ``[1, T, H, W, 3]`` float32 and the cache.

        On a mesh H may have rows of padding at its end.
        """
        if self.coder.cut_into_tiles(*self._sides(latent.shape[2], latent.shape[3])):
            return _decode(self.coder, params, latent, condition, cache)
        return self._decode(params, latent, condition, cache)

    def decode_run(
        self, params: Any, latents: Any, frames: np.ndarray | None, cache: Any
    ) -> tuple[jax.Array, Any]:
        """Pieces ``[n, 1, t, h, w, c]``, one after the other -> uint8 ``[1, n * T, H, W, 3]``.

        Args:
          params: the tokenizer's parameters.
          latents: the pieces, none of them the first of a stream.
          frames: each piece's content frames, uint8 ``[n, clips, H, W, 3]``, where the decoder
            reads one of each clip.
          cache: of the piece before.
        """
        if not self.coder.cut_into_tiles(*self._sides(latents.shape[3], latents.shape[4])):
            return self._decode_run(params, latents, frames, cache)
        videos = []
        for number, latent in enumerate(latents):
            condition = None
            if frames is not None:
                condition = self.encode_condition(params, frames[number])
            video, cache = self.decode(params, jnp.asarray(latent), condition, cache)
            videos.append(to_pixels(video))
        return jnp.concatenate(videos, axis=1), cache

    def decode_windows(
        self, params: Any, latents: Iterable[jax.Array], size: int, condition: Any
    ) -> Iterator[jax.Array]:
        """As ``FrameCoder.decode_windows``."""
        return self.coder.decode_windows(params, latents, size, condition)

    def find_borders(self, height: int, width: int) -> Borders:
        """Rows and columns of a decoded frame at which one tile gives way to another."""
        return self.coder.find_borders(height, width)

    def _sides(self, rows: int, columns: int) -> tuple[int, int]:
        """Height and width in pixels of a latent of so many rows and columns."""
        spec = self.model.latent_spec
        return rows * spec.h, columns * spec.w


@dataclasses.dataclass(frozen=True)
class _Laid:
    """A cache on a mesh: rows padded to heights that divide, and the heights without."""

    leaves: Any
    heights: tuple[int, ...]


# Heights are static, because cutting the padding off needs them while tracing.
jax.tree_util.register_dataclass(_Laid, data_fields=["leaves"], meta_fields=["heights"])


def _lay(cache: Any) -> Any:
    """Pad the rows of a cache's maps ``[B, t, H, W, C]`` on a mesh; as it is without one."""
    mesh = jax.sharding.get_abstract_mesh()
    if cache is None or mesh.empty or mesh.size == 1:
        return cache
    heights = tuple(leaf.shape[2] if leaf.ndim == 5 else 0 for leaf in jax.tree.leaves(cache))

    def lay(path, leaf):
        # Keys and values of frame 0 have no axis of time.
        rows = leaf.ndim == 5 and getattr(path[-1], "key", "") not in ("k", "v")
        return pad_rows(leaf) if rows else leaf

    return _Laid(jax.tree_util.tree_map_with_path(lay, cache), heights)


def _take(cache: Any) -> Any:
    """What ``_lay`` was given."""
    if not isinstance(cache, _Laid):
        return cache
    leaves, structure = jax.tree.flatten(cache.leaves)
    cut = (x[:, :, :n] if n else x for x, n in zip(leaves, cache.heights, strict=True))
    return jax.tree.unflatten(structure, cut)


def _encode(coder, params, pixels, cache, key, start):
    encode = functools.partial(coder.encode, params)
    posterior, cache = encode_checked(coder.model, encode, from_pixels(pixels), _take(cache))
    return _latent(posterior, key, start), _lay(cache)


def _encode_run(coder, params, pixels, cache, key, start):
    encode = functools.partial(coder.encode, params)

    def one(carry, piece):
        start, cache = carry
        posterior, cache = encode_checked(coder.model, encode, from_pixels(piece), cache)
        latent = _latent(posterior, key, start)
        return (start + latent.shape[-4], cache), latent

    # The padding is off inside the loop: only arguments and results must divide.
    carry = jnp.asarray(start, jnp.int32), _take(cache)
    (_, cache), latents = lax.scan(one, carry, pixels)
    return _in_a_row(latents), _lay(cache)


def _latent(posterior: Any, key: jax.Array | None, start: Any) -> jax.Array:
    if key is None:
        return posterior.mode()
    if posterior.logvar is None:
        raise VidlatentError(
            "this tokenizer has no variance to sample from: leave sample out, or set "
            "config.encode.draws=0."
        )
    _, length, *shape = posterior.mean.shape

    def noise(key):
        # A key for each place in the stream: [t, h, w, c]
        keys = jax.vmap(lambda place: jax.random.fold_in(key, place))(start + jnp.arange(length))
        return jax.vmap(lambda one: jax.random.normal(one, shape, posterior.mean.dtype))(keys)

    if not key.ndim:
        return posterior.draw(noise(key)[None])
    # [B, n] keys -> [B, n, t, h, w, c]
    return jax.vmap(posterior.draw, in_axes=1, out_axes=1)(jax.vmap(jax.vmap(noise))(key))


def _condition(coder, params, frames):
    return coder.encode_condition(params, from_pixels(frames))


def _decode(coder, params, latent, condition, cache):
    decode = functools.partial(coder.decode, params)
    video, cache = decode_checked(coder.model, decode, latent, condition, _take(cache))
    return pad_rows(video), _lay(cache)


def _decode_run(coder, params, latents, frames, cache):
    decode = functools.partial(coder.decode, params)

    def one(cache, piece):
        latent, seen = piece
        condition = None if seen is None else _condition(coder, params, seen)
        video, cache = decode_checked(coder.model, decode, latent, condition, cache)
        # uint8 in the loop, so that the pieces take a quarter of the memory when stacked.
        return cache, to_pixels(video)

    cache, videos = lax.scan(one, _take(cache), (latents, frames))
    return pad_rows(_in_a_row(videos)), _lay(cache)


def _in_a_row(pieces: jax.Array) -> jax.Array:
    """``[n, ..., T, H, W, C] -> [..., n * T, H, W, C]``."""
    pieces = jnp.moveaxis(pieces, 0, -5)
    return pieces.reshape(*pieces.shape[:-5], -1, *pieces.shape[-3:])
