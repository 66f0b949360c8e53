"""Video generators by name: diffusion transformers over the tokenizers' latents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from vidlatent.registry import Registry
from vidlatent.typing import VidlatentError

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
    if "name" not in config:
        raise VidlatentError(
            f"config.generator has no name: choose one of {', '.join(GENERATORS.names())}."
        )
    fields = {key: value for key, value in config.items() if key != "name"}
    return GENERATORS.get(config["name"])(fields, jnp.dtype(dtype))
