"""Training a part of a model: which parameters stay as they are, by path."""

from __future__ import annotations

import re
from typing import Any

import jax

from vidlatent.errors import VidlatentError
from vidlatent.parallel.sharding import path_name

__all__ = ["frozen_paths", "stop_frozen"]


def frozen_paths(params: Any, pattern: str) -> Any:
    """True for the parameters whose path (``encoder/conv_in/kernel``) ``pattern`` matches.

    Args:
      params: pytree of parameters or shapes.
      pattern: regular expression looked for at the start of the path, such as ``'encoder/'``;
        empty: nothing is frozen.

    Raises:
      VidlatentError: the pattern is not an expression, or matches nothing or everything.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise VidlatentError(
            f"config.optim.freeze {pattern!r} is not an expression: {error}."
        ) from error

    def match(path, _):
        return bool(pattern) and bool(expression.match(path_name(path)))

    mask = jax.tree_util.tree_map_with_path(match, params)
    found = jax.tree.leaves(mask)
    if pattern and (all(found) or not any(found)):
        what = "every" if all(found) else "no"
        raise VidlatentError(f"config.optim.freeze {pattern!r} matches {what} parameter.")
    return mask


def stop_frozen(params: Any, pattern: str) -> Any:
    """``params`` whose frozen leaves carry no gradient, so that none is computed for them."""
    if not pattern:
        return params
    return jax.tree.map(
        lambda leaf, frozen: jax.lax.stop_gradient(leaf) if frozen else leaf,
        params,
        frozen_paths(params, pattern),
    )
