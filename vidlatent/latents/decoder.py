"""The frozen tokenizer's decoder inside a training step: standardised latents to frames."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vidlatent.errors import VidlatentError
from vidlatent.latents.contract import chunk_latents
from vidlatent.latents.pixels import from_pixels
from vidlatent.latents.reader import describe_tokenizer
from vidlatent.latents.space import Latents, read_tokenizer_config
from vidlatent.models.frozen import FrozenNetwork
from vidlatent.models.load import model_of
from vidlatent.models.tokenizers.chunks import fade_in, map_chunks

__all__ = ["FrozenDecoder"]


class FrozenDecoder:
    """The decoder of ``config.tokenizer``; its parameters are an argument.

    Args:
      config: of the run.
      latents: facts about the latents.
      tokenizer: config of the tokenizer, if its run need not be there; None reads that of
        ``config.tokenizer``.
      groups: groups of frames that ``decode`` makes at a time; 0: whole clips.
      remat: recompute each piece in the backward pass, which then needs one piece's activations
        beside what streams hand from piece to piece; chunks likewise.

    Attributes:
      model: the tokenizer's module.
      groups: as given; may be changed where ``streams`` is true.
      arrays: names of the arrays of a batch that are needed.

    Raises:
      VidlatentError: ``groups`` is given and the decoder cannot go on from piece to piece.
    """

    def __init__(
        self,
        config: ConfigDict,
        latents: Latents,
        tokenizer: ConfigDict | None = None,
        groups: int = 0,
        remat: bool = False,
    ):
        self._config, self._latents = config, latents
        self.groups, self._remat = groups, remat
        self.model = model_of(read_tokenizer_config(config) if tokenizer is None else tokenizer)
        # Of videos the frame is cut out; a set stores it.
        reads = self.model.condition_kind != "none" and config.data.source == "latents"
        self.arrays = ("content",) if reads else ()
        if groups and not self.streams:
            raise VidlatentError(
                f"the decoder of {latents.spec.name} cannot decode group by group: set "
                "config.rl.decode_groups=0."
            )

    @property
    def streams(self) -> bool:
        """Whether it can go on from piece to piece."""
        return self.model.streams and self.model.condition_kind != "content"

    @property
    def frozen(self) -> FrozenNetwork:
        """The tokenizer, as what encodes and decodes."""
        model, spec = self.model, self._latents.spec
        latent = jax.ShapeDtypeStruct((1, 1, 2, 2, spec.channels), jnp.float32)
        video = jax.ShapeDtypeStruct((1, spec.rule.first, 2 * spec.h, 2 * spec.w, 3), jnp.float32)

        def use(params):
            code = functools.partial(model.apply, {"params": params})
            zeros, clip = (jnp.zeros(leaf.shape, leaf.dtype) for leaf in (latent, video))
            condition = code(clip, method="make_condition")
            decoded = code(zeros, condition=condition, method="decode")[0]
            return decoded, code(clip, method="encode")[0].mode()

        return describe_tokenizer(self._config, model, use)

    def make_condition(self, batch: Mapping[str, jax.Array], params: Any) -> Any:
        """What the decoder reads beside the latent, from the clip's own frames; None: nothing."""
        run = functools.partial(self.model.apply, {"params": params})
        if self.model.condition_kind == "none":
            return None
        if "video" in batch:
            return run(from_pixels(batch["video"]), method="make_condition")
        frames = batch["content"]  # [B, n, H, W, 3]
        frames = from_pixels(frames).reshape(-1, *frames.shape[2:])
        return run(frames, method="encode_condition")

    def __call__(self, params: Any, latent: jax.Array, condition: Any) -> jax.Array:
        """Frames ``[B, T, H, W, 3]`` float32, not clipped, of a standardised latent."""
        latent = self._latents.space.restore_traced(latent)
        spec = self._latents.spec
        if spec.chunks is not None and latent.shape[1] > 1:
            return self._decode_chunks(params, latent, chunk_latents(spec), spec.chunks[1])
        if self.groups:
            return self._stream(params, latent, condition)
        return self._decode(params, latent, condition)[0]

    def _decode(self, params: Any, latent: jax.Array, condition: Any, cache: Any = None) -> Any:
        def decode(latent, condition, cache):
            return self.model.apply(
                {"params": params}, latent, condition=condition, cache=cache, method="decode"
            )

        # The parameters are no argument: they are frozen, and the same for every piece.
        return (jax.checkpoint(decode) if self._remat else decode)(latent, condition, cache)

    def _stream(self, params: Any, latent: jax.Array, condition: Any) -> jax.Array:
        """Piece by piece with a cache, so that the memory is that of a piece and the frames."""
        rule = self._latents.spec.rule
        size = self.groups * rule.step // self._latents.spec.t
        # The first piece also takes the frame that is in no group.
        start = size + bool(rule.first % rule.step)
        video, cache = self._decode(params, latent[:, :start], condition)
        frames = [video]
        count = max(latent.shape[1] - start, 0) // size
        if count:
            # One loop, so that pieces follow one another backward too, and are compiled once.
            end = start + count * size
            pieces = latent[:, start:end].reshape(len(latent), count, size, *latent.shape[2:])

            def step(cache, piece):
                video, cache = self._decode(params, piece, None, cache)
                return cache, video

            cache, videos = jax.lax.scan(step, cache, jnp.moveaxis(pieces, 1, 0))
            # [n, B, T', ...] -> [B, n T', ...]
            videos = jnp.moveaxis(videos, 0, 1)
            frames.append(videos.reshape(len(latent), -1, *videos.shape[3:]))
            start = end
        if start < latent.shape[1]:
            frames.append(self._decode(params, latent[:, start:], None, cache)[0])
        return jnp.concatenate(frames, axis=1)

    def _decode_chunks(self, params: Any, latent: jax.Array, each: int, overlap: int) -> jax.Array:
        """Chunks decoded one at a time and faded into each other, as a codec shows them."""
        # [B, n t', ...] -> [B, n, t', ...]
        pieces = latent.reshape(latent.shape[0], -1, each, *latent.shape[2:])
        videos = map_chunks(lambda piece: self._decode(params, piece, None)[0], pieces)
        start, tail = fade_in(videos[:, 0], None, overlap)
        done = [start]
        for number in range(1, videos.shape[1]):
            start, tail = fade_in(videos[:, number], tail, overlap)
            done.append(start)
        return jnp.concatenate([*done, tail], axis=1)
