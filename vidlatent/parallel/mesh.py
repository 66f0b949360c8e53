"""Device meshes; all of them are built here.

Axes, outermost first:

* ``data``: shards the batch and replicates parameters (may span slices or hosts);
* ``fsdp``: shards the batch too, and parameters and optimizer state;
* ``context``: shards image height in tokenizers, tokens in transformers;
* ``tensor``: shards output channels in transformers, and image height again in tokenizers.

Axis types are Auto: XLA propagates shardings from the parameters' specs and the activations'
constraints, so that a convolution sharded by height becomes a halo exchange. (JAX's own
``make_mesh`` defaults to Explicit types, which do not allow such reshapes.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import jax
from absl import logging
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from vidlatent.errors import VidlatentError

__all__ = ["AXES", "local_mesh", "make_mesh", "mesh_for_batches", "mesh_of_rows", "resolve_sizes"]

AXES = ("data", "fsdp", "context", "tensor")


def resolve_sizes(sizes: Mapping[str, int], devices: int) -> tuple[int, ...]:
    """Axis sizes in the order of ``AXES``; a size of -1 becomes all remaining devices."""
    values = [int(sizes[name]) for name in AXES]
    wild = [i for i, value in enumerate(values) if value == -1]
    if len(wild) > 1 or any(value < 1 and value != -1 for value in values):
        raise VidlatentError(
            f"config.mesh {dict(sizes)}: every axis is a positive size and at most one of them -1."
        )
    if wild:
        rest = math.prod(value for value in values if value != -1)
        # At least 1; if the others ask for too many devices, the check below says so.
        values[wild[0]] = max(1, devices // rest)
    if math.prod(values) != devices:
        asked = " x ".join(f"{name} {value}" for name, value in zip(AXES, values, strict=True))
        raise VidlatentError(
            f"config.mesh asks for {asked} = {math.prod(values)} devices, but there are {devices}: "
            "set one axis to -1 to use all that remain."
        )
    return tuple(values)


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Mesh over ``devices`` (by default all) with axes ``AXES``.

    Where JAX knows the hardware's topology, inner axes connect near neighbours; otherwise devices
    keep their order.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = resolve_sizes(sizes, len(devices))
    if devices[0].platform == "tpu":
        # Without splitting, JAX refuses sizes that are no products of the torus' own axes.
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        grid = mesh_utils.create_device_mesh(shape, devices)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def mesh_for_batches(sizes: Mapping[str, int], buckets: Sequence[Sequence[int]]) -> Mesh:
    """Mesh of all devices or, if ``data`` or ``fsdp`` is -1, of as many as divide every batch.

    This allows small batches on a large host: a batch of 4 uses four of eight chips, and the log
    warns of the idle ones.

    Args:
      sizes: ``config.mesh``.
      buckets: ``config.data.buckets``, each ending with its global batch. The loader checks them;
        malformed ones are ignored here.

    Raises:
      VidlatentError: the sizes are wrong, or a batch does not divide among the devices and no axis
        can shrink: all sizes are given, or there are several processes, none of which may be left
        without a device.
    """
    devices = jax.devices()
    batches = sorted({int(row[3]) for row in buckets if len(row) == 4 and row[3] >= 1})
    shape = dict(zip(AXES, resolve_sizes(sizes, len(devices)), strict=True))
    rows = shape["data"] * shape["fsdp"]
    if all(batch % rows == 0 for batch in batches):
        return make_mesh(sizes)
    named = ", ".join(map(str, batches))
    # Only an axis that was left open (-1) may shrink, and the other must divide all batches.
    wild = next((name for name in ("data", "fsdp") if int(sizes[name]) == -1), None)
    other = rows // shape[wild] if wild else rows
    share = math.gcd(*batches)
    if wild is None or share % other or jax.process_count() > 1:
        raise VidlatentError(
            f"data.buckets has batches of {named} clips, which "
            f"do not divide among config.mesh.data x config.mesh.fsdp = {rows} devices: give "
            "batches that do, or more devices to config.mesh.context."
        )
    shape[wild] = math.gcd(share // other, shape[wild])
    count = math.prod(shape.values())
    logging.warning(
        "%d of %d devices stay idle: batches of %s clips divide among %d.",
        *(len(devices) - count, len(devices), named, shape["data"] * shape["fsdp"]),
    )
    return make_mesh(shape, devices[:count])


def local_mesh(batches: Sequence[int]) -> Mesh:
    """Data-parallel mesh of as many of this process's devices as divide all batch sizes."""
    devices = jax.local_devices()
    # Every device must get the same number of rows, in every bucket.
    count = math.gcd(len(devices), *batches)
    return make_mesh({**dict.fromkeys(AXES, 1), "data": count}, devices[:count])


def mesh_of_rows(mesh: Mesh) -> Mesh:
    """A mesh of the same devices with all of them on ``context``, the axis of image height.

    It serves single videos, which have no batch to shard over ``data`` and ``fsdp``.
    """
    if mesh.shape["context"] == mesh.size:
        return mesh
    sizes = {**dict.fromkeys(AXES, 1), "context": mesh.size}
    return make_mesh(sizes, list(mesh.devices.flat))
