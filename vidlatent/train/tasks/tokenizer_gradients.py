"""The gradients of a tokenizer's step.

The model runs forward once; every loss gives a gradient with respect to its outputs, and their sum
goes back through the model in one sweep.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vidlatent.errors import VidlatentError
from vidlatent.latents.pixels import from_pixels
from vidlatent.losses import LossInputs
from vidlatent.losses.adversarial import adaptive_weight
from vidlatent.parallel.sharding import constrain, path_name
from vidlatent.train.discriminator import Judge
from vidlatent.train.freeze import stop_frozen
from vidlatent.train.loss_terms import Objective
from vidlatent.train.microbatches import averaged
from vidlatent.train.patches import make_view
from vidlatent.train.state import random_key

__all__ = ["Found", "Gradients"]

VIDEO_AXES = ("batch", "time", "height", "width", "channel")


class Found(NamedTuple):
    """Gradients of one batch; ``discriminator`` is a ``Verdict`` or None."""

    params: Any
    helpers: Any
    discriminator: Any
    loss: jax.Array
    report: dict[str, jax.Array]

    def small(self) -> Found:
        """Without the discriminator's gradient at the pixels, which is as large as the batch."""
        if self.discriminator is None:
            return self
        return self._replace(
            discriminator=self.discriminator._replace(to_prediction=jnp.float32(0))
        )


class Gradients:
    """``(state, batch, networks) -> Found`` for ``config.loss`` and ``config.discriminator``.

    Attributes:
      objective: the sum of loss terms.
      opponent: the discriminator's side, or None.
    """

    def __init__(self, config: ConfigDict, model: Any):
        self.view = make_view(config, model)
        self.objective = Objective(config.loss.to_dict())
        self.opponent = _opponent(config, model, self.objective)
        self.pieces = config.optim.accumulate
        self.seed, self.frozen = config.seed, config.optim.freeze
        self.layer = config.discriminator.adaptive_layer
        self.rated = tuple(config.discriminator.adaptive_terms)
        # What models draw in training: noise, Reducio's content frame, the latent.
        self.streams = ("noise", "content") + ("latent",) * config.train.sample_latent

    def __call__(self, state: Any, batch: Any, networks: Any) -> Found:
        """Averages over ``config.optim.accumulate`` equal slices of the batch, one after another.

        Args:
          state: the training state.
          batch: ``video`` uint8 ``[B, T, H, W, 3]``, ``mask`` float32 ``[B]``.
          networks: parameters of frozen networks by name.
        """
        if self.pieces == 1:
            return self._of(state, batch, networks, 0)
        return averaged(
            lambda rows, number: self._of(state, rows, networks, number).small(),
            batch,
            self.pieces,
        )

    def _of(self, state: Any, batch: Any, networks: Any, piece: Any) -> Found:
        step = state["step"]

        def key(stream):
            return jax.random.fold_in(random_key(self.seed, stream, step), piece)

        video = constrain(from_pixels(batch["video"]), VIDEO_AXES)
        rngs = {stream: key(stream) for stream in self.streams}

        def reconstruct(params):
            return self.view(stop_frozen(params, self.frozen), video, rngs, key("patch"))

        (prediction, posterior), pullback, target = jax.vjp(
            reconstruct, state["params"], has_aux=True
        )
        helpers = state["helpers"]["params"] if "helpers" in state else {}

        def objective(prediction, posterior, helpers, only=()):
            inputs = LossInputs(prediction, target, batch["mask"], posterior, key("loss"))
            return self.objective(inputs, helpers, networks, only)

        (loss, report), (to_prediction, to_posterior, to_helpers) = jax.value_and_grad(
            objective, argnums=(0, 1, 2), has_aux=True
        )(prediction, posterior, helpers)
        verdict = None
        if self.opponent is not None and self.opponent.looks_at(target.shape[1]):
            verdict = self.opponent.verdict(
                state["discriminator"], prediction, target, step, key("r1")
            )
            weight = verdict.weight
            if self.layer:
                rated = jax.grad(objective, has_aux=True)(
                    prediction, posterior, helpers, self.rated
                )[0]
                nothing = jax.tree.map(jnp.zeros_like, posterior)
                weight *= adaptive_weight(
                    self._at_layer(pullback((rated, nothing))[0]),
                    self._at_layer(pullback((verdict.to_prediction, nothing))[0]),
                )
            loss += weight * verdict.loss
            to_prediction += weight * verdict.to_prediction
            report |= {"adversarial": verdict.loss, "adversarial_weight": weight, **verdict.report}
        grads = pullback((to_prediction, to_posterior))[0]
        return Found(grads, to_helpers, verdict, loss, report)

    def _at_layer(self, grads: Any) -> list[jax.Array]:
        """Gradients at ``config.discriminator.adaptive_layer``; what else is in ``grads`` is not
        used, so the compiler drops the rest of that sweep."""
        named = [(path_name(p), leaf) for p, leaf in jax.tree_util.tree_leaves_with_path(grads)]
        found = [leaf for name, leaf in named if re.fullmatch(self.layer, name)]
        if not found:
            raise VidlatentError(
                f"config.discriminator.adaptive_layer {self.layer!r} matches no parameter of "
                f"this model; "
                f"its last ones are {', '.join(name for name, _ in named[-3:])}."
            )
        return found


def _opponent(config: ConfigDict, model: Any, objective: Objective) -> Judge | None:
    if not config.discriminator.model:
        return None
    section = config.discriminator.to_dict()
    objective.check(section["adaptive_terms"], "config.discriminator.adaptive_terms")
    return Judge(section, config.train.steps, model.dtype)
