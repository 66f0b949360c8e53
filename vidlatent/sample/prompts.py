"""What prompts are to a generator or a refiner: the conditions of sampling, made from a batch.

A refiner is given the base model's own sample, upsampled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vidlatent.config import role_of
from vidlatent.diffusion.refiner_given import Given, give_for_sampling
from vidlatent.latents.inputs import Inputs
from vidlatent.latents.refiner_inputs import Parts, RefinerInputs
from vidlatent.latents.space import Latents
from vidlatent.sample.sampler import LatentSampler

__all__ = ["RefinerPrompts", "find_shape", "make_prompts"]


def find_shape(config: ConfigDict, latents: Latents, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape ``(t, h, w, c)`` of what is drawn for prompts whose clips' latents have ``shape``.

    Prompts with pictures are clips of a single frame: ``config.rl.frames`` says how long the videos
    are.
    """
    frames, *sides = shape
    if frames == 1 and config.rl.frames:
        spec = latents.spec
        frames = spec.latent_shape((config.rl.frames, spec.h, spec.w))[0]
    return frames, *sides


def make_prompts(
    config: ConfigDict, model: Any, latents: Latents, parts: Parts | None = None
) -> Inputs | RefinerPrompts:
    """What makes conditions of a batch as sampling has them, for a generator or a refiner."""
    if role_of(config) == "refiner":
        return RefinerPrompts(config, model, latents, parts)
    return Inputs(config, model, latents)


class RefinerPrompts(RefinerInputs):
    """As ``RefinerInputs``, with the base model's sample in place of its error at one noise level.

    Of a batch's clips only the first frames are seen, at both sizes. The base model is sampled by
    its own ``config.sampler``, once for each prompt, and upsampled; no gradient passes.
    """

    def __init__(self, config: ConfigDict, model: Any, latents: Latents, parts: Parts | None):
        super().__init__(config, model, latents, augment=False, parts=parts)
        self._config, self._latents = config, latents

    def give(
        self, batch: Mapping[str, jax.Array], frozen: Mapping[str, Any], key: jax.Array
    ) -> tuple[jax.Array, dict[str, Any], Given | None]:
        of_latent, of_low, of_base = jax.random.split(key, 3)
        high, conditions = self._plain(batch, frozen, of_latent)
        shape = find_shape(self._config, self._latents, high.shape[1:])
        if shape[0] == 1:
            return high, conditions, None
        low = self.reader.read_low(batch, frozen, of_low)
        sampler = LatentSampler(self._base, self._parts.base, (shape[0], *low.shape[2:]))
        seeds = jax.random.bits(of_base, (len(low),), jnp.uint32)
        drawn = sampler.run(frozen["base"], seeds, self._choose_base_conditions(low, conditions))
        given = give_for_sampling(
            high[:, :1], low[:, :1], drawn, self._upsample(frozen), self._options
        )
        return high, conditions, jax.lax.stop_gradient(given)
