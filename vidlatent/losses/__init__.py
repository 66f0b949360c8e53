"""Objectives: terms by the names a config uses, and the adversarial losses (``adversarial``).

``TERMS.get(name)(**options)`` makes a ``Term``. A config names each with its weight,
``loss.l1 = 1.0``, or with options, ``loss.kl = {"weight": 1e-6, "reduction": "mean"}``. A weight of
``(0.1, 1.0, 5000)`` goes from 0.1 to 1.0 in a straight line over the first 5000 steps.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from vidlatent.errors import VidlatentError
from vidlatent.losses.base import DecoderInputs, LossInputs, Term
from vidlatent.losses.reconstruction import l1, l2, outlier, pseudo_huber
from vidlatent.registry import Registry, did_you_mean

__all__ = [
    "TERMS",
    "Weight",
    "DecoderInputs",
    "LossInputs",
    "Term",
    "l1",
    "l2",
    "make_terms",
    "outlier",
    "pseudo_huber",
]

# A number, or (first, last, steps) of a weight that changes in a straight line.
Weight = float | tuple[float, ...]

TERMS = Registry("loss term")
TERMS.register("l1", "vidlatent.losses.reconstruction:l1_term")
TERMS.register("l2", "vidlatent.losses.reconstruction:l2_term")
TERMS.register("pseudo_huber", "vidlatent.losses.reconstruction:pseudo_huber_term")
TERMS.register("outlier", "vidlatent.losses.reconstruction:outlier_term")
TERMS.register("kl", "vidlatent.losses.latent:kl_term")
TERMS.register("lpips_vgg", "vidlatent.losses.perceptual:lpips_vgg_term")
TERMS.register("lpips_alex", "vidlatent.losses.perceptual:lpips_alex_term")
TERMS.register("lpips_tiny", "vidlatent.losses.perceptual:lpips_tiny_term")
TERMS.register("equivariance", "vidlatent.losses.equivariance:equivariance_term")
TERMS.register("scale_equivariance", "vidlatent.losses.equivariance:scale_equivariance_term")
TERMS.register("vf", "vidlatent.losses.vf:vf_term")


def make_terms(losses: Mapping[str, Any]) -> dict[str, tuple[Weight, Term]]:
    """``name -> (weight, term)`` from the ``loss`` section of a config.

    Raises:
      VidlatentError: unknown term, unknown option, or a group without a weight.
    """
    return {name: _made(name, entry) for name, entry in losses.items()}


def _made(name: str, entry: Any) -> tuple[Weight, Term]:
    factory = TERMS.get(name)
    options = dict(entry) if isinstance(entry, Mapping) else {"weight": entry}
    if "weight" not in options:
        raise VidlatentError(f"config.loss.{name} has no weight: set config.loss.{name}.weight.")
    weight = options.pop("weight")
    known = inspect.signature(factory).parameters
    for option in options:
        if option not in known:
            hint = did_you_mean(option, ("weight", *known))
            raise VidlatentError(f"unknown option config.loss.{name}.{option}: {hint}")
    return _check_weight(name, weight), factory(**options)


def _check_weight(name: str, weight: Any) -> Weight:
    if isinstance(weight, (int, float)):
        return float(weight)
    if not isinstance(weight, Sequence) or len(weight) != 3 or weight[2] < 1:
        raise VidlatentError(
            f"config.loss.{name} has the weight {weight!r}: give a number, or (first, last, steps) "
            "for one that goes from the first to the last over so many steps."
        )
    return tuple(map(float, weight))
