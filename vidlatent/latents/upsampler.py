"""A latent upsampler between its neighbours: pairs of latents before it, the decoder after it."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vidlatent.latents.pixels import from_pixels
from vidlatent.latents.reader import LatentReader, describe_tokenizer
from vidlatent.latents.refiner_inputs import upsampler_of
from vidlatent.latents.space import Latents, read_tokenizer_config
from vidlatent.models.frozen import FrozenNetwork
from vidlatent.models.load import model_of

__all__ = ["UpsamplerNetworks"]


class UpsamplerNetworks:
    """What training and evaluation of a latent upsampler share; parameters are arguments.

    Args:
      config: of the run; with ``config.loss`` latents are decoded.
      latents: facts about the latents.
      tokenizer: config of the frozen tokenizer, if its run need not be there; None reads that of
        ``config.tokenizer``, and checks that the data hold pairs.

    Attributes:
      model: the upsampler.
      reader: reads or makes latents of both sizes.
      decodes: whether there is a decoder.
      tokenizer: its module, or None.
      arrays: names of the arrays of a batch that are needed.
    """

    def __init__(self, config: ConfigDict, latents: Latents, tokenizer: ConfigDict | None = None):
        self.config, self.latents, self.model = config, latents, upsampler_of(config)
        self.reader = LatentReader(config, latents, tokenizer)
        if tokenizer is None:
            self.reader.check_low()
        self.decodes = bool(config.loss)
        # Without terms on frames it is never asked for anything.
        self.tokenizer: Any = None
        if self.decodes:
            self.tokenizer = model_of(tokenizer or read_tokenizer_config(config))
        own = ("content",) if self._reads_stored_frame() else ()
        self.arrays = (*self.reader.arrays, *self.reader.low_arrays, *own)

    def _reads_stored_frame(self) -> bool:
        """Whether the decoder reads a frame that only the set has."""
        if not self.decodes or self.reader.tokenizer is not None:
            return False
        return self.tokenizer.condition_kind != "none"

    @property
    def frozen(self) -> dict[str, FrozenNetwork]:
        """The tokenizer, if it encodes or decodes."""
        if not self.decodes:
            return self.reader.frozen
        model, spec = self.tokenizer, self.latents.spec
        latent = jax.ShapeDtypeStruct((1, 1, 2, 2, spec.channels), jnp.float32)
        video = jax.ShapeDtypeStruct((1, spec.rule.first, 2 * spec.h, 2 * spec.w, 3), jnp.float32)

        def use(params):
            def run(latent, video):
                code = functools.partial(model.apply, {"params": params})
                condition = code(video, method="make_condition")
                decoded = code(latent, condition=condition, method="decode")[0]
                return decoded, code(video, method="encode")[0].mode()

            zeros = (jnp.zeros(leaf.shape, leaf.dtype) for leaf in (latent, video))
            return run(*zeros)

        return {"tokenizer": describe_tokenizer(self.config, model, use)}

    def upsample(
        self, params: Any, frozen: Mapping[str, Any], batch: Mapping[str, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Small, own and upsampled latent of a batch, with the same draws at every evaluation."""
        key = jax.random.key(0)
        high, low = self.reader(batch, frozen, key), self.reader.read_low(batch, frozen, key)
        return low, high, self.model.apply({"params": params}, low)

    def make_condition(self, batch: Mapping[str, jax.Array], params: Any) -> Any:
        """What the decoder reads of the large clip: its own first frame, as in sampling."""
        run = functools.partial(self.tokenizer.apply, {"params": params})
        if self.tokenizer.condition_kind == "none":
            return None
        if "video" in batch:
            return run(from_pixels(batch["video"]), method="make_condition")
        frames = batch["content"]  # [B, n, H, W, 3]
        frames = from_pixels(frames).reshape(-1, *frames.shape[2:])
        return run(frames, method="encode_condition")

    def decode(self, params: Any, latent: jax.Array, condition: Any) -> jax.Array:
        """Frames ``[B, T, H, W, 3]`` of a standardised latent, by the tokenizer's ``params``."""
        latent = self.latents.space.restore_traced(latent)
        return self.tokenizer.apply(
            {"params": params}, latent, condition=condition, method="decode"
        )[0]
