"""What tokenizer modules have in common: made from config fields, checks of a clip's size."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from vidlatent.models.posterior import Posterior
from vidlatent.registry import Registry, did_you_mean
from vidlatent.typing import LatentSpec, VidlatentError, check_shape

__all__ = ["by_name", "check_clip", "latent_of", "make_module"]


def by_name(
    registry: Registry, config: Mapping[str, Any], section: str
) -> tuple[Any, dict[str, Any]]:
    """The entry of ``registry`` called ``config['name']``, and the other entries of ``config``.

    Raises:
      VidlatentError: no name (``section`` says where it belongs), or an unknown one.
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
    """A module from a section of a config; unset fields take the class defaults.

    Args:
      kind: module class with a ``dtype`` field.
      fields: values by field name; lists may stand for tuples.
      dtype: compute dtype.
      section: what the fields are called in errors.
      given: fields that the config may not set.

    Raises:
      VidlatentError: unknown or missing field.
    """
    hidden = {"parent", "name", "dtype", *given}
    known = {f.name: f for f in dataclasses.fields(kind) if f.name not in hidden}
    for key in fields:
        if key not in known:
            raise VidlatentError(f"unknown field {section}.{key}: {did_you_mean(key, known)}")
    missing = [k for k, f in known.items() if k not in fields and f.default is dataclasses.MISSING]
    if missing:
        raise VidlatentError(f"{section} lacks {', '.join(missing)}.")
    return kind(**{k: _frozen(v) for k, v in fields.items()}, **given, dtype=dtype)


def _frozen(value: Any) -> Any:
    """Lists as tuples, all the way down: module fields must hash."""
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value


def check_clip(spec: LatentSpec, video: jax.Array, first: bool) -> None:
    """Raise unless ``video`` ``[B, T, H, W, 3]`` starts (``first``) or continues a stream."""
    size = check_shape(video, "B T H W C", C=3)
    frames = size["T"]
    if not first:
        if frames == 0 or frames % spec.t:
            raise VidlatentError(
                f"a later chunk of {frames} frames does not fit: it needs a multiple of {spec.t}; "
                f"only the first chunk has {spec.rule} frames."
            )
        frames = spec.rule.first
    spec.check_video(frames, size["H"], size["W"])


def latent_of(module: nn.Module, posterior: Posterior) -> jax.Array:
    """What a tokenizer decodes: a draw if there is a rng stream ``latent``, else the mean."""
    if module.has_rng("latent"):
        return posterior.sample(module.make_rng("latent"))
    return posterior.mode()
