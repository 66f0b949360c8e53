"""Training a tokenizer: reconstruct, weigh the loss terms, face the discriminator, update.

What is summed is the config's matter: ``config.loss`` names the terms, ``config.discriminator`` the
opponent.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vidlatent.evaluate.tokenizer import tokenizer_eval_step
from vidlatent.models.load import smallest_video
from vidlatent.models.pretrained.load import load_network
from vidlatent.train.optim import learning_rate, make_optimizer
from vidlatent.train.state import Player, apply_gradients, new_player, new_state
from vidlatent.train.tasks.base import Step
from vidlatent.train.tasks.tokenizer_gradients import Gradients

__all__ = ["make_step"]


def make_step(config: ConfigDict, model: Any) -> Step:
    """The tokenizer's step for ``config.loss``, ``config.discriminator`` and ``config.optim``.

    Batches hold ``video`` uint8 ``[B, T, H, W, 3]`` and ``mask`` float32 ``[B]``.
    """
    optim = config.optim.to_dict()
    optimizer = make_optimizer(optim)
    rate = learning_rate(optim, config.train.steps)
    gradients = Gradients(config, model)
    objective, opponent = gradients.objective, gradients.opponent
    paths = config.networks.to_dict()

    def init(key: jax.Array):
        video = jnp.zeros(smallest_video(model.latent_spec), jnp.float32)
        players = {}
        if helpers := objective.init(jax.random.fold_in(key, 1), model.latent_spec):
            players["helpers"] = new_player(helpers, optimizer)
        if opponent is not None:
            # Some discriminators flatten what they see: their parameters belong to one size of
            # clip.
            clip = max(config.data.buckets, key=lambda bucket: bucket[0])[:3]
            players["discriminator"] = opponent.init(jax.random.fold_in(key, 2), clip)
        return new_state(model.init(key, video)["params"], optimizer, **players)

    def train_step(state, batch, networks):
        found = gradients(state, batch, networks)
        players = {}
        if "helpers" in state:
            players["helpers"] = Player(found.helpers, optimizer, rate(state["step"]))
        if found.discriminator is not None:
            players["discriminator"] = opponent.player(found.discriminator, state["step"])
        state, report = apply_gradients(
            state,
            found.params,
            found.loss,
            optimizer=optimizer,
            rate=rate,
            ema_decay=optim["ema_decay"],
            players=players,
        )
        return state, {"loss": found.loss, **objective.shown(found.report, paths), **report}

    eval_step = tokenizer_eval_step(model, preservation=config.eval.preservation)

    def load_networks():
        return {name: load_network(name, paths[name]).params for name in objective.networks}

    return Step(init, train_step, eval_step, load_networks)
