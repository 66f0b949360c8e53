"""Translate names and layouts of published checkpoints to ours and back, by tables.

A table is a list of rows ``(source, target, transform)``. ``source`` is a regular expression with
named groups for the whole checkpoint name, ``target`` the parameter path with the same groups in
braces::

    (r"(?P<side>encoder|decoder)[.]conv_in[.]weight", "{side}/conv_in/kernel", "conv3d")

The same row exports: the target becomes the regular expression and the source the template. To make
that possible a source may hold only literal text, ``[.]`` for a dot, and named groups without inner
groups. A field written ``#{i}`` counts the layers of a stack: ``blocks/#{i}/norm/scale`` is entry
``i`` of the stacked parameter ``blocks/norm/scale``. A tuple of targets says that the tensor is
their concatenation along its first axis. The transform ``'drop'`` (with an empty target) marks
tensors that are not needed, such as counters. Tables stand beside their models, as ``names.py``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vidlatent.errors import VidlatentError
from vidlatent.nested import flatten, unflatten

__all__ = [
    "TRANSFORMS",
    "Row",
    "count_known",
    "export_names",
    "export_params",
    "import_params",
]

Row = tuple[str, str | tuple[str, ...], str]

_GROUP = re.compile(r"\(\?P<(\w+)>([^()]*)\)")
_FIELD = re.compile(r"\{(\w+)\}")
_SHOWN = 12  # names of each kind in an error


def _import_grouped(x: Any, shape: Sequence[int] | None) -> Any:
    """``(G * O, I, 1, 1) -> [G, I, O]``; without the target's shape it assumes I = O."""
    groups, inputs, outputs = shape or (x.shape[0] // x.shape[1], x.shape[1], x.shape[1])
    return x.reshape(groups, outputs, inputs).transpose(0, 2, 1)


def _export_grouped(x: Any) -> Any:
    groups, inputs, outputs = x.shape
    return x.transpose(0, 2, 1).reshape(groups * outputs, inputs, 1, 1)


def _import_halves(x: Any, shape: Sequence[int] | None) -> Any:
    """``(K d [, I]) -> [[I,] K, d]``; channels ``2j, 2j + 1`` of a head go to ``j, j + d / 2``.

    Published weights rotate neighbouring channels, ``kernels.qk_norm_rope`` rotates halves.
    """
    if shape is None:
        raise ValueError("only the target's shape gives the number of heads")
    x = x.transpose(1, 0) if x.ndim == 2 else x
    heads, dim = shape[-2:]
    # [..., K, d / 2, 2] -> [..., K, 2, d / 2]: firsts of all pairs, then seconds.
    pairs = x.reshape(*x.shape[:-1], heads, dim // 2, 2)
    return pairs.swapaxes(-1, -2).reshape(*x.shape[:-1], heads, dim)


def _export_halves(x: Any) -> Any:
    heads, dim = x.shape[-2:]
    # [..., K, 2, d / 2] -> [..., K, d / 2, 2]
    pairs = x.reshape(*x.shape[:-2], heads, 2, dim // 2).swapaxes(-1, -2)
    pairs = pairs.reshape(*x.shape[:-2], heads * dim)
    return pairs.transpose(1, 0) if pairs.ndim == 2 else pairs


def _drop_kernel_axes(x: Any, rank: int) -> Any:
    """``(O, I, 1, 1 [, 1]) -> (O, I)``; raises for larger kernels, whose taps would be lost."""
    if x.ndim != rank or x.shape[2:] != (1,) * (rank - 2):
        raise ValueError(f"shape {x.shape} is no 1x1 kernel of rank {rank}")
    return x.reshape(x.shape[:2])


# name -> (checkpoint layout to ours given the target shape, ours to checkpoint layout)
TRANSFORMS: dict[str, tuple[Callable[[Any, Sequence[int] | None], Any], Callable]] = {
    "copy": (lambda x, shape: x, lambda x: x),
    # Dense layer: (O, I) and [I, O].
    "dense": (lambda x, shape: x.transpose(1, 0), lambda x: x.transpose(1, 0)),
    # Kernel, bias or scale of queries and keys with rotary positions: (K d [, I]) and [[I,] K, d].
    "halves": (_import_halves, _export_halves),
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
        lambda x, shape: _drop_kernel_axes(x, 4).transpose(1, 0),
        lambda x: x.transpose(1, 0)[:, :, None, None],
    ),
    "pointwise3d": (
        lambda x, shape: _drop_kernel_axes(x, 5).transpose(1, 0),
        lambda x: x.transpose(1, 0)[:, :, None, None, None],
    ),
    # Per-channel scales: (C, 1, 1 [, 1]) and [C].
    "scale2d": (lambda x, shape: x[:, 0, 0], lambda x: x[:, None, None]),
    "scale3d": (lambda x, shape: x[:, 0, 0, 0], lambda x: x[:, None, None, None]),
    # Grouped 1x1 convolution: (G * O, I, 1, 1) and [G, I, O].
    "grouped2d": (_import_grouped, _export_grouped),
}


def import_params(
    tensors: Mapping[str, np.ndarray],
    table: Sequence[Row],
    target_shapes: Mapping[str, Any] | None,
    *,
    partial: bool = False,
    hints: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Checkpoint tensors to a nested dict of parameters.

    Args:
      tensors: arrays by checkpoint name.
      table: rows; the first that matches the whole name is used.
      target_shapes: nested dict with the wanted parameters' shapes (arrays or ShapeDtypeStructs);
        None takes everything that the table knows, whatever its shape.
      partial: accept missing and unused tensors. Wrong shapes are always errors.
      hints: like ``target_shapes``, but only for layouts that the tensor alone does not determine;
        not checked.

    Returns:
      Nested dict of arrays in the tensors' dtypes.

    Raises:
      VidlatentError: names everything unused, missing and misshaped at once.
    """
    wanted = None if target_shapes is None else _shapes(target_shapes, table)
    # Some layouts (grouped convolutions, heads) cannot be told from the tensor alone.
    hints = wanted or _shapes(hints or {}, table)
    rows = _compile(table)
    found: dict[str, np.ndarray | None] = {}  # None: misshaped
    unused, misshaped = [], []
    for name, tensor in tensors.items():
        paths, transform = _find_targets(name, rows)
        if transform == "drop":
            continue
        if not paths or any(wanted is not None and path not in wanted for path in paths):
            unused.append(name)
            continue
        for path, part in zip(paths, _parts(tensor, len(paths)), strict=True):
            shape = None if wanted is None else wanted[path]
            array = None if part is None else _forward(transform, part, hints.get(path))
            if array is None or shape not in (None, array.shape):
                misshaped.append(f"{name} {tuple(tensor.shape)} for {path} {shape or ''}".rstrip())
            # A misshaped tensor is not also counted as missing.
            found[path] = array
    missing = [path for path in wanted or () if path not in found]
    problems = [("misshaped", misshaped)]
    if not partial:
        problems += [("missing", missing), ("unused", unused)]
    if any(names for _, names in problems):
        raise VidlatentError("the weights do not fit the model: " + _summary(problems))
    return unflatten(_stack(found))


def _shapes(tree: Mapping[str, Any], table: Sequence[Row]) -> dict[str, tuple[int, ...]]:
    """Path to shape, layers of a stack one by one."""
    hollow = {path: _Shape(leaf.shape) for path, leaf in flatten(tree).items()}
    return {path: leaf.shape for path, leaf in _unstack(hollow, table).items()}


def export_params(params: Mapping[str, Any], table: Sequence[Row]) -> dict[str, Any]:
    """Nested parameters to arrays by checkpoint name: the inverse of ``import_params``.

    Works on NumPy and JAX arrays, and on tracers (see ``export_names``).

    Raises:
      VidlatentError: parameters that no row covers, by path.
    """
    # Dropped tensors cannot be written again; readers of these files do without them.
    rows = [entry for row in table if row[2] != "drop" for entry in _invert(row)]
    tensors, lost = {}, []
    parts: dict[str, dict[int, tuple[str, Any]]] = {}
    for path, leaf in _unstack(flatten(params), table).items():
        for pattern, template, transform, place, count in rows:
            match = pattern.fullmatch(path)
            if match:
                name, tensor = template.format(**match.groupdict()), TRANSFORMS[transform][1](leaf)
                if count == 1:
                    tensors[name] = tensor
                else:
                    group = parts.setdefault(name, {})
                    group[place] = (path, tensor)
                    # A tensor of several parts is joined when the last of them is there.
                    tensors[name] = group if len(group) < count else _join(group)
                break
        else:
            lost.append(path)
    # A tensor whose other parts are absent cannot be written.
    lost += [path for t in tensors.values() if isinstance(t, dict) for path, _ in t.values()]
    if lost:
        raise VidlatentError("the export table lacks rows: " + _summary([("uncovered", lost)]))
    return tensors


def export_names(params: Mapping[str, Any], table: Sequence[Row]) -> dict[str, tuple[int, ...]]:
    """Checkpoint name to shape, from arrays or ShapeDtypeStructs, moving no data."""
    # Arrays with zero strides: transposing and indexing them allocates nothing.
    hollow = {
        path: np.broadcast_to(np.int8(0), leaf.shape) for path, leaf in flatten(params).items()
    }
    return {name: tuple(x.shape) for name, x in export_params(unflatten(hollow), table).items()}


def count_known(tensors: Mapping[str, Any], table: Sequence[Row]) -> int:
    """How many tensors a table knows by name and rank, to find out which naming a file uses."""
    rows = _compile(table)

    def known(name, tensor):
        paths, transform = _find_targets(name, rows)
        # Dropped tensors count as known, whatever their shape.
        if not paths or transform == "drop":
            return bool(paths)
        part = _parts(tensor, len(paths))[0]
        # Two namings may use one name for layers of different rank.
        return part is not None and _forward(transform, part, None) is not None

    return sum(known(name, tensor) for name, tensor in tensors.items())


_Compiled = Sequence[tuple[re.Pattern[str], tuple[str, ...], str]]


def _compile(table: Sequence[Row]) -> _Compiled:
    return [(re.compile(source), _tuple(target), transform) for source, target, transform in table]


def _tuple(target: str | tuple[str, ...]) -> tuple[str, ...]:
    return (target,) if isinstance(target, str) else target


def _find_targets(name: str, rows: _Compiled) -> tuple[tuple[str, ...], str]:
    for pattern, targets, transform in rows:
        match = pattern.fullmatch(name)
        if match:
            return tuple(target.format(**match.groupdict()) for target in targets), transform
    return (), ""


def _parts(tensor: Any, count: int) -> Sequence[Any]:
    """Equal parts along the first axis; Nones if it does not divide."""
    if count == 1:
        return (tensor,)
    if not tensor.shape or tensor.shape[0] % count:
        return (None,) * count
    size = tensor.shape[0] // count
    return [tensor[i * size : (i + 1) * size] for i in range(count)]


def _join(group: Mapping[int, tuple[str, Any]]) -> Any:
    arrays = [group[place][1] for place in sorted(group)]
    traced = any(isinstance(array, jax.Array) for array in arrays)
    return (jnp if traced else np).concatenate(arrays)


def _forward(transform: str, tensor: Any, shape: Sequence[int] | None) -> Any:
    """The tensor in our layout, or None if its rank or size does not fit the transform."""
    try:
        return TRANSFORMS[transform][0](tensor, shape)
    except (ValueError, IndexError):
        return None


def _invert(row: Row) -> list[tuple[re.Pattern[str], str, str, int, int]]:
    """``(path pattern, name template, transform, place, places)`` for each target of a row."""
    source, targets, transform = row
    targets = _tuple(targets)
    return [
        (*_invert_pattern(source, target), transform, place, len(targets))
        for place, target in enumerate(targets)
    ]


def _invert_pattern(source: str, target: str) -> tuple[re.Pattern[str], str]:
    groups = dict(_GROUP.findall(source))
    template = _GROUP.sub(r"{\1}", source).replace("[.]", ".")
    seen: set[str] = set()

    def group(match: re.Match[str]) -> str:
        name = match[1]
        if name in seen:
            # A field that stands twice must be the same text in both places: a back reference.
            return f"(?P={name})"
        seen.add(name)
        return f"(?P<{name}>{groups[name]})"

    return re.compile(_FIELD.sub(group, target)), template


class _Shape:
    """Only the shape of an array; indexing removes the first axis."""

    def __init__(self, shape: Sequence[int]):
        self.shape = tuple(shape)

    def __getitem__(self, layer: int) -> _Shape:
        return _Shape(self.shape[1:])


def _unstack(flat: Mapping[str, Any], table: Sequence[Row]) -> dict[str, Any]:
    """Stacked leaves as one entry for each layer, under ``prefix#layer/rest``."""
    targets = [target for row in table for target in _tuple(row[1])]
    prefixes = {target.partition("#")[0] for target in targets if "#" in target}
    result = {}
    for path, leaf in flat.items():
        prefix = next((p for p in prefixes if path.startswith(p)), None)
        if prefix is None or not leaf.shape:
            result[path] = leaf
        else:
            rest = path.removeprefix(prefix)
            result |= {f"{prefix}#{i}/{rest}": leaf[i] for i in range(leaf.shape[0])}
    return result


def _stack(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of ``_unstack``; a stack with gaps or unequal layers is an error."""
    result: dict[str, Any] = {}
    layers: dict[str, dict[int, Any]] = {}
    for path, leaf in flat.items():
        prefix, mark, rest = path.partition("#")
        if not mark:
            result[path] = leaf
            continue
        layer, _, rest = rest.partition("/")
        layers.setdefault(prefix + rest, {})[int(layer)] = leaf
    for path, found in layers.items():
        parts = [found[i] for i in sorted(found)]
        if max(found) != len(found) - 1 or len({part.shape for part in parts}) > 1:
            raise VidlatentError(
                f"the weights hold layers {sorted(found)} of {path}: they must be 0, 1, ... "
                "without a gap and of one shape."
            )
        result[path] = np.stack(parts)
    return result


def _summary(problems: Sequence[tuple[str, Sequence[str]]]) -> str:
    parts = []
    for kind, names in problems:
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            parts.append(f"{len(names)} {kind}: {', '.join(names[:_SHOWN])}{more}")
    return "; ".join(parts) + "."
