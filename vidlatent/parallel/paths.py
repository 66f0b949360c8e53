"""Parameter paths, and the path expressions that select some of them.

All path expressions work alike: ``config.optim.freeze``, ``config.optim.lr_factors``,
``config.optim.no_decay``, ``config.discriminator.adaptive_layer`` and the sharding rules are
regular expressions that must match **from the start of the path** (``re.match``), but not up to its
end. So ``encoder/`` selects everything in ``encoder``, but neither ``grow1/encoder/...`` nor
``image_encoder/...``. Begin with ``.*`` to match anywhere, end with ``$`` to match to the end.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jax

from vidlatent.errors import VidlatentError

__all__ = ["match_path", "path_name"]


def path_name(path: Sequence[Any]) -> str:
    """``encoder/conv_in/kernel`` for a key path of ``jax.tree_util``."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def match_path(pattern: str, name: str, key: str = "the path expression") -> bool:
    """Whether ``pattern`` matches the path ``name`` from its start; an empty one matches nothing.

    Args:
      pattern: regular expression.
      name: path as ``path_name`` writes it.
      key: where the expression comes from, such as ``config.optim.freeze``, for the error.

    Raises:
      VidlatentError: ``pattern`` is not a regular expression.
    """
    try:
        return bool(pattern) and re.match(pattern, name) is not None
    except re.error as error:
        raise VidlatentError(f"{key} {pattern!r} is not a regular expression: {error}.") from error
