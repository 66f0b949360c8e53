"""Changes of a config that save memory, the smallest first."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from vidlatent.codec.options import Coding
from vidlatent.models.load import model_of
from vidlatent.parallel.sharding import ACTIVATION_AXES

__all__ = ["changed", "changes"]

_PIECES = (2, 4, 8, 16, 32, 64)
_SPLITS = (2, 4, 8, 16)


def changed(config: ConfigDict, overrides: Mapping[str, Any]) -> ConfigDict:
    """A copy with other values of some keys."""
    copy = config.copy_and_resolve_references()
    copy.update_from_flattened_dict(dict(overrides))
    return copy


def changes(
    config: ConfigDict, what: str, mesh: Mapping[str, int], bucket: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """Keys to set, from what costs least speed to what costs most; each is to be tried in turn.

    A batch that does not spread over the mesh first gets more devices to a clip. Then blocks are
    computed again in the backward pass instead of kept, then the batch is taken in pieces, one
    after another, then still more devices work on a clip. A codec on one device has no batch and no
    other device, but cuts frames up as it does where it finds little memory.

    Args:
      config: that does not fit.
      what: the program; only training has a batch to cut and gradients to recompute for.
      mesh: sizes of its axes.
      bucket: frames, height, width, global batch.
    """
    if what in ("encode", "decode") and math.prod(mesh.values()) == 1:
        yield from _cuts(config, bucket)
        return
    batch = bucket[3]
    training = what == "train"
    axes = ("context", "tensor") if config.generator else ("context",)
    pieces = config.optim.accumulate
    base: dict[str, Any] = {}
    if training and batch % (_ways(mesh) * pieces):
        fitting = (s for s in _spreads(mesh, axes) if batch % (_ways({**mesh, **s}) * pieces) == 0)
        sizes = next(fitting, None)
        if sizes is None:
            return
        mesh = {**mesh, **sizes}
        base |= _keys(sizes)
        yield dict(base)
    if training and (again := _recomputing(config)):
        base |= again
        yield dict(base)
    if training:
        for more in _PIECES:
            if more > pieces and batch % (_ways(mesh) * more) == 0:
                yield {**base, "optim.accumulate": more}
    for sizes in _spreads(mesh, axes):
        ways = _ways({**mesh, **sizes})
        if training and batch % (ways * pieces):
            continue
        yield {**base, **_keys(sizes)}
        most = max((p for p in _PIECES if batch % (ways * p) == 0), default=1)
        if training and most > pieces:
            yield {**base, **_keys(sizes), "optim.accumulate": most}


def _cuts(config: ConfigDict, bucket: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Keys of ``config.codec`` that cut such frames up; none where a way is named already."""
    coding = Coding.of(config.codec.to_dict())
    for way in coding.smaller(model_of(config)) if coding.space == "auto" else ():
        if not way.cuts or way.cuts < max(bucket[1:3]):
            keys = {**way.keys, **({"memory_gb": 0.0} if coding.memory_gb else {})}
            yield {f"codec.{key}": value for key, value in keys.items()}


def _ways(mesh: Mapping[str, int]) -> int:
    return math.prod(mesh[axis] for axis in ACTIVATION_AXES["batch"])


def _recomputing(config: ConfigDict) -> dict[str, Any]:
    """Keys that keep less of each layer for the backward pass."""
    name = "generator" if config.generator else "model"
    section = config[name]
    wanted = {"remat": True, "stack": "recomputed"}
    return {f"{name}.{k}": v for k, v in wanted.items() if k in section and section[k] != v}


def _spreads(mesh: Mapping[str, int], axes: tuple[str, ...]) -> Iterator[dict[str, int]]:
    """Axis sizes with parameters on more devices, then with more devices to a clip."""
    ways = _ways(mesh)
    if mesh["data"] > 1:
        yield {"data": 1, "fsdp": ways}
    for axis in axes:
        for split in _SPLITS:
            if ways % split == 0:
                yield {"data": 1, "fsdp": ways // split, axis: mesh[axis] * split}


def _keys(sizes: Mapping[str, int]) -> dict[str, int]:
    return {f"mesh.{axis}": size for axis, size in sizes.items()}
