"""The weighted loss terms of ``config.loss``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vidlatent.errors import VidlatentError
from vidlatent.losses import DecoderInputs, LossInputs, Weight, make_terms
from vidlatent.models.pretrained.load import seed_of
from vidlatent.spec import LatentSpec

__all__ = ["LossTerms", "find_weight"]


class LossTerms:
    """The weighted sum of named loss terms.

    Args:
      loss: term -> weight, or -> mapping with ``weight`` and the term's options.

    Attributes:
      networks: names of the frozen networks that the terms evaluate.
      decodes: names of the terms that call the decoder, see ``decode``.
    """

    def __init__(self, loss: Mapping[str, Any]):
        if not loss:
            raise VidlatentError(
                "config.loss is empty: name at least one term, such as loss.l1 = 1.0."
            )
        made = make_terms(loss)
        self.weights = {name: weight for name, (weight, _) in made.items()}
        self.terms = {name: term for name, (_, term) in made.items()}
        needed = {network for term in self.terms.values() for network in term.networks}
        self.networks = tuple(sorted(needed))
        self.decodes = tuple(name for name, term in self.terms.items() if term.decoded)

    def init(self, key: jax.Array, spec: LatentSpec) -> dict[str, Any]:
        """Trainable parameters of the loss terms that have any, by term.

        They serve training only and are not part of the model.
        """
        return {
            name: term.init(jax.random.fold_in(key, place), spec)
            for place, (name, term) in enumerate(self.terms.items())
            if term.init is not None
        }

    def check(self, names: Iterable[str], key: str) -> None:
        """Raise if a name in ``names``, the value of config key ``key``, is not a loss term."""
        for name in names:
            if name not in self.terms:
                known = ", ".join(self.terms)
                raise VidlatentError(f"{key} names {name!r}, config.loss has {known}.")

    def label_random(self, report: Mapping[str, Any], paths: Mapping[str, str]) -> dict[str, Any]:
        """``report`` with ``_random`` added to the names of terms whose networks are random.

        So a curve of a perceptual loss on random weights cannot be mistaken for the real one.

        Args:
          report: values by name, of loss terms and of other metrics.
          paths: weights file of each network, ``config.networks``.
        """

        def label(name):
            term, slash, part = name.partition("/")
            networks = self.terms[term].networks if term in self.terms else ()
            random = any(seed_of(paths[network]) is not None for network in networks)
            # "lpips" -> "lpips_random", "vf/cosine" -> "vf_random/cosine"
            return term + "_random" * random + slash + part

        return {label(name): value for name, value in report.items()}

    def decode(self, inputs: DecoderInputs, networks: Mapping[str, Any]) -> dict[str, jax.Array]:
        """What the terms that call the decoder make of it, by name: ``LossInputs.decoded``."""
        return {
            name: term.decoded(inputs._replace(key=_key_of(inputs.key, place)), networks)
            for place, (name, term) in enumerate(self.terms.items())
            if term.decoded is not None
        }

    def __call__(
        self,
        inputs: LossInputs,
        helpers: Mapping[str, Any],
        networks: Mapping[str, Any],
        only: Iterable[str] = (),
        step: Any = 0,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The weighted sum of the terms (float32 scalar), and each term's unweighted value by name.

        A term that consists of parts also reports each part, as ``<term>/<part>``.

        Args:
          inputs: what a term may use.
          helpers: current values of the parameters that ``init`` made.
          networks: parameters of the frozen networks by name.
          only: names of the terms to sum; empty: all.
          step: of the run, for weights that change.
        """
        values, total = {}, 0
        for place, (name, term) in enumerate(self.terms.items()):
            if only and name not in only:
                continue
            own = helpers[name] if name in helpers else {}
            given = inputs._replace(key=_key_of(inputs.key, place)), own, networks
            parts = term.parts(*given) if term.parts else {}
            values[name] = sum(parts.values()) if parts else term.value(*given)
            values |= {f"{name}/{part}": value for part, value in parts.items()}
            total += find_weight(self.weights[name], step) * values[name]
        return total, values


def find_weight(weight: Weight, step: Any) -> Any:
    """A weight at ``step``, see ``losses``."""
    if isinstance(weight, float):
        return weight
    first, last, steps = weight
    return first + (last - first) * jnp.clip(step / steps, 0.0, 1.0)


def _key_of(key: jax.Array | None, place: int) -> jax.Array | None:
    """By the place among all terms: with ``only``, a term draws what it draws in the sum."""
    return None if key is None else jax.random.fold_in(key, place)
