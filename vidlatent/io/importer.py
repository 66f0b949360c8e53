"""Weights by table: names and layouts of a published checkpoint to ours and back.

A table is a list of rows ``(source, target, transform)``. ``source`` is a regular expression with
named groups for the whole checkpoint name, ``target`` the parameter path with the same groups in
braces::

    (r"(?P<side>encoder|decoder)[.]conv_in[.]weight", "{side}/conv_in/kernel", "conv3d")

The same row exports: the target becomes an expression and the source a template. For that to be
possible a source may hold only literal text, ``[.]`` for a dot, and named groups without inner
groups. The tables sit beside their models; this module knows none of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from vidlatent.typing import VidlatentError

__all__ = ["TRANSFORMS", "Row", "export_names", "export_params", "flatten", "import_params"]

Row = tuple[str, str, str]

_GROUP = re.compile(r"\(\?P<(\w+)>([^()]*)\)")
_FIELD = re.compile(r"\{(\w+)\}")
_SHOWN = 12


def _grouped_in(x: Any, shape: Sequence[int]) -> Any:
    """``(G * O, I, 1, 1) -> [G, I, O]``; the group count is known from the target."""
    return x.reshape(shape[0], shape[2], shape[1]).transpose(0, 2, 1)


def _grouped_out(x: Any) -> Any:
    groups, inputs, outputs = x.shape
    return x.transpose(0, 2, 1).reshape(groups * outputs, inputs, 1, 1)


# name -> (checkpoint layout to ours given the target shape, ours to checkpoint layout)
TRANSFORMS: dict[str, tuple[Callable[[Any, Sequence[int]], Any], Callable[[Any], Any]]] = {
    "copy": (lambda x, shape: x, lambda x: x),
    # Dense layer: (O, I) and [I, O].
    "dense": (lambda x, shape: x.transpose(1, 0), lambda x: x.transpose(1, 0)),
    # Convolutions, depthwise ones too: (O, I, [t,] h, w) and [t, h, w, I, O].
    "conv2d": (
        lambda x, shape: x.transpose(2, 3, 1, 0)[None],
        lambda x: x[0].transpose(3, 2, 0, 1),
    ),
    "conv3d": (
        lambda x, shape: x.transpose(2, 3, 4, 1, 0),
        lambda x: x.transpose(4, 3, 0, 1, 2),
    ),
    # 1x1 convolutions: (O, I, 1, 1 [, 1]) and [I, O].
    "pointwise2d": (
        lambda x, shape: x[:, :, 0, 0].transpose(1, 0),
        lambda x: x.transpose(1, 0)[:, :, None, None],
    ),
    "pointwise3d": (
        lambda x, shape: x[:, :, 0, 0, 0].transpose(1, 0),
        lambda x: x.transpose(1, 0)[:, :, None, None, None],
    ),
    # Per-channel scales: (C, 1, 1 [, 1]) and [C].
    "scale2d": (lambda x, shape: x.reshape(shape), lambda x: x[:, None, None]),
    "scale3d": (lambda x, shape: x.reshape(shape), lambda x: x[:, None, None, None]),
    # Grouped 1x1 convolution: (G * O, I, 1, 1) and [G, I, O].
    "grouped2d": (_grouped_in, _grouped_out),
}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dict to ``{'a/b/c': leaf}``."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}/"))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def import_params(
    tensors: Mapping[str, np.ndarray],
    table: Sequence[Row],
    target_shapes: Mapping[str, Any],
    *,
    partial: bool = False,
) -> dict[str, Any]:
    """Checkpoint tensors to a nested dict of parameters.

    Args:
      tensors: arrays by checkpoint name.
      table: rows; the first that matches a whole name counts.
      target_shapes: nested dict with the wanted parameters' shapes (arrays or ShapeDtypeStructs).
      partial: leave out what is missing or unused instead of refusing. Wrong shapes are always
        refused.

    Returns:
      Nested dict of arrays in the tensors' dtypes.

    Raises:
      VidlatentError: names everything unused, missing and misshaped at once.
    """
    wanted = {path: tuple(leaf.shape) for path, leaf in flatten(target_shapes).items()}
    rows = [(re.compile(source), target, transform) for source, target, transform in table]
    found: dict[str, np.ndarray] = {}
    unused, misshaped = [], []
    for name, tensor in tensors.items():
        path, transform = _target_of(name, rows)
        if path not in wanted:
            unused.append(name)
            continue
        array = _forward(transform, tensor, wanted[path])
        if array is None or array.shape != wanted[path]:
            misshaped.append(f"{name} {tuple(tensor.shape)} for {path} {wanted[path]}")
        # A misshaped tensor is not also counted as missing.
        found[path] = array
    missing = [path for path in wanted if path not in found]
    problems = [("misshaped", misshaped)]
    if not partial:
        problems += [("missing", missing), ("unused", unused)]
    if any(names for _, names in problems):
        raise VidlatentError("the weights do not fit the model: " + _summary(problems))
    return _nest(found)


def export_params(params: Mapping[str, Any], table: Sequence[Row]) -> dict[str, Any]:
    """Nested parameters to arrays by checkpoint name: the inverse of ``import_params``.

    Works on NumPy and JAX arrays, and on tracers (see ``export_names``).

    Raises:
      VidlatentError: parameters that no row covers, by path.
    """
    rows = [_inverted(row) for row in table]
    tensors, lost = {}, []
    for path, leaf in flatten(params).items():
        for pattern, template, transform in rows:
            match = pattern.fullmatch(path)
            if match:
                tensors[template.format(**match.groupdict())] = TRANSFORMS[transform][1](leaf)
                break
        else:
            lost.append(path)
    if lost:
        raise VidlatentError("the export table lacks rows: " + _summary([("uncovered", lost)]))
    return tensors


def export_names(params: Mapping[str, Any], table: Sequence[Row]) -> dict[str, tuple[int, ...]]:
    """Checkpoint name to shape, from arrays or ShapeDtypeStructs, moving no data."""
    # Zero-stride stand-ins: transposing and indexing them allocates nothing.
    hollow = {
        path: np.broadcast_to(np.int8(0), leaf.shape) for path, leaf in flatten(params).items()
    }
    return {name: tuple(x.shape) for name, x in export_params(_nest(hollow), table).items()}


def _target_of(name: str, rows: Iterable[tuple[re.Pattern[str], str, str]]) -> tuple[str, str]:
    for pattern, target, transform in rows:
        match = pattern.fullmatch(name)
        if match:
            return target.format(**match.groupdict()), transform
    return "", ""


def _forward(transform: str, tensor: Any, shape: Sequence[int]) -> Any:
    """The tensor in our layout, or None where its rank or size cannot be arranged so."""
    try:
        return TRANSFORMS[transform][0](tensor, shape)
    except (ValueError, IndexError):
        return None


def _inverted(row: Row) -> tuple[re.Pattern[str], str, str]:
    source, target, transform = row
    groups = dict(_GROUP.findall(source))
    template = _GROUP.sub(r"{\1}", source).replace("[.]", ".")
    seen: set[str] = set()

    def group(match: re.Match[str]) -> str:
        name = match[1]
        if name in seen:
            return f"(?P={name})"
        seen.add(name)
        return f"(?P<{name}>{groups[name]})"

    return re.compile(_FIELD.sub(group, target)), template, transform


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[leaf] = value
    return tree


def _summary(problems: Sequence[tuple[str, Sequence[str]]]) -> str:
    parts = []
    for kind, names in problems:
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            parts.append(f"{len(names)} {kind}: {', '.join(names[:_SHOWN])}{more}")
    return "; ".join(parts) + "."
