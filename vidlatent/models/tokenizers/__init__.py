"""Models by name. Each system is one folder; ``build`` makes its module from a config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from vidlatent.models.build import by_name
from vidlatent.models.tokenizers.base import Posterior
from vidlatent.registry import Registry

__all__ = ["MODELS", "Posterior", "build"]

MODELS = Registry("model")
MODELS.register("dcae", "vidlatent.models.tokenizers.fsvideo:build_dcae")
MODELS.register("fsae", "vidlatent.models.tokenizers.fsvideo:build_fsae")
MODELS.register("ivvae", "vidlatent.models.tokenizers.ivvae:build_ivvae")
MODELS.register("reducio", "vidlatent.models.tokenizers.reducio:build_reducio")
MODELS.register("promag", "vidlatent.models.tokenizers.promag:build_promag")
MODELS.register("magvit2", "vidlatent.models.tokenizers.promag:build_magvit2")


def build(config: Mapping[str, Any], dtype: Any = jnp.float32) -> nn.Module:
    """The module of ``config['name']``; the other entries are its fields.

    Args:
      config: the ``model`` section of a run's config. Lists may stand for tuples.
      dtype: compute dtype; parameters are float32.

    Raises:
      VidlatentError: unknown model name or field.
    """
    make, fields = by_name(MODELS, config, "config.model")
    return make(fields, jnp.dtype(dtype))
