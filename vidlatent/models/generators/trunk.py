"""The trunk of a generator: the tokens that its head reads.

An adversarial loss takes logits from them without parameters of its own (``losses.trunk``).
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

from vidlatent.errors import VidlatentError
from vidlatent.models.generators.conditions import Conditions, Drop

__all__ = ["denoise_with_trunk", "show_trunk"]

_COLLECTION = "intermediates"  # Linen's for values that only some callers want


def show_trunk(module: nn.Module, tokens: jax.Array) -> None:
    """Offer ``tokens`` ``[B, N, D]``, which the head reads, to ``denoise_with_trunk``.

    It costs nothing in every other call.
    """
    module.sow(_COLLECTION, "trunk", tokens)


def denoise_with_trunk(
    model: Any,
    params: Any,
    noisy: jax.Array,
    time: jax.Array,
    conditions: Conditions,
    drop: Drop = None,
) -> tuple[jax.Array, jax.Array]:
    """Output of ``model.denoise`` and the tokens ``[B, N, D]`` that its head reads.

    Raises:
      VidlatentError: the generator does not call ``show_trunk``.
    """
    output, found = model.apply(
        {"params": params},
        noisy,
        time,
        conditions,
        drop=drop,
        method="denoise",
        mutable=[_COLLECTION],
    )
    tokens = jax.tree.leaves(found)
    if len(tokens) != 1:
        raise VidlatentError(
            f"the generator {type(model).__name__} does not show the tokens that its head reads, "
            "which the adversarial loss needs: call models.generators.trunk.show_trunk before the "
            "head, or set the adversarial weights to 0."
        )
    return output, tokens[0]
