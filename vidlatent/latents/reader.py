"""Standardised latents of a batch: read from a latent set, or encoded from its videos."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from vidlatent.data.latent_set import read_header
from vidlatent.errors import VidlatentError
from vidlatent.latents.pairs import LOW, halve_pixels
from vidlatent.latents.pixels import from_pixels
from vidlatent.latents.space import Latents, read_tokenizer_config
from vidlatent.models.frozen import FrozenNetwork, hold_in
from vidlatent.models.load import abstract_params, model_of, smallest_video
from vidlatent.models.tokenizers.chunks import encode_chunks
from vidlatent.models.tokenizers.cutting import make_latent_coder
from vidlatent.parallel.sharding import constrain
from vidlatent.weights.files import load_params

__all__ = ["LatentReader", "describe_tokenizer"]

_VIDEO_AXES = ("batch", "time", "height", "width", "channel")


class LatentReader:
    """``(batch, frozen, key) -> standardised latent [B, t, h, w, c]``, and the same at half size.

    Args:
      config: of the run; read are ``data.source`` and ``tokenizer``.
      latents: facts about the latents.
      own: config of the tokenizer; None reads that of ``config.tokenizer``.

    Attributes:
      arrays: names of the arrays of a batch that are needed; the first holds latents or videos.
      low_arrays: those that ``read_low`` needs besides.
      tokenizer: the tokenizer's module, or None if a set holds the latents.
    """

    def __init__(self, config: ConfigDict, latents: Latents, own: ConfigDict | None = None):
        from_videos = config.data.source != "latents"
        self._config, self._latents, self._sample = config, latents, config.tokenizer.sample
        self.arrays = ("video" if from_videos else "latent", "mask")
        self.low_arrays = () if from_videos else (LOW,)
        self.tokenizer = self._coder = None
        if from_videos:
            own = read_tokenizer_config(config) if own is None else own
            self.tokenizer = model_of(own)
            # Large frames are cut as in sets, where that changes the latents.
            self._coder = make_latent_coder(self.tokenizer, own.codec)

    @property
    def frozen(self) -> dict[str, FrozenNetwork]:
        """The tokenizer, if videos are encoded."""
        if self.tokenizer is None:
            return {}
        model = self.tokenizer
        video = np.zeros(smallest_video(model.latent_spec), np.float32)

        def encode(params):
            return model.apply({"params": params}, video, method="encode")[0].mode()

        return {"tokenizer": describe_tokenizer(self._config, model, encode)}

    def check_low(self) -> None:
        """Raise ``VidlatentError`` if ``read_low`` will find no small latents in the set."""
        if self.tokenizer is None:
            path = self._config.data.path
            if not read_header(path).source.get("low"):
                raise VidlatentError(
                    f"the latent set {path} has no {LOW}, the clips at half size: encode it with "
                    "--config.encode.low=2."
                )

    def __call__(
        self, batch: Mapping[str, jax.Array], frozen: Mapping[str, Any], key: jax.Array
    ) -> jax.Array:
        if self.tokenizer is None:
            return self._latents.standardise(batch["latent"])
        return self._latents.standardise(self._encode(batch["video"], frozen["tokenizer"], key))

    def read_low(
        self, batch: Mapping[str, jax.Array], frozen: Mapping[str, Any], key: jax.Array
    ) -> jax.Array:
        """``[B, t, h / 2, w / 2, c]``, of the clips at half size (``latents.pairs``)."""
        if self.tokenizer is None:
            return self._latents.standardise(batch[LOW])
        half = halve_pixels(batch["video"])
        return self._latents.standardise(self._encode(half, frozen["tokenizer"], key))

    def _encode(self, video: jax.Array, params: Any, key: jax.Array) -> jax.Array:
        def whole(clips):
            pixels = constrain(from_pixels(clips), _VIDEO_AXES)
            return self._coder.encode(params, pixels)[0]

        posterior = encode_chunks(whole, video, self._latents.spec.chunks)
        latent = posterior.sample(key) if self._sample else posterior.mode()
        return jax.lax.stop_gradient(latent)


def describe_tokenizer(config: ConfigDict, model: Any, use: Any) -> FrozenNetwork:
    """The tokenizer of ``config.tokenizer`` as a frozen network of a task.

    Args:
      model: its module.
      use: function of its parameters, as the step uses them. Kernels that it casts to the compute
        dtype anyway are kept in it: half the memory.
    """

    def load(abstract):
        path, step = config.tokenizer.path, config.tokenizer.step
        family = read_tokenizer_config(config).model.name
        return load_params(path, abstract, family=family, step=None if step < 0 else step)

    return FrozenNetwork(hold_in(model.dtype, abstract_params(model), use), load)
