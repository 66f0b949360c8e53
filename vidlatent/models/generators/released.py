"""The section ``generator`` for released weights, from the ``config.json`` beside them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from vidlatent.errors import VidlatentError
from vidlatent.models.generators.promag_dit.names import fields_from_cogvideox
from vidlatent.models.generators.wan.names import fields_from_diffusers, fields_from_original
from vidlatent.paths import as_path

__all__ = ["read_released_config"]

# Class name in config.json -> our generator, and its fields from the file's entries.
_CLASSES: dict[str, tuple[str, Callable[[Mapping[str, Any]], dict[str, Any]]]] = {
    "WanModel": ("wan", fields_from_original),
    "WanTransformer3DModel": ("wan", fields_from_diffusers),
    "CogVideoXTransformer3DModel": ("promag_dit", fields_from_cogvideox),
}


def read_released_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The section ``generator`` for released weights of Wan2.1 or CogVideoX.

        build_generator(read_released_config("Wan2.1-I2V-14B-480P/config.json"))

    Args:
      path: the ``config.json`` beside the weights, or its folder; the authors' or Diffusers'.

    Raises:
      VidlatentError: no such file, another kind of model, or a variant that ours does not have.
    """
    file = as_path(path)
    file = file / "config.json" if file.is_dir() else file
    if not file.is_file():
        raise VidlatentError(f"there is no {file}: name the config.json beside the weights.")
    try:
        entries = json.loads(file.read_text())
        kind = entries["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise VidlatentError(
            f"{file} is not the config of released weights: it has no _class_name."
        ) from error
    if kind not in _CLASSES:
        raise VidlatentError(f"{file} is of {kind}: known are {', '.join(_CLASSES)}.")
    name, fields_from = _CLASSES[kind]
    return {"name": name, **fields_from(entries)}
