"""Initialise a generator from the weights of the model that it was derived from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vidlatent.errors import VidlatentError
from vidlatent.parallel.paths import path_name

__all__ = ["take_matching", "wan_memory", "with_guidance"]

Params = Mapping[str, Any]


def take_matching(
    params: Params, fresh: Params, *, anew: Sequence[Sequence[str]], optional: Sequence[str] = ()
) -> dict[str, Any]:
    """``fresh`` with every leaf replaced by the one of the same path in ``params``.

    Args:
      params: the source's parameters.
      fresh: newly initialised ones of the target.
      anew: groups of path prefixes; a group stays fresh as a whole if any shape in it differs.
      optional: path prefixes that stay fresh if the source lacks them.

    Raises:
      VidlatentError: another leaf is absent from the source or has another shape.
    """
    source = {
        path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
    }

    differ = [
        path_name(path)
        for path, leaf in jax.tree_util.tree_flatten_with_path(dict(fresh))[0]
        if path_name(path) in source and jnp.shape(source[path_name(path)]) != jnp.shape(leaf)
    ]
    # Kernel and bias of a layer belong together: one that does not fit renews both.
    new = tuple(
        start
        for group in anew
        if any(x.startswith(tuple(group)) for x in differ)
        for start in group
    )

    def take(path, leaf):
        name = path_name(path)
        if new and name.startswith(new):
            return leaf
        if name not in source:
            if name.startswith(tuple(optional)):
                return leaf
            raise VidlatentError(f"the weights to start from lack {name}.")
        if jnp.shape(source[name]) != jnp.shape(leaf):
            raise VidlatentError(
                f"the weights to start from have {name} of {jnp.shape(source[name])}, and the "
                f"model has {jnp.shape(leaf)}: give config.generator the sizes of the weights."
            )
        return source[name]

    return jax.tree_util.tree_map_with_path(take, dict(fresh))


def wan_memory(params: Params, fresh: Params) -> dict[str, Any]:
    """FSVideo's transformer from Wan2.1's: all weights, plus new routers (FSVideo 2.3.1).

    Patch embedding and head stay newly initialised if the latents have other channels. Routers
    start as ``memory_share`` says: with 0.98 the model computes nearly the same as before.

    Raises:
      VidlatentError: a weight is absent or has another shape.
    """
    # Only these two see the latent's channels.
    latent = (("patch_embedding/",), ("head/",))
    return take_matching(params, fresh, anew=latent, optional=("router_", "label_embedding/"))


def with_guidance(params: Params, fresh: Params) -> dict[str, Any]:
    """Any generator with ``guidance_embed`` from one without: the same output for every scale.

    Raises:
      VidlatentError: as ``take_matching``.
    """
    return take_matching(params, fresh, anew=(), optional=("guidance_embedding/",))
