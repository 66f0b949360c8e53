"""Discriminators by name.

A discriminator is called as ``apply({"params": params}, video, stats, train) -> (logit maps,
stats)``: ``video`` ``[B, T, H, W, 3]``, the maps a list of float32 arrays ``[B, ...]``, one for
each of its ``scales``. ``stats`` is a plain pytree of what it remembers beside its parameters, from
``init_stats()``. ``smallest_clip`` is the least number of frames, rows and columns that it takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from vidlatent.models.build import look_up, make_module
from vidlatent.models.discriminators.patch import PatchDiscriminator
from vidlatent.models.discriminators.residual import MultiscaleDiscriminator, StyleDiscriminator
from vidlatent.registry import Registry

__all__ = ["DISCRIMINATORS", "build_discriminator"]

DISCRIMINATORS = Registry("discriminator")
DISCRIMINATORS.register("patch3d", (PatchDiscriminator, {}))
DISCRIMINATORS.register("patch2d", (PatchDiscriminator, {"time_kernels": (1, 1, 1, 1, 1)}))
DISCRIMINATORS.register("multiscale3d", (MultiscaleDiscriminator, {}))
DISCRIMINATORS.register("stylegan3d", (StyleDiscriminator, {}))


def build_discriminator(config: Mapping[str, Any], dtype: Any = jnp.float32) -> nn.Module:
    """The discriminator of ``config['name']``; the other entries are its fields.

    Args:
      config: the section ``config.discriminator.model``. Lists may stand for tuples.
      dtype: compute dtype; parameters, statistics and logits are float32.

    Raises:
      VidlatentError: unknown name or field.
    """
    (kind, defaults), fields = look_up(DISCRIMINATORS, config, "config.discriminator.model")
    return make_module(
        kind, {**defaults, **fields}, jnp.dtype(dtype), section="config.discriminator.model"
    )
