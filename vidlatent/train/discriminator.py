"""The discriminator beside a tokenizer: its state, its gradients and its schedule.

Both players are served by one evaluation of the discriminator on the reconstruction: its pullback
with the generator's loss gives the gradient that goes on into the reconstruction, with the
discriminator's loss the gradient of the discriminator's parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vidlatent.losses.adversarial import (
    discriminator_loss,
    generator_loss,
    lecam,
    lecam_anchors,
    lecam_update,
    r1_penalty,
)
from vidlatent.models.discriminators import build_discriminator
from vidlatent.train.optim import learning_rate, make_optimizer
from vidlatent.train.state import Player, State, new_player
from vidlatent.train.tasks.base import SHARE

__all__ = ["Judge", "Verdict"]


class Verdict(NamedTuple):
    """What the discriminator makes of one batch.

    Attributes:
      loss: the generator's adversarial loss, unweighted, float32 scalar.
      to_prediction: its gradient, the shape of the reconstruction.
      weight: what it counts at this step, before an adaptive factor.
      grads: of the discriminator's parameters for the discriminator's own loss.
      values: new batch statistics and anchors.
      report: numbers for the curves: mean logits, the discriminator's loss without regularisers
        (``discriminator/loss``), LeCam's value without its weight (``discriminator/lecam``) and
        R1's with it (``discriminator/r1``, of the steps that take it: ``train.steps.SHARE``).
    """

    loss: jax.Array
    to_prediction: jax.Array
    weight: jax.Array
    grads: Any
    values: dict[str, Any]
    report: dict[str, jax.Array]


class Judge:
    """The discriminator of ``config.discriminator``.

    Args:
      config: the section as a dict; ``model`` is not empty.
      steps: length of the run, for the learning rate's schedule.
      dtype: compute dtype.
    """

    def __init__(self, config: Mapping[str, Any], steps: int, dtype: Any):
        self.config = config
        self.discriminator = build_discriminator(config["model"], dtype)
        self.optimizer = make_optimizer(config["optim"])
        self.rate = learning_rate(config["optim"], steps)

    def init(self, key: jax.Array, clip: tuple[int, int, int]) -> State:
        """The discriminator's part of a new state, for clips of ``clip`` frames, rows and
        columns."""
        stats = self.discriminator.init_stats()
        video = jnp.zeros((1, *clip, 3), jnp.float32)
        params = self.discriminator.init(key, video, stats, True)["params"]
        values = {"stats": stats}
        if self.config["lecam_weight"]:
            values["anchors"] = lecam_anchors(self.discriminator.scales)
        return new_player(params, self.optimizer, **values)

    def looks_at(self, frames: int) -> bool:
        """Whether clips of so many frames are judged."""
        images = self.config["images"] and self.discriminator.smallest_clip[0] == 1
        return frames > 1 or images

    def weight(self, step: jax.Array) -> jax.Array:
        """Weight of the generator's adversarial loss at a step; 0 before ``start_step``."""
        since = jnp.asarray(step - self.config["start_step"], jnp.float32)
        ramp = jnp.clip((since + 1.0) / max(1, self.config["warmup_steps"]), 0.0, 1.0)
        return self.config["weight"] * jnp.where(since >= 0, ramp, 0.0)

    def verdict(
        self, state: State, prediction: jax.Array, target: jax.Array, step: jax.Array, key: Any
    ) -> Verdict:
        """Both players' losses and gradients on one batch.

        Args:
          state: the discriminator's part of the training state.
          prediction, target: ``[B, T, H, W, 3]`` in [-1, 1].
          step: training step.
          key: randomness of the gradient penalty's crop.
        """
        kind = self.config["loss"]

        def losses(prediction, params):
            real, stats = self._apply(params, target, state["stats"])
            fake, stats = self._apply(params, prediction, stats)
            mine = discriminator_loss(kind, real, fake)
            report = {"discriminator/real": _level(real), "discriminator/fake": _level(fake)}
            report["discriminator/loss"] = mine
            extra, anchors = jnp.float32(0), {}
            if self.config["lecam_weight"]:
                old = state["anchors"]
                report["discriminator/lecam"] = lecam(old, real, fake)
                extra = self.config["lecam_weight"] * report["discriminator/lecam"]
                anchors = {
                    "anchors": lecam_update(old, real, fake, decay=self.config["lecam_decay"])
                }
            both = generator_loss(kind, fake), self.config["scale"] * (mine + extra)
            return both, ({"stats": stats, **anchors}, report)

        (loss, _), pullback, (values, report) = jax.vjp(
            losses, prediction, state["params"], has_aux=True
        )
        one, none = jnp.float32(1), jnp.float32(0)
        to_prediction = pullback((one, none))[0]
        grads = pullback((none, one))[1]
        if self.config["r1_weight"]:
            grads, penalty = self._with_penalty(grads, state, target, step, key)
            report |= penalty
        return Verdict(loss, to_prediction, self.weight(step), grads, values, report)

    def player(self, verdict: Verdict, step: jax.Array) -> Player:
        """The discriminator's update; none before ``start_step``."""
        return Player(
            verdict.grads,
            self.optimizer,
            self.rate(step),
            verdict.values,
            active=step >= self.config["start_step"],
        )

    def _apply(self, params: Any, video: jax.Array, stats: Any):
        return self.discriminator.apply({"params": params}, video, stats, True)

    def _with_penalty(self, grads, state, target, step, key):
        """Adds R1's gradient at every ``r1_every``-th step, so many times as strong (lazy R1).

        Returns the gradients, and R1's value with its share in the report: 1, or 0 at other steps.
        """
        every = self.config["r1_every"]
        crop = _random_crop(key, target, self.config["r1_crop"])

        def penalty(params):
            return r1_penalty(logits, params, crop, gamma=self.config["r1_weight"])

        # In float32, and with the statistics it has: samples must not see each other.
        discriminator = self.discriminator.clone(dtype=jnp.float32)

        def logits(params, video):
            return discriminator.apply({"params": params}, video, state["stats"], False)[0]

        def now(grads):
            value, own = jax.value_and_grad(penalty)(state["params"])
            return jax.tree.map(lambda g, o: g + every * o, grads, own), value

        def later(grads):
            return grads, jnp.float32(0)

        due = step % every == 0
        grads, value = jax.lax.cond(due, now, later, grads)
        report = {
            "discriminator/r1": value,
            "discriminator/r1" + SHARE: jnp.asarray(due, jnp.float32),
        }
        return grads, report


def _level(logits: Any) -> jax.Array:
    """Mean logit over scales, samples and positions."""
    return sum(scale.mean() for scale in logits) / len(logits)


def _random_crop(key: jax.Array, video: jax.Array, size: tuple[int, int, int]) -> jax.Array:
    """A window of at most ``size`` (frames, height, width), float32; from the first frame on."""
    wanted = [min(have, most) for have, most in zip(video.shape[1:4], size, strict=True)]
    rooms = [have - want for have, want in zip(video.shape[2:4], wanted[1:], strict=True)]
    places = [
        jax.random.randint(k, (), 0, room + 1)
        for k, room in zip(jax.random.split(key), rooms, strict=True)
    ]
    starts = (0, 0, *places, 0)
    return jax.lax.dynamic_slice(
        video.astype(jnp.float32), starts, (video.shape[0], *wanted, video.shape[4])
    )
