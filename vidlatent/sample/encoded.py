"""Requests with all their conditions encoded, before any generator is loaded."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vidlatent.latents.inputs import find_pooled_side, pool_content
from vidlatent.sample.conditions import EncodedTexts, encode_pictures, use_encoder_mesh
from vidlatent.sample.decoding import use_one_device
from vidlatent.sample.requests import Request

if TYPE_CHECKING:
    from vidlatent.sample.generator import Generator

__all__ = ["EncodedRequests", "encode_requests"]


def encode_requests(
    pairs: Sequence[tuple[Generator, Sequence[Request]]],
) -> list[EncodedRequests]:
    """Conditions of each generator's requests; each encoder is loaded once for all.

    The generators have one residency and the same prompts: texts are encoded for the first that
    reads them.
    """
    found = [EncodedRequests(*pair) for pair in pairs]
    # Encoders before the tokenizer, which stays when the generator comes.
    for name in ("text", "image", "content", "first"):
        for encoded in found:
            known = next((other.texts for other in found if other.texts is not None), None)
            if name == "text" and known is not None:
                encoded.texts = known
            else:
                encoded.encode(name)
    return found


class EncodedRequests:
    """Conditions of requests, all encoded: ``batch -> conditions by name``, ``[B, ...]`` each.

    Made by ``encode_requests``.

    Args:
      generator: whose conditions they are.
      requests: all that will be asked for.
    """

    def __init__(self, generator: Generator, requests: Sequence[Request]):
        self._generator, self._requests = generator, requests
        self._reads = generator.model.reads
        self.texts: EncodedTexts | None = None
        self._codes: dict[str, dict[Hashable, np.ndarray]] = {}
        self._given = {r.picture: r for r in requests if r.picture is not None}
        self._batch = max(1, min(generator.config.sample.batch, len(requests)))

    def encode(self, name: str) -> None:
        """Encode one condition for all requests, if the generator reads it."""
        if name not in self._reads or not (self._given or name == "text"):
            return
        generator, networks = self._generator, self._generator.residency
        if name == "text":
            networks.enter("text")
            texts = [request.prompt for request in self._requests]
            length = generator.model.text_length
            self.texts = EncodedTexts(
                networks["text"], texts, generator.config, length, self._batch
            )
        elif name == "image":
            networks.enter("image")
            with use_encoder_mesh():
                self._codes["image"] = self._encode(networks["image"], False)
        elif name == "content":
            self._codes["content"] = self._encode_content()
        else:
            self._codes["first"] = self._encode_first()

    def _encode(self, encoder: Any, padded: bool) -> dict[Hashable, np.ndarray]:
        generator = self._generator

        def read(request):
            picture = generator.picture(request)
            return generator.pad(picture) if padded else picture

        readers = {key: lambda r=request: read(r) for key, request in self._given.items()}
        return encode_pictures(encoder, readers, self._batch)

    def _encode_first(self) -> dict[Hashable, np.ndarray]:
        generator = self._generator
        generator.require_tokenizer()
        generator.residency.enter("tokenizer")
        codec, known = generator.residency["tokenizer"], generator.known

        def first(pictures):
            with use_one_device():
                # [H, W, 3] -> [1, h, w, c]: a picture is a video of one frame.
                found = [codec.encode(picture[None]).latent[:1] for picture in pictures]
            return np.stack([np.asarray(known.standardise(latent)) for latent in found])

        return self._encode(first, True)

    def _encode_content(self) -> dict[Hashable, np.ndarray]:
        generator = self._generator
        if side := find_pooled_side(generator.config, generator.model, generator.known):
            return self._encode(lambda pictures: np.asarray(pool_content(pictures, side)), True)
        generator.residency.enter("content")
        with use_encoder_mesh():
            return self._encode(generator.residency["content"], True)

    def __call__(self, requests: Sequence[Request]) -> dict[str, Any]:
        """Conditions of a batch of which all have a picture, or none has; None for those absent."""
        found: dict[str, Any] = {}
        for name in self._reads:
            if name == "label":
                found[name] = np.asarray([request.label for request in requests], np.int32)
            elif name == "text":
                assert self.texts is not None
                found |= self.texts([request.prompt for request in requests])
            elif requests[0].picture is None:
                found[name] = None
            else:
                found[name] = np.stack([self._codes[name][r.picture] for r in requests])
        return found
