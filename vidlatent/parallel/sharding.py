"""Where arrays live: parameters by path, activations by the names of their axes.

Models stay free of shardings. Parameters are placed by regular expressions on their path, so a
new model needs no annotation; activations are pinned with ``constrain`` at block borders, which
does nothing when no mesh is set.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

__all__ = [
    "PARAM_RULES",
    "batch_sharding",
    "constrain",
    "gathered",
    "pad_rows",
    "path_name",
    "replicated",
    "shardings",
    "split_axes",
    "spreads",
    "uneven_rows",
    "ways",
]

# (path regex, mesh axes of the trailing array axes). The first match counts. Kernels end in
# (in, out): FSDP shards the inputs, tensor parallelism the outputs; the inputs, too, where those
# are what another kernel has split (heads, hidden channels), so that nothing but sums is sent.
#
# Tokenizers spend the tensor axis on height too. XLA's partitioner (jax 0.10.2) gives wrong
# convolutions in two cases that a mesh must not get into once height is sharded: a kernel sharded
# by output channels, and a mesh axis that shards neither batch nor height (the kernel's gradient
# then comes out multiplied by that axis' size). tests/parallel/test_conv_partitioning.py holds the
# layouts that are right.
PARAM_RULES: tuple[tuple[str, tuple[str | tuple[str, ...] | None, ...]], ...] = (
    # Discriminators are small and stride with even kernels, which go wrong once their inputs are
    # sharded.
    (r"(^|/)discriminator/", ()),
    (r"(^|/)(encoder|decoder)/.*kernel$", ("fsdp", None)),
    (r"self_attn/[qk]/kernel$", ("fsdp", "tensor", None)),  # [..., inputs, heads, width of a head]
    (r"(^|/)(o|fc2)/kernel$", (("tensor", "fsdp"), None)),
    (r"kernel$", ("fsdp", "tensor")),
    (r".*", ()),
)

# Logical activation axes -> mesh axes.
ACTIVATION_AXES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "height": ("context", "tensor"),
    "tokens": ("context",),
    "rows": ("data", "fsdp", "context"),  # batch and tokens in one, where frames attend along time
    "channel": (),
    "heads": ("tensor",),
    "time": (),
    "width": (),
}

_UNEVEN = contextvars.ContextVar("uneven_rows", default=False)


def path_name(path: Sequence[Any]) -> str:
    """``encoder/conv_in/kernel`` for a key path of ``jax.tree_util``."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def _divides(mesh: Any, size: int, axes: Sequence[str]) -> bool:
    return size % math.prod(mesh.shape[axis] for axis in axes) == 0


def _param_spec(mesh: Mesh, name: str, shape: Sequence[int], rules: Sequence[Any]) -> P:
    for pattern, tail in rules:
        if re.search(pattern, name):
            tail = tail[max(0, len(tail) - len(shape)) :]
            spec = [None] * (len(shape) - len(tail)) + list(tail)
            for i, entry in enumerate(spec):
                # What does not divide is left whole: a 3-channel input cannot be split in 8.
                axes = _axes(entry)
                while axes and not _divides(mesh, shape[i], axes):
                    axes = axes[1:]
                spec[i] = _entry(axes)
            return P(*spec)
    return P()


def _axes(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else entry or ()


def _entry(axes: tuple[str, ...]) -> str | tuple[str, ...] | None:
    return axes if len(axes) > 1 else axes[0] if axes else None


def shardings(tree: Any, mesh: Mesh, rules: Sequence[Any] = PARAM_RULES) -> Any:
    """NamedShardings for a pytree of arrays or ShapeDtypeStructs, by path.

    Optimizer moments and EMA copies repeat the parameters' paths as a suffix, so one set of rules
    places the whole training state.
    """

    def place(path, leaf):
        return NamedSharding(mesh, _param_spec(mesh, path_name(path), leaf.shape, rules))

    return jax.tree_util.tree_map_with_path(place, tree)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading axis over ``data`` and ``fsdp``, everything else whole."""
    return NamedSharding(mesh, P(ACTIVATION_AXES["batch"]))


def constrain(x: jax.Array, names: Sequence[str]) -> jax.Array:
    """Pin an activation's layout by the names of its axes; a no-op without a mesh.

    An axis without a rule, or whose size does not divide by its mesh axes, is kept whole; inside
    ``uneven_rows`` the height is split all the same.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    spec = [split_axes(name, size) for size, name in zip(x.shape, names, strict=True)]
    if _UNEVEN.get() and "height" in names:
        spec[names.index("height")] = ACTIVATION_AXES["height"]
    return jax.lax.with_sharding_constraint(x, P(*spec))


def gathered(kernel: jax.Array, name: str, batch: int) -> jax.Array:
    """A parameter whole along ``fsdp``, for products with an array of ``batch`` samples.

    Left alone, the partitioner gathers for each product that it meets: a layer that is recomputed
    in the backward pass about three times a step. Gathered here, it is once forward and once
    backward, in the dtype that it comes in; a loop without remat keeps it whole in between. The
    cotangent is split at once, which is a reduce-scatter.

    Nothing is done without a mesh, for a parameter that is not split, and for a batch that is not
    (a sampler's of one): with whole kernels every device would do the work of all.

    Args:
      kernel: the parameter, cast to what it is multiplied in.
      name: its path, for ``PARAM_RULES``.
      batch: size of the first axis of what it is multiplied with.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or split_axes("batch", batch) is None:
        return kernel
    spec = _param_spec(mesh, name, kernel.shape, PARAM_RULES)
    if mesh.shape["fsdp"] == 1 or not any("fsdp" in _axes(entry) for entry in spec):
        return kernel
    return _whole(spec, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _whole(spec: P, kernel: jax.Array) -> jax.Array:
    rest = P(*(_entry(tuple(a for a in _axes(entry) if a != "fsdp")) for entry in spec))
    return jax.lax.with_sharding_constraint(kernel, rest)


def _whole_kept(spec: P, kernel: jax.Array) -> tuple[jax.Array, None]:
    return _whole(spec, kernel), None


def _whole_backward(spec: P, kept: None, cotangent: jax.Array) -> tuple[jax.Array]:
    del kept
    return (jax.lax.with_sharding_constraint(cotangent, spec),)


_whole.defvjp(_whole_kept, _whole_backward)


@contextlib.contextmanager
def uneven_rows() -> Iterator[None]:
    """Split heights that do not divide too: the last devices then hold fewer rows, or none.

    For what is traced inside, forward computations only. Arguments and results of a compiled
    program must divide; ``pad_rows`` sees to it.
    """
    token = _UNEVEN.set(True)
    try:
        yield
    finally:
        _UNEVEN.reset(token)


def pad_rows(x: jax.Array) -> jax.Array:
    """Zeros below ``[B, T, H, W, C]``, up to a height that divides; a no-op without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    axes = ACTIVATION_AXES["height"]
    below = -x.shape[2] % ways(axes)
    x = jnp.pad(x, ((0, 0), (0, 0), (0, below), (0, 0), (0, 0))) if below else x
    return jax.lax.with_sharding_constraint(x, P(None, None, axes))


def split_axes(name: str, size: int) -> tuple[str, ...] | None:
    """Axes of the mesh that is set which split an activation axis, or None to keep it whole."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = ACTIVATION_AXES[name]
    return axes if axes and not mesh.empty and _divides(mesh, size, axes) else None


def ways(axes: Sequence[str] | None) -> int:
    """Into how many parts these axes of the mesh that is set split something."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape[axis] for axis in axes or ())


def spreads(name: str, *sizes: int) -> bool:
    """Whether axes of this name and all of these sizes are split on the mesh that is set."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = ACTIVATION_AXES[name]
    return not mesh.empty and all(_divides(mesh, size, axes) for size in sizes)
