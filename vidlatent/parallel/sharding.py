"""Shardings of arrays: parameters by their paths, activations by the names of their axes.

Models do not declare shardings. Rules on parameter paths (``PARAM_RULES``) place the parameters, so
a new model needs no annotation. Blocks call ``constrain`` on the activations at their borders,
which does nothing when no mesh is set.

What parameter names mean here, for authors of models:

* Only parameters called ``kernel`` are sharded. Everything else (biases, scales, tables,
  modulations) is expected to be small and is replicated, so call every large matrix ``kernel``.
* The last two axes of a kernel are ``(inputs, outputs)``. Axes before them (layers of a scan, the
  window of a convolution) are never sharded.
* A kernel with five axes, ``[kt, kh, kw, inputs, outputs]``, is a convolution and is sharded by its
  inputs, wherever it is. Write 1-D and 2-D convolutions in this form, with windows of 1: a kernel
  with fewer axes counts as a matrix, unless it is in ``encoder`` or ``decoder``.
* Everything in modules called ``encoder`` and ``decoder`` is sharded by its inputs only, because
  there the tensor axis shards the height of the frames.
* ``patch_embedding`` and ``content_embedding`` are treated as matrix products over patches, not as
  convolutions.
* ``self_attn/q`` and ``self_attn/k`` have kernels ``[..., inputs, heads, head width]`` and are
  sharded by heads. ``o`` and ``fc2`` are sharded by their inputs, the axis that the layers before
  them shard (heads, hidden channels), so that devices only exchange sums (an all-reduce).
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
    "HEADS",
    "PARAM_RULES",
    "Rule",
    "batch_sharding",
    "constrain",
    "constrain_param",
    "find_rule",
    "gathered",
    "has_few_rows",
    "keep_rows",
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
    """How to shard the parameters that a path expression matches.

    Attributes:
      pattern: path expression, see ``parallel.paths``.
      axes: for each of the last array axes, the mesh axes that shard it; None keeps it whole.
      ndim: number of array axes the parameter must have; None: any.
    """

    pattern: str
    axes: tuple[str | tuple[str, ...] | None, ...]
    ndim: int | None = None


HEADS = r".*self_attn/[qk]/kernel$"  # kernels [..., inputs, heads, head width]
# Last part of the path of what is added to a parameter (weights.lora), which lies as that does.
WHOLE = "lora_full"

# The first rule that matches is used. Kernels end in (inputs, outputs): FSDP shards the inputs and
# tensor parallelism the outputs. Where the layer before has sharded its outputs (o, fc2), tensor
# parallelism shards the inputs instead, so that devices only exchange sums.
#
# In tokenizers the tensor axis shards height as well. Once height is sharded, XLA's partitioner
# (jax 0.10.2) computes convolutions wrongly in two cases, which these rules avoid: a kernel sharded
# by output channels, and a mesh axis that shards neither batch nor height (the kernel's gradient
# is then too large by the factor of that axis' size). In a third case, frames of a few rows with a
# kernel that is sharded by its inputs, the output is wrong: convolutions gather their kernels first
# (``gathered``). In a fourth, a device holds fewer rows than the window has while another axis
# shards the batch: XLA may share out the window's rows and sum over all devices of the mesh, so
# such convolutions see whole frames (``kernels.conv3d``). tests/parallel/test_conv_partitioning.py
# checks the layouts that are used.
PARAM_RULES: tuple[Rule, ...] = (
    # Factors [inputs, rank] and [rank, outputs] of an adapted kernel (weights.lora).
    Rule(r".*kernel/lora_a$", ("fsdp", None)),
    Rule(r".*kernel/lora_b$", (None, "fsdp")),
    Rule(r"(.*/)?(encoder|decoder)/.*kernel$", ("fsdp", None)),
    Rule(r"(.*/)?(patch|content)_embedding/kernel$", ("fsdp", "tensor")),
    Rule(r".*kernel$", ("fsdp", None), ndim=5),
    # [inputs, heads, head width]: a head stays whole on its device.
    Rule(HEADS, ("fsdp", "tensor", None)),
    Rule(r"(.*/)?(o|fc2)/kernel$", (("tensor", "fsdp"), None)),
    Rule(r".*kernel$", ("fsdp", "tensor")),
)

# Logical activation axes -> mesh axes.
ACTIVATION_AXES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "height": ("context", "tensor"),
    "tokens": ("context",),
    # Batch and tokens merged into one axis, for attention along time.
    "rows": ("data", "fsdp", "context"),
    "channel": (),
    "heads": ("tensor",),
    "time": (),
    "width": (),
}

# A context variable, so that a thread that traces something else is not affected.
_UNEVEN = contextvars.ContextVar("uneven_rows", default=False)


def _divides(mesh: Any, size: int, axes: Sequence[str]) -> bool:
    return size % math.prod(mesh.shape[axis] for axis in axes) == 0


def find_rule(
    name: str, ndim: int, rules: Sequence[Rule] = PARAM_RULES
) -> tuple[str | tuple[str, ...] | None, ...]:
    """Mesh axes for the last array axes of the parameter ``name``; ``()`` replicates it."""
    name = name.removesuffix(f"/{WHOLE}")
    for rule in rules:
        if rule.ndim in (None, ndim) and match_path(rule.pattern, name, "the sharding rule"):
            return rule.axes
    return ()


def _make_param_spec(
    mesh: Mesh | AbstractMesh, name: str, shape: Sequence[int], rules: Sequence[Rule]
) -> P:
    axes = find_rule(name, len(shape), rules)
    # A kernel may have fewer axes than its rule, which counts from the last one.
    axes = axes[max(0, len(axes) - len(shape)) :]
    spec = [None] * (len(shape) - len(axes)) + list(axes)
    for i, entry in enumerate(spec):
        # Drop mesh axes until the size divides: 3 input channels cannot be sharded 8 ways.
        split = _list_axes(entry)
        while split and not _divides(mesh, shape[i], split):
            split = split[1:]
        spec[i] = _make_entry(split)
    return P(*spec)


def _list_axes(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else entry or ()


def _make_entry(axes: tuple[str, ...]) -> str | tuple[str, ...] | None:
    return axes if len(axes) > 1 else axes[0] if axes else None


def shardings(tree: Any, mesh: Mesh | AbstractMesh, whole: Sequence[str] = ()) -> Any:
    """NamedShardings for a pytree of arrays or ShapeDtypeStructs, by the rules on paths.

    The paths of optimizer moments and EMA weights end like those of their parameters, so one set of
    rules shards the whole training state.

    Args:
      tree: parameters, or a training state.
      mesh: mesh to place them on.
      whole: top-level names of parts to replicate on every device.
    """
    # In front, because the first rule that matches is used.
    rules = (*(Rule(f"{name}/", ()) for name in whole), *PARAM_RULES)

    def place(path, leaf):
        return NamedSharding(mesh, _make_param_spec(mesh, path_name(path), leaf.shape, rules))

    return jax.tree_util.tree_map_with_path(place, tree)


def with_shardings(abstract: Any, where: Any) -> Any:
    """Shapes and dtypes of ``abstract`` as ShapeDtypeStructs with shardings.

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
    """Sharding of a batch ``[B, ...]``: the leading axis over ``data`` and ``fsdp``."""
    return NamedSharding(mesh, P(ACTIVATION_AXES["batch"]))


def constrain(x: jax.Array, names: Sequence[str]) -> jax.Array:
    """Constrain an activation's sharding by the names of its axes; a no-op without a mesh.

    An axis without mesh axes, or whose size they do not divide, is not sharded. Inside
    ``uneven_rows`` the height is sharded even if it does not divide.

    Args:
      x: any activation.
      names: a name of ``ACTIVATION_AXES`` for each axis of ``x``.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    spec = [split_axes(name, size) for size, name in zip(x.shape, names, strict=True)]
    if _UNEVEN.get() and "height" in names:
        spec[names.index("height")] = ACTIVATION_AXES["height"]
    return jax.lax.with_sharding_constraint(x, P(*spec))


def constrain_param(x: jax.Array, name: str) -> jax.Array:
    """Constrain a computed parameter's sharding to that of the parameter ``name``.

    A no-op without a mesh.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, _make_param_spec(mesh, name, x.shape, PARAM_RULES))


def has_few_rows(height: int, window: int) -> bool:
    """Whether a device would hold fewer rows of a frame than a convolution's window has.

    Only where the mesh has other axes than those of the height: without, XLA is right.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.manual_axes:  # inside shard_map a device sees its own rows
        return False
    pieces = math.prod(mesh.shape.get(axis, 1) for axis in ACTIVATION_AXES["height"])
    return 1 < pieces < mesh.size and window > 1 and height < window * pieces


def keep_rows(x: jax.Array) -> jax.Array:
    """Constrain ``[B, T, H, W, C]`` to whole frames on each device; the batch stays sharded."""
    return constrain(x, ("batch", "time", "width", "width", "channel"))


def gathered(kernel: jax.Array, name: str, batch: int) -> jax.Array:
    """All-gather a parameter along ``fsdp`` before it multiplies an array of ``batch`` samples.

    Without this, XLA gathers the parameter anew for each product: about three times a step for a
    layer that is recomputed in the backward pass. With it, it gathers once in the forward pass and
    once in the backward pass, in the dtype of ``kernel`` (a loop without remat keeps the gathered
    kernel in between). The gradient is sharded again at once, by a reduce-scatter.

    The kernel is returned unchanged if there is no mesh, if it is not sharded, or if the batch is
    not (a sampler's batch of one): with gathered kernels every device would repeat the same work.

    Args:
      kernel: the parameter, already cast to the dtype of the product.
      name: its path, for ``PARAM_RULES``.
      batch: size of the first axis of the array it is multiplied with.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or split_axes("batch", batch) is None:
        return kernel
    spec = _make_param_spec(mesh, name, kernel.shape, PARAM_RULES)
    if mesh.shape["fsdp"] == 1 or not any("fsdp" in _list_axes(entry) for entry in spec):
        return kernel
    return _gather(spec, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gather(spec: P, kernel: jax.Array) -> jax.Array:
    # Gathered along fsdp only: the parts along tensor stay where they are.
    rest = P(*(_make_entry(tuple(a for a in _list_axes(entry) if a != "fsdp")) for entry in spec))
    return jax.lax.with_sharding_constraint(kernel, rest)


def _gather_forward(spec: P, kernel: jax.Array) -> tuple[jax.Array, None]:
    return _gather(spec, kernel), None


def _gather_backward(spec: P, kept: None, cotangent: jax.Array) -> tuple[jax.Array]:
    del kept
    # Split at once, so that the sum over the batch can be a reduce-scatter and no device
    # holds the whole gradient.
    return (jax.lax.with_sharding_constraint(cotangent, spec),)


_gather.defvjp(_gather_forward, _gather_backward)


@contextlib.contextmanager
def uneven_rows() -> Iterator[None]:
    """Shard heights that do not divide as well; the last devices then hold fewer rows, or none.

    This applies to what is traced inside, which must be forward computations only. Arguments and
    results of a compiled program still must divide; ``pad_rows`` pads them.
    """
    token = _UNEVEN.set(True)
    try:
        yield
    finally:
        _UNEVEN.reset(token)


def pad_rows(x: jax.Array) -> jax.Array:
    """Pad ``[B, T, H, W, C]`` with zero rows at the bottom until the height can be sharded.

    A no-op without a mesh.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    axes = ACTIVATION_AXES["height"]
    # Rows of zeros; whoever takes the result cuts them off.
    below = -x.shape[2] % ways(axes)
    x = jnp.pad(x, ((0, 0), (0, 0), (0, below), (0, 0), (0, 0))) if below else x
    return jax.lax.with_sharding_constraint(x, P(split_axes("batch", x.shape[0]), None, axes))


def split_axes(name: str, size: int) -> tuple[str, ...] | None:
    """Axes of the current mesh that shard an activation axis; None if it is not sharded."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = ACTIVATION_AXES[name]
    return axes if axes and not mesh.empty and _divides(mesh, size, axes) else None


def ways(axes: Sequence[str] | None) -> int:
    """Into how many shards these axes of the current mesh divide an array; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape[axis] for axis in axes or ())


def spreads(name: str, *sizes: int) -> bool:
    """Whether the current mesh can shard axes of this name in all of these sizes."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = ACTIVATION_AXES[name]
    return not mesh.empty and all(_divides(mesh, size, axes) for size in sizes)
