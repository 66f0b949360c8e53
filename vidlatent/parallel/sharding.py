"""Where arrays live: parameters by path, activations by the names of their axes.

Models know nothing of shardings. Parameters are placed by rules on their paths (``PARAM_RULES``),
so a new model needs no annotation; activations are pinned with ``constrain`` at the borders of
blocks, which does nothing when no mesh is set.

For authors of models, what the names of parameters mean here:

* Only parameters called ``kernel`` are split over devices. Everything else (biases, scales,
  tables, modulations) is small and kept whole on each. A large matrix under another name would be,
  too: call it ``kernel``.
* The last two axes of a kernel are ``(inputs, outputs)``; axes before them (layers of a scan, the
  window of a convolution) are never split.
* Five axes, ``[kt, kh, kw, inputs, outputs]``, make a convolution: it is split by its inputs,
  wherever it stands. Write convolutions over fewer axes with windows of 1. With fewer axes a kernel
  outside of ``encoder`` and ``decoder`` counts as a matrix.
* Everything under modules called ``encoder`` and ``decoder`` is split by its inputs alone, since
  the devices of the tensor axis share the height of the frames there.
* ``patch_embedding`` and ``content_embedding`` are products of patches, not convolutions.
* ``self_attn/q`` and ``self_attn/k`` have kernels ``[..., inputs, heads, width of a head]`` and are
  split by heads; ``o`` and ``fc2`` read what others have split by their outputs (heads, hidden
  channels), so that only sums travel between devices.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vidlatent.parallel.paths import match_path, path_name

__all__ = [
    "PARAM_RULES",
    "Rule",
    "batch_sharding",
    "constrain",
    "find_rule",
    "gathered",
    "pad_rows",
    "replicated",
    "shardings",
    "split_axes",
    "spreads",
    "uneven_rows",
    "ways",
    "with_shardings",
]


class Rule(NamedTuple):
    """Where parameters of some paths are split.

    Attributes:
      pattern: path expression, see ``parallel.paths``.
      axes: for each of the last array axes, the mesh axes that split it; None keeps it whole.
      ndim: number of array axes that the parameter must have; None: any.
    """

    pattern: str
    axes: tuple[str | tuple[str, ...] | None, ...]
    ndim: int | None = None


# The first rule that fits counts. Kernels end in (inputs, outputs): FSDP splits the inputs, tensor
# parallelism the outputs; the inputs, too, where those are what another kernel has split, so that
# nothing but sums is sent.
#
# Tokenizers spend the tensor axis on height too. XLA's partitioner (jax 0.10.2) gives wrong
# convolutions in two cases that a mesh must not get into once height is sharded: a kernel sharded
# by output channels, and a mesh axis that shards neither batch nor height (the kernel's gradient
# then comes out multiplied by that axis' size). tests/parallel/test_conv_partitioning.py holds the
# layouts that are right.
PARAM_RULES: tuple[Rule, ...] = (
    Rule(r"(.*/)?(encoder|decoder)/.*kernel$", ("fsdp", None)),
    Rule(r"(.*/)?(patch|content)_embedding/kernel$", ("fsdp", "tensor")),
    Rule(r".*kernel$", ("fsdp", None), ndim=5),
    Rule(r".*self_attn/[qk]/kernel$", ("fsdp", "tensor", None)),
    Rule(r"(.*/)?(o|fc2)/kernel$", (("tensor", "fsdp"), None)),
    Rule(r".*kernel$", ("fsdp", "tensor")),
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


def _divides(mesh: Any, size: int, axes: Sequence[str]) -> bool:
    return size % math.prod(mesh.shape[axis] for axis in axes) == 0


def find_rule(
    name: str, ndim: int, rules: Sequence[Rule] = PARAM_RULES
) -> tuple[str | tuple[str, ...] | None, ...]:
    """Mesh axes of the last array axes of the parameter ``name``; ``()``: it is kept whole."""
    for rule in rules:
        if rule.ndim in (None, ndim) and match_path(rule.pattern, name, "the sharding rule"):
            return rule.axes
    return ()


def _param_spec(
    mesh: Mesh | AbstractMesh, name: str, shape: Sequence[int], rules: Sequence[Rule]
) -> P:
    axes = find_rule(name, len(shape), rules)
    axes = axes[max(0, len(axes) - len(shape)) :]
    spec = [None] * (len(shape) - len(axes)) + list(axes)
    for i, entry in enumerate(spec):
        # What does not divide is left whole: a 3-channel input cannot be split in 8.
        split = _axes(entry)
        while split and not _divides(mesh, shape[i], split):
            split = split[1:]
        spec[i] = _entry(split)
    return P(*spec)


def _axes(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else entry or ()


def _entry(axes: tuple[str, ...]) -> str | tuple[str, ...] | None:
    return axes if len(axes) > 1 else axes[0] if axes else None


def shardings(tree: Any, mesh: Mesh, whole: Sequence[str] = ()) -> Any:
    """NamedShardings for a pytree of arrays or ShapeDtypeStructs, by path.

    Optimizer moments and EMA copies repeat the parameters' paths as a suffix, so one set of rules
    places the whole training state.

    Args:
      tree: parameters, or a training state.
      mesh: where they go.
      whole: top-level names of parts that each device holds whole.
    """
    rules = (*(Rule(f"{name}/", ()) for name in whole), *PARAM_RULES)

    def place(path, leaf):
        return NamedSharding(mesh, _param_spec(mesh, path_name(path), leaf.shape, rules))

    return jax.tree_util.tree_map_with_path(place, tree)


def with_shardings(abstract: Any, where: Any) -> Any:
    """Shapes and dtypes of ``abstract`` as ShapeDtypeStructs that say where they live.

    Args:
      abstract: pytree of arrays or ShapeDtypeStructs.
      where: a sharding for all leaves, or a tree of them.
    """
    if isinstance(where, jax.sharding.Sharding):
        where = jax.tree.map(lambda _: where, abstract)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        where,
    )


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
