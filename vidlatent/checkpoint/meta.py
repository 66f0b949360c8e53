"""What a checkpoint says beside its arrays: the item ``meta``, JSON with a checksum."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from vidlatent.checkpoint import digests
from vidlatent.checkpoint.storage import Damaged, describe_machine
from vidlatent.files import dump_json
from vidlatent.spec import LatentSpec

__all__ = ["ITEM", "make_meta", "read_meta"]

ITEM = "meta"
_FIELDS = {"step", "iterator", "spec", "config_hash", "metrics", "versions"}
_OPTIONAL = {"adapters"}  # only steps that hold adapters have it


def make_meta(
    step: int,
    iterator: Mapping[str, Any],
    spec: LatentSpec | None,
    config_hash: str,
    metrics: Mapping[str, float],
    adapters: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The metadata of a step, as it will be read back; fails if it is not JSON."""
    meta = {
        "step": int(step),
        "iterator": dict(iterator),
        "spec": None if spec is None else spec.to_json(),
        "config_hash": config_hash,
        "metrics": dict(metrics),
        "versions": describe_machine(),
        **({} if adapters is None else {"adapters": dict(adapters)}),
    }
    return json.loads(dump_json(meta))


def read_meta(step_folder: Any, crc: int | None = None) -> dict[str, Any]:
    """The metadata in a step folder.

    Args:
      step_folder: ``epath.Path``.
      crc: checksum that it must have; None: any.

    Raises:
      Damaged: it cannot be read, or is not what was saved.
    """
    try:
        meta = json.loads((step_folder / ITEM / "metadata").read_text())
    except (OSError, ValueError) as error:
        raise Damaged(f"its metadata cannot be read ({error})") from error
    if not isinstance(meta, dict) or set(meta) - _OPTIONAL != _FIELDS:
        raise Damaged("its metadata has not the expected fields")
    if crc is not None and digests.json_crc(meta) != crc:
        raise Damaged("its metadata differs from what was saved")
    return meta
