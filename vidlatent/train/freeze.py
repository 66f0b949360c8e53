"""Training only part of a model: which parameters are frozen (``config.optim.freeze``)."""

from __future__ import annotations

from typing import Any

import jax

from vidlatent.errors import VidlatentError
from vidlatent.parallel.paths import match_path, path_name

__all__ = ["mark_frozen", "stop_frozen_gradients"]


def mark_frozen(params: Any, pattern: str, partly: bool = False) -> Any:
    """A tree of bools: True for the frozen parameters, those that ``pattern`` matches.

    Args:
      params: pytree of parameters or shapes.
      pattern: path expression (``parallel.paths``), such as ``'encoder/'``; empty freezes nothing.
      partly: ``params`` are adapters of some of the model's parameters, so that a pattern may
        well match none.

    Raises:
      VidlatentError: ``pattern`` is not a regular expression, or it matches every parameter or
        none.
    """
    mask = jax.tree_util.tree_map_with_path(
        lambda path, _: match_path(pattern, path_name(path), "config.optim.freeze"), params
    )
    found = jax.tree.leaves(mask)
    # Neither can be meant: nothing would be trained, or the key would have no effect.
    if pattern and (all(found) or not (partly or any(found))):
        what = "every" if all(found) else "no"
        raise VidlatentError(f"config.optim.freeze {pattern!r} matches {what} parameter.")
    return mask


def stop_frozen_gradients(params: Any, pattern: str) -> Any:
    """``params`` with ``stop_gradient`` on the frozen leaves, so their gradients cost nothing."""
    if not pattern:
        return params
    return jax.tree.map(
        lambda leaf, frozen: jax.lax.stop_gradient(leaf) if frozen else leaf,
        params,
        mark_frozen(params, pattern),
    )
