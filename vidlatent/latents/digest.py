"""Digests of parameters: of all of them, and of those that encode.

Latents depend on the encoder alone. A base model, its fine-tuned decoders and whatever decoders
come later have one encoder digest, by which they are known to code the same latents.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np

from vidlatent.checkpoint.layout import nested
from vidlatent.errors import VidlatentError
from vidlatent.models.tokenizers.base import Tokenizer
from vidlatent.parallel.paths import match_path, path_name

__all__ = ["hash_encoder", "hash_params"]


def hash_encoder(model: Tokenizer, params: Any) -> str:
    """Hex SHA-256 of what encodes: parameters that ``model.encoder_paths`` match, and settings.

    Values enter rounded to bfloat16, the coarsest type in which kernels are held, so that the
    digest is the same for a checkpoint in float32 and its copy in bfloat16. It does not depend on
    how arrays are spread over devices. Settings are the ``encoder_fields`` of the model that differ
    from their defaults, so that a field which is added later leaves old digests as they are.

    Args:
      model: the tokenizer.
      params: its parameters, on any devices of this process, or on the host.

    Raises:
      VidlatentError: ``encoder_paths`` match no parameter.
    """
    total = hashlib.sha256()
    for name, value in sorted(_changed_fields(model).items()):
        total.update(f"{name}={value!r} ".encode())
    leaves = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    paths = model.encoder_paths
    chosen = [
        name for name in sorted(leaves) if not paths or any(match_path(p, name) for p in paths)
    ]
    if not chosen:
        raise VidlatentError(
            f"encoder_paths {paths} of {model.latent_spec.name} match no parameter: the first is "
            f"{next(iter(leaves), 'none')}."
        )
    for name in chosen:
        leaf = np.asarray(leaves[name])
        total.update(f"{name} {leaf.shape} ".encode())
        total.update(np.ascontiguousarray(leaf).astype(ml_dtypes.bfloat16).tobytes())
    return total.hexdigest()


def _changed_fields(model: Tokenizer) -> dict[str, Any]:
    module: Any = type(model)  # a Linen module is a dataclass, which its protocol does not say
    defaults = {field.name: field.default for field in dataclasses.fields(module)}
    values = {name: getattr(model, name) for name in model.encoder_fields}
    return {name: _plain(value) for name, value in values.items() if value != defaults[name]}


def _plain(value: Any) -> Any:
    """Lists as tuples: configs that were read from JSON have the one, config files the other."""
    return tuple(map(_plain, value)) if isinstance(value, (list, tuple)) else value


def hash_params(params: Any) -> str:
    """Hex SHA-256 of parameters: their names, dtypes, shapes and values."""
    total = hashlib.sha256()

    def add(tree: Mapping[str, Any], name: str) -> None:
        for key in sorted(tree):
            if isinstance(tree[key], Mapping):
                add(tree[key], f"{name}/{key}")
                continue
            leaf = np.ascontiguousarray(tree[key])
            total.update(f"{name}/{key} {leaf.dtype} {leaf.shape} ".encode())
            total.update(leaf.tobytes())

    add(nested(params), "")
    return total.hexdigest()
