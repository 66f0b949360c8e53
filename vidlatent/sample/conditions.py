"""Encodes prompts and images for a generator, with the encoders of ``config.encode``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from vidlatent.encode.content import ContentLatents
from vidlatent.encode.encoders import ImageTokens, TextStates
from vidlatent.encode.plan import EncodeOptions
from vidlatent.errors import VidlatentError
from vidlatent.latents.inputs import check_null_text, make_text_states
from vidlatent.models.load import resolve_dtype
from vidlatent.parallel.mesh import local_mesh

__all__ = ["ContentEncoder", "ImageEncoder", "TextEncoder"]


class _Encoder:
    """An encoder that is loaded on first use: text encoders are large, and not always needed."""

    key: str = ""
    kind: Any = TextStates

    def __init__(self, config: ConfigDict):
        self._config = config
        self._loaded: Any = None

    def _load(self) -> Any:
        if self._loaded is None:
            options = EncodeOptions.of(self._config.encode)
            if not self._config.encode[self.key]:
                raise VidlatentError(
                    f"config.encode.{self.key} is empty: name what encoded the {self.key} in the "
                    "latents' set, as for --mode=encode."
                )
            networks = self._config.networks
            # Prompts come in any number, which only one device always divides.
            self._mesh = local_mesh([1])
            self._loaded = self.kind(options, networks, self._mesh, resolve_dtype(self._config))
        return self._loaded


class TextEncoder(_Encoder):
    """``texts -> {'text': ..., 'null_text': ...}`` as conditions for ``denoise``.

    ``null_text`` encodes ``config.sampler.guidance.negative``. If that is empty, it is the empty
    text or left out, as in training (``config.conditions.null_text``).

    Args:
      length: tokens that the generator reads; longer texts are cut.
    """

    key, kind = "text", TextStates

    def __init__(self, config: ConfigDict, length: int):
        super().__init__(config)
        self._length = length

    def __call__(self, texts: Sequence[str]) -> dict[str, Any]:
        encoder, negative = self._load(), self._config.sampler.guidance.negative
        with jax.set_mesh(self._mesh):
            # The negative prompt joins the same call, as the last row.
            states = encoder([*texts, negative])
        length = min(encoder.length, self._length)
        found: dict[str, Any] = {"text": _pad(states[:-1], length)}
        if negative:
            found["null_text"] = _pad(states[-1:], length)
        elif check_null_text(self._config) == "empty":
            with jax.set_mesh(self._mesh):
                found["null_text"] = make_text_states(encoder.empty()[:length])
        return found


class ImageEncoder(_Encoder):
    """uint8 ``[B, H, W, 3]`` -> semantic tokens ``[B, I, D]``."""

    key, kind = "image", ImageTokens

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        """Encode a batch, see the class."""
        encoder = self._load()
        with jax.set_mesh(self._mesh):
            return encoder(pictures)


class ContentEncoder(ImageEncoder):
    """uint8 ``[B, H, W, 3]`` -> latents ``[B, H / 8, W / 8, 4]`` of an image autoencoder, means."""

    key, kind = "content", ContentLatents


def _pad(states: Sequence[np.ndarray], length: int) -> dict[str, np.ndarray]:
    states = [row[:length] for row in states]
    width = max(row.shape[-1] for row in states)
    # B texts [n, D] -> [B, length, D], with zeros behind each
    padded = np.zeros((len(states), length, width), np.float32)
    for number, row in enumerate(states):
        padded[number, : len(row)] = row
    return {"states": padded, "length": np.asarray([len(row) for row in states], np.int32)}
