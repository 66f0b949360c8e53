"""Rows of importer tables that several models have in common.

A row is ``(expression for the published name, our path or paths, transform)``, see ``importer``.
"""

from __future__ import annotations

__all__ = ["Rows", "below", "dense_rows", "layer_rows", "norm_rows", "packed_rows"]

Rows = tuple[tuple[str, str | tuple[str, ...], str], ...]


def layer_rows(source: str, target: str, transform: str, bias: bool = True) -> Rows:
    """Kernel (by ``transform``) and bias of a layer, such as a convolution."""
    rows: Rows = ((source + "[.]weight", target + "/kernel", transform),)
    return (*rows, (source + "[.]bias", target + "/bias", "copy")) if bias else rows


def dense_rows(source: str, target: str | tuple[str, ...]) -> Rows:
    """Kernel and bias of a dense layer; several targets lie one after another in the tensor."""
    if isinstance(target, str):
        return layer_rows(source, target, "dense")
    kernels = tuple(f"{path}/kernel" for path in target)
    biases = tuple(f"{path}/bias" for path in target)
    return ((source + "[.]weight", kernels, "dense"), (source + "[.]bias", biases, "copy"))


def packed_rows(source: str, target: str, names: str) -> Rows:
    """Projections ``target/q``, ``target/k`` ... stored as one, in the order of ``names``."""
    return dense_rows(source, tuple(f"{target}/{name}" for name in names))


def norm_rows(source: str, target: str) -> Rows:
    """Scale and bias of a norm."""
    return (
        (source + "[.]weight", target + "/scale", "copy"),
        (source + "[.]bias", target + "/bias", "copy"),
    )


def below(source: str, target: str, rows: Rows) -> Rows:
    """``rows`` of a network that is a part of another: both of its names begin with a prefix."""

    def place(path: str | tuple[str, ...]) -> str | tuple[str, ...]:
        return target + path if isinstance(path, str) else tuple(target + one for one in path)

    return tuple((source + name, place(path), transform) for name, path, transform in rows)
