"""Meshes; all of them are built here.

Axes, outermost first:

* ``data``: the batch, with whole parameters on each device (spans slices or hosts);
* ``fsdp``: the batch too, with parameters and optimizer state sharded along it;
* ``context``: image height inside tokenizers, tokens inside transformers;
* ``tensor``: output channels inside transformers, image height again inside tokenizers.

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
    """Axis sizes in the order of ``AXES``; one of them may be -1: all remaining devices."""
    values = [int(sizes[name]) for name in AXES]
    wild = [i for i, value in enumerate(values) if value == -1]
    if len(wild) > 1 or any(value < 1 and value != -1 for value in values):
        raise VidlatentError(
            f"config.mesh {dict(sizes)}: every axis is a positive size and at most one of them -1."
        )
    if wild:
        rest = math.prod(value for value in values if value != -1)
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

    If the topology of the hardware is known, inner axes connect near neighbours; otherwise devices
    stay in their order.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = resolve_sizes(sizes, len(devices))
    if devices[0].platform == "tpu":
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        grid = mesh_utils.create_device_mesh(shape, devices)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def mesh_for_batches(sizes: Mapping[str, int], buckets: Sequence[Sequence[int]]) -> Mesh:
    """Mesh of all devices or, if an axis is -1, of as many as divide every batch.

    So a small batch can be trained on a large host: a batch of 4 uses four of eight chips, with a
    warning in the log.

    Args:
      sizes: ``config.mesh``.
      buckets: ``config.data.buckets``, each ending with its global batch. The loader checks them;
        malformed ones are ignored here.

    Raises:
      VidlatentError: the sizes are wrong, or a batch does not divide among the devices and no axis
        can shrink, because all sizes are given or because several processes need their devices.
    """
    devices = jax.devices()
    batches = sorted({int(row[3]) for row in buckets if len(row) == 4 and row[3] >= 1})
    shape = dict(zip(AXES, resolve_sizes(sizes, len(devices)), strict=True))
    rows = shape["data"] * shape["fsdp"]
    if all(batch % rows == 0 for batch in batches):
        return make_mesh(sizes)
    named = ", ".join(map(str, batches))
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
    """Mesh of those of this process's devices that divide all batches, with whole parameters."""
    devices = jax.local_devices()
    count = math.gcd(len(devices), *batches)
    return make_mesh({**dict.fromkeys(AXES, 1), "data": count}, devices[:count])


def mesh_of_rows(mesh: Mesh) -> Mesh:
    """A mesh of the same devices with all of them on the axis of image height, ``context``.

    It is for one video at a time, which has no batch for ``data`` and ``fsdp`` to divide.
    """
    if mesh.shape["context"] == mesh.size:
        return mesh
    sizes = {**dict.fromkeys(AXES, 1), "context": mesh.size}
    return make_mesh(sizes, list(mesh.devices.flat))
