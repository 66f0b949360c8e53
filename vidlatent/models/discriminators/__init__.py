"""Discriminators by name.

A discriminator is called as ``apply({"params": params}, video, stats, train) -> (logit maps,
stats)``. ``video`` is ``[B, T, H, W, 3]`` in [-1, 1]; the maps are a list of float32 arrays
``[B, ...]``, one for each of its ``scales``. ``stats`` is a plain pytree of its state beside the
parameters (running means, power iteration), first made by ``init_stats()``. ``smallest_clip`` is
the smallest (frames, height, width) that it accepts.
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
    """The discriminator ``config['name']``; the other entries of ``config`` are its fields.

    Args:
      config: the section ``config.discriminator.model``. Lists are turned into tuples.
      dtype: compute dtype; parameters, statistics and logits are float32.

    Raises:
      VidlatentError: unknown name or field.
    """
    (kind, defaults), fields = look_up(DISCRIMINATORS, config, "config.discriminator.model")
    return make_module(
        kind, {**defaults, **fields}, jnp.dtype(dtype), section="config.discriminator.model"
    )
