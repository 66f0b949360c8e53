"""The interface of a loss term, and the average over samples that all terms use."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp

from vidlatent.models.tokenizers.base import Posterior
from vidlatent.spec import LatentSpec

__all__ = ["DecoderInputs", "LossInputs", "Term", "mean_over_samples"]

Params = Mapping[str, Any]


class LossInputs(NamedTuple):
    """What a step hands to every term.

    Attributes:
      prediction: reconstruction ``[B, T, H, W, 3]`` in about [-1, 1].
      target: the clip, same shape.
      mask: ``[B]``, 1 for a real sample and 0 for padding.
      posterior: the encoder's output; None where nothing was encoded.
      key: randomness of this term at this step; None for a deterministic value.
      decoded: results of the terms that call the decoder, by name (``Term.decoded``).
    """

    prediction: jax.Array
    target: jax.Array
    mask: jax.Array
    posterior: Posterior | None = None
    key: jax.Array | None = None
    decoded: Mapping[str, jax.Array] | None = None


class DecoderInputs(NamedTuple):
    """What a step hands to a term that decodes more than the clip's latent.

    Attributes:
      decode: ``(latent, video) -> reconstruction`` of any size, ``[B, t, h, w, c]`` and
        ``[B, T, H, W, 3]``: the decoder gets its condition, if it takes one, from ``video``.
      latent: the clip's ``[B, t, h, w, c]``, drawn where training draws it.
      video: the clip ``[B, T, H, W, 3]`` in [-1, 1].
      mask, key: as in ``LossInputs``.
    """

    decode: Callable[[jax.Array, jax.Array], jax.Array]
    latent: jax.Array
    video: jax.Array
    mask: jax.Array
    key: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Term:
    """One summand of an objective, unweighted.

    Attributes:
      value: ``(inputs, params, networks) -> float32 scalar``. ``params`` is the term's own
        trainable tree (``{}`` without ``init``), ``networks`` the frozen networks' parameters.
      networks: names of the frozen networks it looks through.
      init: ``(key, latent_spec) -> params`` of helper layers that are trained along and discarded
        afterwards, such as a projection.
      parts: for a term that is a sum, its summands by name, called like ``value``; each is logged
        by itself.
      decoded: for a term that calls the decoder, ``(inputs, networks) -> array``. It belongs to
        the model's forward pass, so that its gradient reaches encoder and decoder; ``value`` finds
        the result in ``LossInputs.decoded`` under the term's name.
    """

    value: Callable[[LossInputs, Params, Params], jax.Array]
    networks: tuple[str, ...] = ()
    init: Callable[[jax.Array, LatentSpec], Params] | None = None
    parts: Callable[[LossInputs, Params, Params], dict[str, jax.Array]] | None = None
    decoded: Callable[[DecoderInputs, Params], jax.Array] | None = None

    @classmethod
    def of_parts(cls, parts: Callable[..., dict[str, jax.Array]], **fields: Any) -> Self:
        """The term whose value is the sum of ``parts``, scalars by name."""
        return cls(lambda *given: sum(parts(*given).values()), parts=parts, **fields)


def mean_over_samples(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean over the real samples of each sample's own mean, float32.

    Args:
      values: ``[B, ...]``.
      mask: ``[B]``.
    """
    values = values.astype(jnp.float32)
    per_sample = values.mean(axis=tuple(range(1, values.ndim)))
    # At least 1: a batch of nothing but padding has the loss 0, not NaN.
    return (per_sample * mask).sum() / jnp.maximum(mask.sum(), 1.0)
