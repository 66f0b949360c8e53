"""Training a tokenizer: reconstruct the video, weigh the loss terms, update.

The adversarial and perceptual terms of the papers' recipes join as further entries of
``config.loss``; this step sums whatever terms the config names.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vidlatent.dist.rules import constrain
from vidlatent.infer.evaluate import tokenizer_eval_step
from vidlatent.infer.load import smallest_video
from vidlatent.infer.pixels import from_pixels
from vidlatent.losses import LossInputs, make_terms
from vidlatent.models.freeze import stop_frozen
from vidlatent.train.optim import learning_rate, make_optimizer
from vidlatent.train.state import apply_gradients, new_state, random_key
from vidlatent.train.steps import Step
from vidlatent.typing import VidlatentError

__all__ = ["make_step"]

STREAMS = ("noise", "content")  # what models draw in training: noise, Reducio's content frame
VIDEO_AXES = ("batch", "time", "height", "width", "channel")


def make_step(config: ConfigDict, model: Any) -> Step:
    """The tokenizer's step for ``config.loss`` and ``config.optim``.

    Batches hold ``video`` uint8 ``[B, T, H, W, 3]`` and ``mask`` float32 ``[B]``.
    """
    optim = config.optim.to_dict()
    optimizer = make_optimizer(optim)
    rate = learning_rate(optim, config.train.steps)
    objective = _objective(config.loss.to_dict(), model, optim["frozen"])

    def init(key: jax.Array):
        video = jnp.zeros(smallest_video(model.latent_spec), jnp.float32)
        return new_state(model.init(key, video)["params"], optimizer)

    def train_step(state, batch):
        rngs = {name: random_key(config.seed, name, state["step"]) for name in STREAMS}
        drawn = functools.partial(objective, rngs=rngs)
        grads, loss, terms = _accumulated(drawn, state["params"], batch, optim["accumulate"])
        state, report = apply_gradients(
            state, grads, loss, optimizer=optimizer, rate=rate, ema_decay=optim["ema_decay"]
        )
        return state, {"loss": loss, **terms, **report}

    eval_step = tokenizer_eval_step(model, preservation=config.eval.preservation)
    return Step(init, train_step, eval_step)


def _objective(weights: Mapping[str, float], model: Any, frozen: str = "") -> Callable:
    """``(params, batch, rngs) -> (loss, unweighted terms)``."""
    if not weights:
        raise VidlatentError("config.loss is empty: name at least one term, such as loss.l1 = 1.0.")
    terms = make_terms(weights)

    def objective(params, batch, rngs=None):
        params = stop_frozen(params, frozen)
        target = constrain(from_pixels(batch["video"]), VIDEO_AXES)
        prediction, posterior = model.apply({"params": params}, target, rngs=rngs)
        inputs = LossInputs(prediction, target, batch["mask"], posterior)
        values = {name: term.value(inputs, {}, {}) for name, (_, term) in terms.items()}
        return sum(terms[name][0] * value for name, value in values.items()), values

    return objective


def _accumulated(objective, params, batch, pieces: int):
    """Gradient and loss averaged over ``pieces`` equal slices of the batch, one after another."""
    value_and_grad = jax.value_and_grad(objective, has_aux=True)
    if pieces == 1:
        (loss, terms), grads = value_and_grad(params, batch)
        return grads, loss, terms
    size = batch["mask"].shape[0]
    if size % pieces:
        raise VidlatentError(
            f"config.optim.accumulate {pieces} does not divide the batch of {size}: "
            "change one of them."
        )

    # A piece takes every pieces-th sample, so that it stays spread over the mesh as the batch is.
    def split(x):
        return jnp.moveaxis(x.reshape(size // pieces, pieces, *x.shape[1:]), 1, 0)

    def add(total, piece):
        (loss, terms), grads = value_and_grad(params, piece)
        return jax.tree.map(jnp.add, total, (grads, loss, terms)), None

    first = jax.eval_shape(value_and_grad, params, jax.tree.map(lambda x: split(x)[0], batch))
    (loss, terms), grads = first
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (grads, loss, terms))
    total, _ = jax.lax.scan(add, zeros, jax.tree.map(split, batch))
    return jax.tree.map(lambda x: x / pieces, total)
