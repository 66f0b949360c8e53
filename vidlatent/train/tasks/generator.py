"""Training a generator: noise the latents, drop conditions, compare with the target, update.

Latents come from a data set of them, or from videos through the frozen tokenizer. What is drawn is
a function of the seed, the stream's name and the step.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vidlatent.diffusion.guidance import drop_masks
from vidlatent.diffusion.objective import draw, sample_loss
from vidlatent.errors import VidlatentError
from vidlatent.evaluate.generator_loss import loss_step, schedule_for
from vidlatent.latents.inputs import Inputs, absent
from vidlatent.latents.space import Latents, example
from vidlatent.registry import did_you_mean
from vidlatent.train.freeze import stop_frozen
from vidlatent.train.microbatches import averaged
from vidlatent.train.optim import learning_rate, make_optimizer
from vidlatent.train.state import apply_gradients, new_state, random_key
from vidlatent.train.tasks.base import Step

__all__ = ["make_step"]


def make_step(config: ConfigDict, model: Any, latents: Latents) -> Step:
    """The generator's step for ``config.diffusion``, ``config.conditions`` and ``config.optim``.

    Batches hold ``latent`` float32 ``[B, t, h, w, c]`` as encoded (or ``video`` uint8
    ``[B, T, H, W, 3]``), ``mask`` float32 ``[B]`` and what the generator's conditions are made of.

    Args:
      config: of the run.
      model: the generator (``reads``, ``denoise``).
      latents: what is known of the latents.
    """
    optim = config.optim.to_dict()
    optimizer = make_optimizer(optim)
    rate = learning_rate(optim, config.train.steps)
    inputs = Inputs(config, model, latents)
    loss_of = _Loss(config, model, inputs)
    pieces = config.optim.accumulate

    def init(key: jax.Array):
        shapes = example(model)
        noisy, time = (jnp.zeros(s.shape, s.dtype) for s in shapes[:2])
        return new_state(
            model.init(key, noisy, time, shapes[2], method="denoise")["params"], optimizer
        )

    def train_step(state, batch, networks):
        def found(rows, number):
            return jax.value_and_grad(loss_of)(
                state["params"], rows, networks, state["step"], number
            )

        loss, grads = found(batch, 0) if pieces == 1 else averaged(found, batch, pieces)
        state, report = apply_gradients(
            state,
            grads,
            loss,
            optimizer=optimizer,
            rate=rate,
            ema_decay=optim["ema_decay"],
        )
        return state, {"loss": loss, **report}

    return Step(
        init, train_step, loss_step(config, model, inputs), inputs.load_networks, inputs.arrays
    )


class _Loss:
    """``(params, batch, networks, step, piece) -> loss``, a mean over the real samples."""

    def __init__(self, config: ConfigDict, model: Any, inputs: Inputs):
        self.config, self.model, self.inputs = config, model, inputs
        self.rates, self.joint = config.conditions.drop.to_dict(), config.conditions.joint
        for name in {name for group in self.rates for name in group.split("+")}:
            if name not in model.reads:
                hint = did_you_mean(name, model.reads) if model.reads else "it reads nothing."
                raise VidlatentError(
                    f"config.conditions.drop names {name!r}, which the generator does not read: "
                    f"{hint}"
                )

    def _drop(self, key, x0, conditions):
        """Masks ``[B]`` by condition: what is dropped by chance and what is not there."""
        batch, frames = x0.shape[:2]
        drop = {}
        for group, mask in drop_masks(key, batch, self.rates, self.joint).items():
            for name in group.split("+"):
                drop[name] = drop[name] | mask if name in drop else mask
        for name, lacking in absent(conditions, self.model.reads, frames).items():
            drop[name] = drop[name] | lacking if name in drop else lacking
        return drop

    def __call__(self, params, batch, networks, step, piece):
        config = self.config

        def key(stream):
            return jax.random.fold_in(random_key(config.seed, stream, step), piece)

        x0, conditions = self.inputs(batch, networks, key("latent"))
        schedule = schedule_for(config, self.model, x0.shape[1:4])
        drawn = draw(schedule, key("diffusion"), x0)
        drop = self._drop(key("drop"), x0, conditions)
        params = stop_frozen(params, config.optim.freeze)
        output = self.model.apply(
            {"params": params}, drawn.x, drawn.time, conditions, drop=drop, method="denoise"
        )
        losses = sample_loss(
            schedule,
            drawn,
            output,
            x0,
            config.diffusion.huber_reduction,
            config.diffusion.huber_c0,
        )
        mask = batch["mask"]
        return jnp.sum(losses * mask) / jnp.maximum(jnp.sum(mask), 1.0)
