"""Building a module from a section of a config: look up its name, check its fields."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from vidlatent.errors import VidlatentError
from vidlatent.registry import Registry, did_you_mean

__all__ = ["build_module", "look_up", "make_module"]


def build_module(
    registry: Registry, config: Mapping[str, Any], dtype: Any = jnp.float32
) -> nn.Module:
    """The module registered as ``config['name']``; the other entries of ``config`` are its fields.

    Args:
      registry: registry of one kind of model; its factories take ``(fields, dtype)``.
      config: the section of a run's config named after ``registry.kind``, such as
        ``config.model``. Lists are turned into tuples.
      dtype: compute dtype; parameters are float32.

    Raises:
      VidlatentError: unknown name or field.
    """
    make, fields = look_up(registry, config, f"config.{registry.kind}")
    return make(fields, jnp.dtype(dtype))


def look_up(
    registry: Registry, config: Mapping[str, Any], section: str
) -> tuple[Any, dict[str, Any]]:
    """The entry of ``registry`` called ``config['name']``, and the other entries of ``config``.

    Raises:
      VidlatentError: no name or an unknown one; the error names ``section``.
    """
    if "name" not in config:
        raise VidlatentError(f"{section} has no name: choose one of {', '.join(registry.names())}.")
    fields = {key: value for key, value in config.items() if key != "name"}
    return registry.get(config["name"]), fields


def make_module(
    kind: type[nn.Module],
    fields: Mapping[str, Any],
    dtype: Any,
    *,
    section: str = "config.model",
    **given: Any,
) -> nn.Module:
    """A module of class ``kind`` from a section of a config; unset fields take class defaults.

    Args:
      kind: module class with a ``dtype`` field.
      fields: values by field name; lists are turned into tuples.
      dtype: compute dtype.
      section: name of the section, for errors.
      given: further fields, which the config may not set.

    Raises:
      VidlatentError: unknown or missing field.
    """
    # The first two are Linen's own fields; dtype is settled by config.precision.
    hidden = {"parent", "name", "dtype", *given}
    known = {f.name: f for f in dataclasses.fields(kind) if f.name not in hidden}
    for key in fields:
        if key == "dtype":
            raise VidlatentError(
                f"{section} has no field dtype: models compute in config.precision.compute."
            )
        if key not in known:
            raise VidlatentError(f"unknown field {section}.{key}: {did_you_mean(key, known)}")
    missing = [k for k, f in known.items() if k not in fields and f.default is dataclasses.MISSING]
    if missing:
        raise VidlatentError(f"{section} lacks {', '.join(missing)}.")
    return kind(**{k: _to_tuples(v) for k, v in fields.items()}, **given, dtype=dtype)


def _to_tuples(value: Any) -> Any:
    """Turn nested lists into tuples, because module fields must be hashable."""
    return tuple(map(_to_tuples, value)) if isinstance(value, (list, tuple)) else value
