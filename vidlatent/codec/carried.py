"""Decoder weights inside a compressed file, so that it can be restored without the run.

Stored are the parameters that decoding reads, as safetensors and in their own type, and the few
sections of the config that make the decoder. A file names a model of the tables and brings no code.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from ml_collections import ConfigDict

from vidlatent import config as configs
from vidlatent.codec.options import CodecOptions
from vidlatent.config.overrides import to_tuples
from vidlatent.config.validate import validate
from vidlatent.errors import VidlatentError
from vidlatent.models.frozen import find_used
from vidlatent.models.load import abstract_params, model_of, smallest_video
from vidlatent.models.tokenizers.base import Tokenizer
from vidlatent.nested import flatten, unflatten

__all__ = ["Carried", "carry", "unfold"]


@dataclasses.dataclass(frozen=True)
class Carried:
    """A decoder as it lies in a file.

    Attributes:
      about: what makes it: ``model`` (name and fields), ``compute`` (dtype) and ``codec`` (how
        videos are cut), all as JSON has them.
      weights: its parameters, a safetensors file.
    """

    about: Mapping[str, Any]
    weights: bytes = dataclasses.field(repr=False)


def carry(model: Tokenizer, config: ConfigDict, params: Any, options: CodecOptions) -> Carried:
    """The decoder of a codec, ready to be stored.

    Args:
      model: the tokenizer.
      config: what it was made from.
      params: all of its parameters.
      options: of the codec.
    """
    flat = flatten(params)
    codec = dataclasses.asdict(options)
    codec.pop("whole_latents")  # no key
    about = {
        "model": config.model.to_dict(),
        "compute": jnp.dtype(model.dtype).name,  # type: ignore[attr-defined]
        "codec": codec,
    }
    weights = {name: np.ascontiguousarray(flat[name]) for name in sorted(_find_read(model))}
    return Carried(about, safetensors.numpy.save(weights))


def unfold(carried: Carried) -> tuple[Any, Any, CodecOptions, ConfigDict]:
    """``(model, parameters, options, config)`` of a decoder; what encodes is missing.

    Raises:
      VidlatentError: the file holds no decoder, or one of a model that is not known here.
    """
    try:
        config = _read_config(carried.about)
        model = model_of(config)
        wanted = _find_read(model)
        found = safetensors.numpy.load(carried.weights)
    except (
        *(VidlatentError, ValueError, KeyError, TypeError, AttributeError),
        *(safetensors.SafetensorError, OverflowError),
    ) as error:
        raise VidlatentError(
            f"the decoder inside the file cannot be made ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]}): give --workdir of the run that wrote it (or "
            "--import the package that its model comes from)."
        ) from error
    shapes = {name: (leaf.shape, leaf.dtype) for name, leaf in wanted.items()}
    if {name: (array.shape, array.dtype) for name, array in found.items()} != shapes:
        raise VidlatentError(
            f"the weights inside the file, {len(found)} arrays, are not those of its decoder "
            f"({config.model.name}, {len(shapes)} arrays): give --workdir of the run that wrote it."
        )
    params = unflatten({name: jnp.asarray(x) for name, x in found.items()})
    return model, params, CodecOptions.of(**config.codec), config


def _read_config(about: Mapping[str, Any]) -> ConfigDict:
    config = configs.get_defaults(str(about["model"]["name"]), "inside")
    config.model = ConfigDict({key: to_tuples(x) for key, x in about["model"].items()})
    config.precision.compute = about["compute"]
    for key, value in about["codec"].items():
        if key not in config.codec or type(value) is not type(config.codec[key]):
            raise ValueError(f"codec.{key}={value!r}")
        config.codec[key] = value
    validate(config)
    return config


def _find_read(model: Tokenizer) -> dict[str, jax.ShapeDtypeStruct]:
    """The parameters that decoding reads, condition included, by their paths."""
    shape = smallest_video(model.latent_spec)

    def decode(params: Any) -> jax.Array:
        run = functools.partial(model.apply, {"params": params})
        condition = run(jnp.zeros(shape), method="make_condition")
        latent = jnp.zeros((1, *model.latent_spec.latent_shape(shape[1:4])))
        return run(latent, condition=condition, method="decode")[0]

    params = abstract_params(model)
    used = flatten(find_used(params, decode))
    return {name: leaf for name, leaf in flatten(params).items() if used[name]}
