"""A latent upsampler between its neighbours: pairs of latents before it, the decoder after it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from vidlatent.latents.decoder import FrozenDecoder
from vidlatent.latents.reader import LatentReader
from vidlatent.latents.refiner_inputs import upsampler_of
from vidlatent.latents.space import Latents
from vidlatent.models.frozen import FrozenNetwork

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
        self.decoder = FrozenDecoder(config, latents, tokenizer) if self.decodes else None
        self.tokenizer: Any = self.decoder.model if self.decoder else None
        own = self.decoder.arrays if self.decoder else ()
        self.arrays = (*self.reader.arrays, *self.reader.low_arrays, *own)

    @property
    def frozen(self) -> dict[str, FrozenNetwork]:
        """The tokenizer, if it encodes or decodes."""
        return {"tokenizer": self.decoder.frozen} if self.decoder else self.reader.frozen

    def upsample(
        self, params: Any, frozen: Mapping[str, Any], batch: Mapping[str, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Small, own and upsampled latent of a batch, with the same draws at every evaluation."""
        key = jax.random.key(0)
        high, low = self.reader(batch, frozen, key), self.reader.read_low(batch, frozen, key)
        return low, high, self.model.apply({"params": params}, low)

    def make_condition(self, batch: Mapping[str, jax.Array], params: Any) -> Any:
        """What the decoder reads of the large clip: its own first frame, as in sampling."""
        assert self.decoder is not None
        return self.decoder.make_condition(batch, params)

    def decode(self, params: Any, latent: jax.Array, condition: Any) -> jax.Array:
        """Frames ``[B, T, H, W, 3]`` of a standardised latent, by the tokenizer's ``params``."""
        assert self.decoder is not None
        return self.decoder(params, latent, condition)
