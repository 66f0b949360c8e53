"""Rows of importer tables that dense layers and norms have in common.

A row is ``(expression for the published name, our path or paths, layout)``, see ``importer``.
"""

from __future__ import annotations

__all__ = ["Rows", "dense_rows", "norm_rows", "packed_rows"]

Rows = tuple[tuple[str, str | tuple[str, ...], str], ...]


def dense_rows(source: str, target: str | tuple[str, ...]) -> Rows:
    """Kernel and bias of a dense layer; several targets lie one after another in the tensor."""
    if isinstance(target, tuple):
        kernels = tuple(f"{path}/kernel" for path in target)
        biases = tuple(f"{path}/bias" for path in target)
        return ((source + "[.]weight", kernels, "dense"), (source + "[.]bias", biases, "copy"))
    return (
        (source + "[.]weight", target + "/kernel", "dense"),
        (source + "[.]bias", target + "/bias", "copy"),
    )


def packed_rows(source: str, target: str, names: str) -> Rows:
    """Projections ``target/q``, ``target/k`` ... stored as one, in the order of ``names``."""
    return dense_rows(source, tuple(f"{target}/{name}" for name in names))


def norm_rows(source: str, target: str) -> Rows:
    """Scale and bias of a norm."""
    return (
        (source + "[.]weight", target + "/scale", "copy"),
        (source + "[.]bias", target + "/bias", "copy"),
    )
