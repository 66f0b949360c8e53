"""Training a tokenizer: reconstruct the video, weigh the loss terms, face the critic, update.

What is summed is the config's matter: ``config.loss`` names the terms, ``config.critic`` the
opponent. The model runs forward once; every loss gives a gradient with respect to its outputs, and
their sum goes back through the model in one sweep.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vidlatent.dist.rules import constrain, path_name
from vidlatent.infer.evaluate import tokenizer_eval_step
from vidlatent.infer.load import smallest_video
from vidlatent.infer.pixels import from_pixels
from vidlatent.io.networks import load_network
from vidlatent.losses.adversarial import adaptive_weight
from vidlatent.losses.inputs import LossInputs
from vidlatent.models.freeze import stop_frozen
from vidlatent.train.optim import learning_rate, make_optimizer
from vidlatent.train.state import Player, apply_gradients, new_player, new_state, random_key
from vidlatent.train.steps import Step
from vidlatent.train.steps.judge import Judge
from vidlatent.train.steps.objective import Objective
from vidlatent.train.steps.views import make_view
from vidlatent.typing import VidlatentError

__all__ = ["make_step"]

VIDEO_AXES = ("batch", "time", "height", "width", "channel")


def make_step(config: ConfigDict, model: Any) -> Step:
    """The tokenizer's step for ``config.loss``, ``config.critic`` and ``config.optim``.

    Batches hold ``video`` uint8 ``[B, T, H, W, 3]`` and ``mask`` float32 ``[B]``.
    """
    optim = config.optim.to_dict()
    optimizer = make_optimizer(optim)
    rate = learning_rate(optim, config.train.steps)
    objective = Objective(config.loss.to_dict())
    shown = objective.shown(config.networks)
    opponent = _opponent(config, model, objective)
    gradients = _Gradients(config, model, objective, opponent)

    def init(key: jax.Array):
        video = jnp.zeros(smallest_video(model.latent_spec), jnp.float32)
        players = {}
        if helpers := objective.init(jax.random.fold_in(key, 1), model.latent_spec):
            players["helpers"] = new_player(helpers, optimizer)
        if opponent is not None:
            # Some critics flatten what they see: their parameters belong to one size of clip.
            clip = max(config.data.buckets, key=lambda bucket: bucket[0])[:3]
            players["critic"] = opponent.init(jax.random.fold_in(key, 2), clip)
        return new_state(model.init(key, video)["params"], optimizer, **players)

    def train_step(state, batch, networks):
        found = _accumulated(gradients, state, batch, networks, optim["accumulate"])
        players = {}
        if "helpers" in state:
            players["helpers"] = Player(found.helpers, optimizer, rate(state["step"]))
        if found.critic is not None:
            players["critic"] = opponent.player(found.critic, state["step"])
        state, report = apply_gradients(
            state,
            found.params,
            found.loss,
            optimizer=optimizer,
            rate=rate,
            ema_decay=optim["ema_decay"],
            players=players,
        )
        values = {shown.get(name, name): value for name, value in found.report.items()}
        return state, {"loss": found.loss, **values, **report}

    eval_step = tokenizer_eval_step(model, preservation=config.eval.preservation)

    def load_networks():
        paths = {name: config.networks[name] for name in objective.networks}
        return {name: load_network(name, path).params for name, path in paths.items()}

    return Step(init, train_step, eval_step, load_networks)


def _opponent(config: ConfigDict, model: Any, objective: Objective) -> Judge | None:
    if not config.critic.model:
        return None
    section = config.critic.to_dict()
    objective.check(section["adaptive_terms"], "config.critic.adaptive_terms")
    return Judge(section, config.train.steps, model.dtype)


class _Found(NamedTuple):
    """Gradients of one batch; ``critic`` is a ``Verdict`` or None."""

    params: Any
    helpers: Any
    critic: Any
    loss: jax.Array
    report: dict[str, jax.Array]


class _Gradients:
    """``(state, batch, networks, piece) -> _Found``."""

    def __init__(self, config: ConfigDict, model: Any, objective: Objective, opponent: Any):
        self.view, self.objective, self.opponent = make_view(config, model), objective, opponent
        self.seed, self.frozen = config.seed, config.optim.frozen
        self.layer = config.critic.adaptive_layer
        self.rated = tuple(config.critic.adaptive_terms)
        # What models draw in training: noise, Reducio's content frame, the latent.
        self.streams = ("noise", "content") + ("latent",) * config.train.sample_latent

    def __call__(self, state: Any, batch: Any, networks: Any, piece: Any = 0) -> _Found:
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
            verdict = self.opponent.verdict(state["critic"], prediction, target, step, key("r1"))
            weight = verdict.weight
            if self.layer:
                rated = jax.grad(objective, has_aux=True)(
                    prediction, posterior, helpers, self.rated
                )[0]
                nothing = jax.tree.map(jnp.zeros_like, posterior)
                weight = weight * adaptive_weight(
                    *(
                        self._at_layer(pullback((cotangent, nothing))[0])
                        for cotangent in (rated, verdict.to_prediction)
                    )
                )
            loss = loss + weight * verdict.loss
            to_prediction = to_prediction + weight * verdict.to_prediction
            report |= {"adversarial": verdict.loss, "adversarial_weight": weight, **verdict.report}
        grads = pullback((to_prediction, to_posterior))[0]
        return _Found(grads, to_helpers, verdict, loss, report)

    def _at_layer(self, grads: Any) -> list[jax.Array]:
        """Gradients at ``config.critic.adaptive_layer``; what else is in ``grads`` is not used, so
        the compiler drops the rest of that sweep."""
        named = [(path_name(p), leaf) for p, leaf in jax.tree_util.tree_leaves_with_path(grads)]
        found = [leaf for name, leaf in named if re.fullmatch(self.layer, name)]
        if not found:
            raise VidlatentError(
                f"config.critic.adaptive_layer {self.layer!r} matches no parameter of this model; "
                f"its last ones are {', '.join(name for name, _ in named[-3:])}."
            )
        return found


def _accumulated(gradients: Callable, state: Any, batch: Any, networks: Any, pieces: int) -> _Found:
    """What ``gradients`` finds, averaged over ``pieces`` equal slices of the batch in turn."""
    if pieces == 1:
        return gradients(state, batch, networks)
    size = batch["mask"].shape[0]
    if size % pieces:
        raise VidlatentError(
            f"config.optim.accumulate {pieces} does not divide the batch of {size}: "
            "change one of them."
        )

    # A piece takes every pieces-th sample, so that it stays spread over the mesh as the batch is.
    def split(x):
        return jnp.moveaxis(x.reshape(size // pieces, pieces, *x.shape[1:]), 1, 0)

    def small(found: _Found) -> _Found:
        # The gradient at the pixels has done its work, and is as large as the batch.
        critic = found.critic
        return (
            found
            if critic is None
            else found._replace(critic=critic._replace(to_prediction=jnp.float32(0)))
        )

    def add(total, piece):
        number, rows = piece
        found = small(gradients(state, rows, networks, number))
        return jax.tree.map(jnp.add, total, found), None

    rows: Mapping[str, jax.Array] = jax.tree.map(split, batch)
    first = jax.tree.map(lambda x: x[0], rows)
    shapes = jax.eval_shape(lambda: small(gradients(state, first, networks)))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    total, _ = jax.lax.scan(add, zeros, (jnp.arange(pieces), rows))
    return jax.tree.map(lambda x: x / pieces, total)
