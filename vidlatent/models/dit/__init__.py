"""Video generators by name: diffusion transformers over the tokenizers' latents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from vidlatent.models.contract import by_name
from vidlatent.registry import Registry

__all__ = ["GENERATORS", "build_generator"]

GENERATORS = Registry("generator")
GENERATORS.register("wan", "vidlatent.models.dit.wan:build_wan")


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
