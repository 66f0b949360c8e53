"""The compiled parts of a codec: pixels to latent, content frames to condition, latent to video.

Each kind of ``Steps`` computes the same operations in its own way of cutting a frame up. On a mesh
the rows of every map are spread over all devices, also where they do not divide: results and caches
are padded to heights that do, since those of a compiled program must.
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
from vidlatent.models.tokenizers.fsvideo import tiling as tiled
from vidlatent.models.tokenizers.fsvideo.patches import (
    decode_windows,
    encode_tiled,
    encoder_end,
)
from vidlatent.models.tokenizers.reducio import tiling
from vidlatent.parallel.sharding import pad_rows

__all__ = ["PartSteps", "Steps", "TiledSteps"]

Borders = tuple[tuple[int, ...], tuple[int, ...]]


def _compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    return jax.jit(function, **options)


class Steps:
    """A model's three operations on a batch of one, frames whole.

    Attributes:
      content: which frames the decoder looks at: ``'none'``, ``'first'`` (of the stream) or
        ``'clip'`` (one of each clip).
      pieces: the functions behind the compiled ones, for a look at the program: ``'encode'``
        ``(params, video, cache) -> (posterior, cache)``, ``'look'`` ``(params, frames) ->
        condition``, ``'decode'`` ``(params, latent, cache, condition) -> (video, cache)``.
    """

    def __init__(self, model: Any, encode: Any = None, decode: Any = None):
        self.model = model
        self.content = "none"
        if hasattr(model, "takes_condition") and model.takes_condition:
            self.content = "clip" if hasattr(model, "content_frame") else "first"
        encode = encode or functools.partial(_encode, model)
        decode = decode or functools.partial(_decode, model)
        look = functools.partial(_look, model, self.content)
        self.pieces = {"encode": encode, "look": look, "decode": decode}
        # A piece's caches are of no use once the next piece's exist: their memory is handed on.
        self._encode = _compiled(functools.partial(_encoded, encode), donate_argnums=2)
        self._look = _compiled(look)
        self._decode = _compiled(functools.partial(_decoded, decode), donate_argnums=3)
        self._encode_run = _compiled(functools.partial(_encode_run, encode), donate_argnums=2)
        self._decode_run = _compiled(functools.partial(_decode_run, decode, look), donate_argnums=3)

    def encode(
        self, params: Any, pixels: Any, cache: Any, key: Any, start: int
    ) -> tuple[jax.Array, Any]:
        """uint8 ``[1, T, H, W, 3]`` -> latent ``[1, t, h, w, c]`` and the cache.

        The latent is the posterior's mode without a ``key``; with one a draw, whose noise depends
        on the key and on the place of each latent frame in the stream (``start`` and on) alone, so
        that it is the same however the stream is cut.
        """
        return self._encode(params, pixels, cache, key, start)

    def encode_run(
        self, params: Any, pixels: Any, cache: Any, key: Any, start: int
    ) -> tuple[jax.Array, Any]:
        """Pieces uint8 ``[n, 1, T, H, W, 3]``, one after the other -> ``[1, n * t, h, w, c]``."""
        return self._encode_run(params, pixels, cache, key, start)

    def frames_seen(self, pixels: np.ndarray, first: bool) -> np.ndarray | None:
        """The content frames ``[n, H, W, 3]`` of a piece ``[T, H, W, 3]``, None for none."""
        if self.content == "clip":
            return np.asarray(self.model.apply({}, pixels[None], method="content_frame"))
        return pixels[:1] if first and self.content == "first" else None

    def look(self, params: Any, frames: np.ndarray) -> Any:
        """What the decoder needs of content frames, uint8 ``[n, H, W, 3]``."""
        return self._look(params, frames)

    def decode(
        self, params: Any, latent: jax.Array, condition: Any, cache: Any
    ) -> tuple[jax.Array, Any]:
        """Latent ``[1, t, h, w, c]`` -> video ``[1, T, H, W, 3]`` float32 and the cache.

        On a mesh H may have rows of padding at its end.
        """
        return self._decode(params, latent, condition, cache)

    def decode_run(
        self, params: Any, latents: Any, frames: np.ndarray | None, cache: Any
    ) -> tuple[jax.Array, Any]:
        """Pieces ``[n, 1, t, h, w, c]``, one after the other -> uint8 ``[1, n * T, H, W, 3]``.

        Args:
          frames: each piece's content frames, uint8 ``[n, clips, H, W, 3]``, where the decoder
            looks at one of each clip.
        """
        return self._decode_run(params, latents, frames, cache)

    def windows(
        self, params: Any, latents: Iterable[jax.Array], core: int, condition: Any
    ) -> Iterator[jax.Array]:
        """``decode_windows`` of FSAE's decoders that look ahead."""
        return decode_windows(self.model, params, latents, core, condition)

    def borders(self, height: int, width: int) -> Borders:
        """Rows and columns of a decoded frame at which one tile gives way to another."""
        return (), ()


class PartSteps(Steps):
    """FSAE's operations with the outer stages tile by tile, exactly (``fsvideo.tiling``).

    Args:
      core: side of a tile in pixels, without its margin.
    """

    def __init__(self, model: Any, core: int):
        self._cells = tiled.margins(model)  # raises where there is nothing to cut
        for cell, _ in self._cells:
            if core < cell or core % cell:
                side = max(cell for cell, _ in self._cells)
                raise VidlatentError(
                    f"config.codec.tile_pixels={core}: tiles of {model.latent_spec.name} consist "
                    f"of cells of {side} pixels; use a multiple of that."
                )
        super().__init__(
            model,
            functools.partial(tiled.encode_piece, model, core),
            functools.partial(tiled.decode_piece, model, core),
        )
        self.core = core

    def look(self, params, frames):
        if self.content == "none" or min(self.model.cross_stages) < encoder_end(self.model):
            return super().look(params, frames)
        cells = self.core // self._cells[1][0]
        return encode_tiled(self.model, params, from_pixels(jnp.asarray(frames))[None], cells)[1]

    def windows(self, params, latents, core, condition):
        cells = self.core // self._cells[0][0]
        return decode_windows(self.model, params, latents, core, condition, cells)

    def borders(self, height, width):
        cell, margin = self._cells[0]
        whole = (height // cell, width // cell)
        grid = tiled.grid_of(whole, self.core // cell, margin // cell)
        return tuple(
            tuple(sorted({int(begin) * cell for begin in grid.wanted[:, axis]} - {0}))
            for axis in (0, 1)
        )


class TiledSteps(Steps):
    """Reducio's operations on frames larger than a tile (see ``models.tokenizers.reducio.tiling``).

    Attributes:
      tiles: their sizes.
      published: as in the released code, which tiles only frames that are too high; else evenly.
    """

    def __init__(self, model: Any, tiles: tiling.Tiles, published: bool):
        super().__init__(model)
        self.tiles, self.published = tiles, published

    def cuts(self, height: int, width: int) -> bool:
        """Whether frames of this size are cut."""
        return tiling.needed(height, width, self.tiles, height_only=self.published)

    def encode(self, params, pixels, cache, key, start):
        if not self.cuts(*pixels.shape[2:4]):
            return super().encode(params, pixels, cache, key, start)
        run = tiling.published_encode if self.published else tiling.even_encode
        posterior = run(self.model, params, from_pixels(jnp.asarray(pixels)), self.tiles)
        return _latent(posterior, key, start), None

    def look(self, params, frames):
        if not self.cuts(*frames.shape[1:3]):
            return super().look(params, frames)
        run = tiling.published_condition if self.published else tiling.even_condition
        return run(self.model, params, from_pixels(jnp.asarray(frames)), self.tiles)

    def decode(self, params, latent, condition, cache):
        spec = self.model.latent_spec
        if not self.cuts(latent.shape[2] * spec.h, latent.shape[3] * spec.w):
            return super().decode(params, latent, condition, cache)
        run = tiling.published_decode if self.published else tiling.even_decode
        return run(self.model, params, latent, condition, self.tiles), None

    # Tiles are a loop of calls: so are pieces of them.

    def encode_run(self, params, pixels, cache, key, start):
        latents = []
        for piece in pixels:
            latents.append(self.encode(params, piece, None, key, start)[0])
            start += latents[-1].shape[1]
        return jnp.concatenate(latents, axis=1), None

    def decode_run(self, params, latents, frames, cache):
        videos = []
        for number, latent in enumerate(latents):
            condition = None if frames is None else self.look(params, frames[number])
            video, _ = self.decode(params, jnp.asarray(latent), condition, None)
            videos.append(to_pixels(video))
        return jnp.concatenate(videos, axis=1), None

    def borders(self, height, width):
        if not self.cuts(height, width):
            return (), ()
        return tiling.borders(height, width, self.tiles, self.published)


@dataclasses.dataclass(frozen=True)
class _Laid:
    """A cache on a mesh: rows padded to heights that divide, and the heights without."""

    leaves: Any
    heights: tuple[int, ...]


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


def _encode(model, params, video, cache):
    return model.apply({"params": params}, video, cache=cache, method="encode")


def _encoded(encode, params, pixels, cache, key, start):
    posterior, cache = encode(params, from_pixels(pixels), _take(cache))
    return _latent(posterior, key, start), _lay(cache)


def _encode_run(encode, params, pixels, cache, key, start):
    def one(carry, piece):
        start, cache = carry
        posterior, cache = encode(params, from_pixels(piece), cache)
        latent = _latent(posterior, key, start)
        return (start + latent.shape[1], cache), latent

    carry = jnp.asarray(start, jnp.int32), _take(cache)
    (_, cache), latents = lax.scan(one, carry, pixels)
    return _in_a_row(latents), _lay(cache)


def _latent(posterior: Any, key: jax.Array | None, start: Any) -> jax.Array:
    if key is None:
        return posterior.mode()
    if posterior.logvar is None:
        raise VidlatentError("this tokenizer has no variance to sample from: leave sample out.")
    _, length, *shape = posterior.mean.shape

    def noise(place):
        return jax.random.normal(jax.random.fold_in(key, place), shape, posterior.mean.dtype)

    return posterior.draw(jax.vmap(noise)(start + jnp.arange(length))[None])


def _look(model, content, params, frames):
    pixels = from_pixels(frames)
    if content == "clip":
        return model.apply({"params": params}, pixels, method="features")
    return model.apply({"params": params}, pixels[None], method="condition")


def _decode(model, params, latent, cache, condition):
    return model.apply(
        {"params": params}, latent, condition=condition, cache=cache, method="decode"
    )


def _decoded(decode, params, latent, condition, cache):
    video, cache = decode(params, latent, _take(cache), condition)
    return pad_rows(video), _lay(cache)


def _decode_run(decode, look, params, latents, frames, cache):
    def one(cache, piece):
        latent, seen = piece
        condition = None if seen is None else look(params, seen)
        video, cache = decode(params, latent, cache, condition)
        return cache, to_pixels(video)

    cache, videos = lax.scan(one, _take(cache), (latents, frames))
    return pad_rows(_in_a_row(videos)), _lay(cache)


def _in_a_row(pieces: jax.Array) -> jax.Array:
    """``[n, 1, T, ...] -> [1, n * T, ...]``."""
    return pieces.reshape(1, -1, *pieces.shape[3:])
