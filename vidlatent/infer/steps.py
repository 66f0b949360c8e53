"""The compiled parts of a codec: pixels to latent, content frames to condition, latent to video."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vidlatent.infer.pixels import from_pixels
from vidlatent.models.reducio import tiling
from vidlatent.typing import VidlatentError

__all__ = ["Steps", "TiledSteps"]


def _compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    return jax.jit(function, **options)


class Steps:
    """A model's three operations on a batch of one.

    Attributes:
      content: which frames the decoder looks at: ``'none'``, ``'first'`` (of the stream) or
        ``'clip'`` (one of each clip).
    """

    def __init__(self, model: Any):
        self.model = model
        self.content = "none"
        if hasattr(model, "takes_condition") and model.takes_condition:
            self.content = "clip" if hasattr(model, "content_frame") else "first"
        # A piece's caches are of no use once the next piece's exist: their memory is handed on.
        self._encode = _compiled(functools.partial(_encode, model), donate_argnums=2)
        self._look = _compiled(functools.partial(_look, model, self.content))
        self._decode = _compiled(functools.partial(_decode, model), donate_argnums=3)

    def encode(
        self, params: Any, pixels: Any, cache: Any, key: Any, start: int
    ) -> tuple[jax.Array, Any]:
        """uint8 ``[1, T, H, W, 3]`` -> latent ``[1, t, h, w, c]`` and the cache.

        The latent is the posterior's mode without a ``key``; with one a draw, whose noise depends
        on the key and on the place of each latent frame in the stream (``start`` and on) alone, so
        that it is the same however the stream is cut.
        """
        return self._encode(params, pixels, cache, key, start)

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
        """Latent ``[1, t, h, w, c]`` -> video ``[1, T, H, W, 3]`` float32 and the cache."""
        return self._decode(params, latent, condition, cache)


class TiledSteps(Steps):
    """Reducio's operations on frames larger than a tile (see ``models.reducio.tiling``).

    Attributes:
      tiles: their sizes.
      published: as in the released code, which tiles only frames that are too high; else evenly.
    """

    def __init__(self, model: Any, tiles: tiling.Tiles, published: bool):
        super().__init__(model)
        self.tiles, self.published = tiles, published

    def _cut(self, height: int, width: int) -> bool:
        return tiling.needed(height, width, self.tiles, height_only=self.published)

    def encode(self, params, pixels, cache, key, start):
        if not self._cut(*pixels.shape[2:4]):
            return super().encode(params, pixels, cache, key, start)
        run = tiling.published_encode if self.published else tiling.even_encode
        posterior = run(self.model, params, from_pixels(jnp.asarray(pixels)), self.tiles)
        return _latent(posterior, key, start), None

    def look(self, params, frames):
        if not self._cut(*frames.shape[1:3]):
            return super().look(params, frames)
        run = tiling.published_condition if self.published else tiling.even_condition
        return run(self.model, params, from_pixels(jnp.asarray(frames)), self.tiles)

    def decode(self, params, latent, condition, cache):
        spec = self.model.latent_spec
        if not self._cut(latent.shape[2] * spec.h, latent.shape[3] * spec.w):
            return super().decode(params, latent, condition, cache)
        run = tiling.published_decode if self.published else tiling.even_decode
        return run(self.model, params, latent, condition, self.tiles), None


def _encode(model, params, pixels, cache, key, start):
    video = from_pixels(pixels)
    posterior, cache = model.apply({"params": params}, video, cache=cache, method="encode")
    return _latent(posterior, key, start), cache


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


def _decode(model, params, latent, condition, cache):
    return model.apply(
        {"params": params}, latent, condition=condition, cache=cache, method="decode"
    )
