"""Latents of content frames by an image autoencoder: a condition of Reducio-DiT."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vidlatent.encode.encoders import find_weights, make_window_key, make_window_names
from vidlatent.encode.plan import EncodeOptions
from vidlatent.errors import VidlatentError
from vidlatent.latents.pixels import from_pixels
from vidlatent.models.pretrained import NETWORKS
from vidlatent.models.pretrained.load import load_network
from vidlatent.parallel.sharding import replicated

__all__ = ["ContentLatents"]

_DRAW = 0  # number of this draw in its random key; the window's own latents count from 1


class ContentLatents:
    """Frames -> unscaled latents of the image autoencoder ``config.encode.content``.

    Args:
      options: with ``content_draw`` latents are draws from the posterior, as Reducio's code stores
        them, else its mean.
      networks: ``config.networks``.
      mesh: where it runs.
      dtype: that it computes in.
      seed: of the draws. A draw depends only on it, the clip's name and the window's first frame;
        for frames of no clip, such as pictures to sample from, on it and the pixels.

    Attributes:
      label: describes the network in the set's header.

    Raises:
      VidlatentError: the network is unknown or no image autoencoder, or has no weights.
    """

    def __init__(
        self,
        options: EncodeOptions,
        networks: Mapping[str, str],
        mesh: Mesh,
        dtype: Any,
        seed: int = 0,
    ):
        name = options.content
        path = find_weights(networks, name)
        if not hasattr(NETWORKS.get(name).module(), "posterior"):
            raise VidlatentError(
                f"config.encode.content={name!r} is no image autoencoder: use 'sd_vae'."
            )
        network = load_network(name, path, dtype)
        self._draws = options.content_draw
        self.label = f"{network.label}, {'a draw' if self._draws else 'mean'}"
        whole = replicated(mesh)
        self._put = lambda arrays: jax.device_put(arrays, whole)
        self._params = self._put(network.params)

        def mean(params, frames):
            return network.apply(params, from_pixels(frames))

        def draw(params, frames, names):
            pixels = from_pixels(frames)
            # Shape of one latent, found by tracing without running the network.
            shape = jax.eval_shape(network.apply, params, pixels).shape[1:]
            # A key for each window, so that a draw does not depend on the rest of the batch.
            keys = jax.vmap(lambda name: make_window_key(seed, name, _DRAW))(names)
            noise = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
            return network.apply(params, pixels, noise)

        self._mean, self._draw = (jax.jit(f, out_shardings=whole) for f in (mean, draw))

    def __call__(
        self, frames: np.ndarray, clips: Sequence[str] = (), firsts: Sequence[int] = ()
    ) -> np.ndarray:
        """uint8 ``[B, H, W, 3]`` -> float32 ``[B, H / 8, W / 8, 4]``.

        Args:
          clips, firsts: the name of each frame's clip and the first frame of its window, if any.
        """
        if not self._draws:
            return np.asarray(self._mean(self._params, self._put(frames)), np.float32)
        if not clips:
            # Generators learn from draws, so the pictures that they sample from are draws, too.
            # Named by their pixels: a picture has one code, whatever is encoded beside it.
            clips = [hashlib.sha256(frame.tobytes()).hexdigest() for frame in frames]
            firsts = [0] * len(clips)
        names = self._put(make_window_names(clips, firsts))
        return np.asarray(self._draw(self._params, self._put(frames), names), np.float32)
