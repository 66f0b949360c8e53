"""Video generators by name: diffusion transformers over the tokenizers' latents.

Every generator module has

* ``reads``: names of its conditions, of ``label`` int32 ``[B]``, ``text`` ``{'states' [B, N, D],
  'length' [B]}``, ``image`` ``[B, I, D]`` (semantic tokens), ``first`` ``[B, 1, h, w, c]`` (the
  standardised latent of the first frame) and ``content`` ``[B, h', w', c']`` (the image latent of
  the content frame);
* ``learned_variance``: whether the output has ``2 c`` channels, the noise's and the variance's;
* ``denoise(noisy [B, t, h, w, c], time [B], conditions, drop=None)``, float32. ``conditions`` has
  every name of ``reads``; None stands for no condition. ``drop[name]`` ``[B]`` replaces that
  condition in the samples where it is true by what the model has for none;
* where conditions cost something that is the same at every step, ``keep(conditions, drop=None)``,
  a pytree with the batch first in every leaf, for ``denoise(..., kept=kept)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from vidlatent.models.build import by_name
from vidlatent.registry import Registry

__all__ = ["GENERATORS", "build_generator"]

GENERATORS = Registry("generator")
GENERATORS.register("wan", "vidlatent.models.generators.wan.model:build_wan")
GENERATORS.register("latte", "vidlatent.models.generators.latte.model:build_latte")
GENERATORS.register(
    "reducio_dit", "vidlatent.models.generators.reducio_dit.model:build_reducio_dit"
)
GENERATORS.register("promag_dit", "vidlatent.models.generators.promag_dit.model:build_promag_dit")


def build_generator(config: Mapping[str, Any], dtype: Any = jnp.float32) -> nn.Module:
    """The module of ``config['name']``; the other entries are its fields.

    Args:
      config: the ``generator`` section of a run's config. Lists may stand for tuples.
      dtype: compute dtype; parameters are float32.

    Raises:
      VidlatentError: unknown generator name or field.
    """
    make, fields = by_name(GENERATORS, config, "config.generator")
    return make(fields, jnp.dtype(dtype))
