"""Changes of a config that save memory, those that cost least speed first."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from vidlatent.config import is_generator
from vidlatent.models.load import model_of
from vidlatent.parallel.sharding import ACTIVATION_AXES

__all__ = ["override_keys", "propose_changes", "propose_judging"]

# Pieces of a batch, and devices to a clip, that are tried: powers of two, as meshes have.
_PIECES = (2, 4, 8, 16, 32, 64)
_SPLITS = (2, 4, 8, 16)


def override_keys(config: ConfigDict, overrides: Mapping[str, Any]) -> ConfigDict:
    """A copy of the config with some keys changed, ``{"optim.accumulate": 2}``."""
    copy = config.copy_and_resolve_references()
    copy.update_from_flattened_dict(dict(overrides))
    return copy


def propose_changes(
    config: ConfigDict, what: str, mesh: Mapping[str, int], bucket: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """Keys to set, those that cost least speed first; each set of keys is to be tried in turn.

    1. If the mesh cannot divide the batch: several devices to a clip.
    2. Remat: recompute blocks in the backward pass; of steps by rewards, smaller parts of a group
       (``grpo``) and streamed decoders.
    3. Accumulate gradients over pieces of the batch.
    4. More devices to a clip, alone and with more pieces.

    Encoding and decoding on one device only cut frames into tiles or strips, as the codec itself
    does when memory is short.

    Args:
      config: of a job that does not fit.
      what: the program; 2 and 3 are for training alone.
      mesh: sizes of its axes.
      bucket: frames, height, width, global batch.
    """
    if what in ("encode", "decode") and math.prod(mesh.values()) == 1:
        yield from _propose_cuts(config, bucket)
        return
    batch = bucket[3]
    training = what == "train"
    # A tokenizer splits rows along both axes alike (design notes), so one of them will do.
    axes = ("context", "tensor") if is_generator(config) else ("context",)
    pieces = config.optim.accumulate
    base: dict[str, Any] = {}
    if training and batch % (_batch_shares(mesh) * pieces):
        fitting = (
            s
            for s in _propose_mesh_sizes(mesh, axes)
            if batch % (_batch_shares({**mesh, **s}) * pieces) == 0
        )
        sizes = next(fitting, None)
        # No mesh divides the batch, and nothing else can help then.
        if sizes is None:
            return
        mesh = {**mesh, **sizes}
        base |= _mesh_keys(sizes)
        yield dict(base)
    for saving in (_remat_keys(config), *propose_judging(config)) if training else ():
        if saving:
            base |= saving
            yield dict(base)
    # A step of grpo has its own pieces.
    accumulates = training and config.task != "grpo"
    for more in _PIECES if accumulates else ():
        if more > pieces and batch % (_batch_shares(mesh) * more) == 0:
            yield {**base, "optim.accumulate": more}
    for sizes in _propose_mesh_sizes(mesh, axes):
        ways = _batch_shares({**mesh, **sizes})
        if training and batch % (ways * pieces):
            continue
        yield {**base, **_mesh_keys(sizes)}
        # With each further mesh only the most pieces, because every try is a compilation.
        most = max((p for p in _PIECES if batch % (ways * p) == 0), default=1)
        if accumulates and most > pieces:
            yield {**base, **_mesh_keys(sizes), "optim.accumulate": most}


def _propose_cuts(config: ConfigDict, bucket: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Keys of ``config.codec`` that cut frames of this size; none if the config names a way."""
    if config.codec.space != "auto":
        return
    for way in model_of(config).list_space_ways():
        if way.rule:  # 'auto' cuts by it already
            return
        for size in way.sizes:
            # Pieces as large as the frame would change nothing.
            if not size.cuts or size.cuts < max(bucket[1:3]):
                # The codec refuses a memory limit beside a way that is named.
                keys = {**size.keys, **({"memory_gb": 0.0} if config.codec.memory_gb else {})}
                yield {f"codec.{key}": value for key, value in keys.items()}


def _batch_shares(mesh: Mapping[str, int]) -> int:
    return math.prod(mesh[axis] for axis in ACTIVATION_AXES["batch"])


def _remat_keys(config: ConfigDict) -> dict[str, Any]:
    """Keys that turn on remat where the model has it and it is off."""
    name = "generator" if is_generator(config) else "model"
    section = config[name]
    wanted = {"remat": True, "stack": "recomputed"}
    return {f"{name}.{k}": v for k, v in wanted.items() if k in section and section[k] != v}


def propose_judging(config: ConfigDict) -> Iterator[dict[str, Any]]:
    """Keys with which a step by rewards decodes one video at a time, then a piece of it."""
    if config.task == "grpo":
        if config.rl.parts < config.rl.group:
            yield {"rl.parts": config.rl.group}
        if not config.rl.decode_groups:
            yield {"rl.decode_groups": 1}
    if config.task == "refl" and not config.refl.stream:
        yield {"refl.stream": True}


def _propose_mesh_sizes(mesh: Mapping[str, int], axes: tuple[str, ...]) -> Iterator[dict[str, int]]:
    """Mesh sizes: parameters sharded over all devices (FSDP), then several devices to a clip."""
    ways = _batch_shares(mesh)
    if mesh["data"] > 1:
        yield {"data": 1, "fsdp": ways}
    for axis in axes:
        for split in _SPLITS:
            if ways % split == 0:
                yield {"data": 1, "fsdp": ways // split, axis: mesh[axis] * split}


def _mesh_keys(sizes: Mapping[str, int]) -> dict[str, int]:
    return {f"mesh.{axis}": size for axis, size in sizes.items()}
