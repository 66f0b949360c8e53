"""Video generators by name: diffusion transformers over the tokenizers' latents, and upsamplers.

What each generator is asked for stands in ``base.Generator``. An upsampler is a Linen module with
``latent_channels`` that maps a standardised latent to the same clip's of a larger size.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from vidlatent.models.build import build_module
from vidlatent.registry import Registry

__all__ = ["FOLLOW", "GENERATORS", "UPSAMPLERS", "build_generator", "build_upsampler"]

# In place of a number of channels: as many as the latents have (``latents.channels``).
FOLLOW = -1

GENERATORS = Registry("generator")
GENERATORS.register("wan", "vidlatent.models.generators.wan.model:build_wan")
GENERATORS.register("latte", "vidlatent.models.generators.latte.model:build_latte")
GENERATORS.register(
    "reducio_dit", "vidlatent.models.generators.reducio_dit.model:build_reducio_dit"
)
GENERATORS.register("promag_dit", "vidlatent.models.generators.promag_dit.model:build_promag_dit")


def build_generator(config: Mapping[str, Any], dtype: Any = jnp.float32) -> Any:
    """The module of a config's section ``generator``, see ``models.build.build_module``.

    Training replaces channels of ``FOLLOW`` first. Where no latents are named, as in counting the
    parameters of a preset, latents have the class's own number of channels, and given frames as
    many as the latents.
    """
    fields = dict(config)
    if fields.get("latent_channels") == FOLLOW:
        del fields["latent_channels"]
    if fields.get("condition_channels") == FOLLOW:
        del fields["condition_channels"]
        if "latent_channels" in fields:
            fields["condition_channels"] = fields["latent_channels"]
    return build_module(GENERATORS, fields, dtype)


UPSAMPLERS = Registry("upsampler")
UPSAMPLERS.register(
    "latent_upsampler",
    "vidlatent.models.generators.latent_upsampler.model:build_latent_upsampler",
)

# The module of the section ``generator`` of an upsampler's config.
build_upsampler = functools.partial(build_module, UPSAMPLERS)
