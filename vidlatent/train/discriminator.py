"""Training a discriminator against a tokenizer: its state, its gradients and its schedule.

The discriminator runs once on the reconstruction, and both gradients are taken from that one
forward pass: that of the adversarial loss with respect to the reconstruction (for the tokenizer),
and that of the discriminator's own loss with respect to its parameters.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vidlatent.losses.adversarial import (
    discriminator_loss,
    generator_loss,
    lecam,
    lecam_anchors,
    lecam_update,
    r1_penalty,
)
from vidlatent.models.discriminators import build_discriminator
from vidlatent.train.optim import make_learning_rate, make_optimizer
from vidlatent.train.state import PlayerUpdate, State, init_player
from vidlatent.train.tasks.base import SHARE

__all__ = ["AdversarialResult", "DiscriminatorTrainer"]


class AdversarialResult(NamedTuple):
    """Losses and gradients of one batch, for the tokenizer and for the discriminator.

    Attributes:
      loss: the tokenizer's adversarial loss, unweighted, float32 scalar.
      to_prediction: gradient of ``loss`` with respect to the reconstruction,
        ``[B, T, H, W, 3]``.
      weight: weight of ``loss`` at this step, before the adaptive factor; float32 scalar.
      grads: gradient of the discriminator's own loss with respect to its parameters.
      values: new batch statistics and LeCam anchors.
      report: scalars to log: mean logits, the discriminator's loss without regularisers
        (``discriminator/loss``), LeCam without its weight (``discriminator/lecam``), and R1 with
        its weight (``discriminator/r1``, only on steps that compute it: see ``SHARE``).
    """

    loss: jax.Array
    to_prediction: jax.Array
    weight: jax.Array
    grads: Any
    values: dict[str, Any]
    report: dict[str, jax.Array]


class DiscriminatorTrainer:
    """Trains the discriminator of ``config.discriminator``, and the tokenizer against it.

    Args:
      config: config of the run; ``config.discriminator.model`` must not be empty.
      dtype: compute dtype.
    """

    def __init__(self, config: ConfigDict, dtype: Any):
        self.config = config
        self.model = build_discriminator(config.discriminator.model.to_dict(), dtype)
        self.optimizer = make_optimizer(config.discriminator)
        self.rate = make_learning_rate(config.discriminator, config.train.steps)

    def init(self, key: jax.Array, clip: tuple[int, int, int]) -> State:
        """The discriminator's part of a new state, for clips of ``(frames, height, width)``."""
        stats = self.model.init_stats()
        video = jnp.zeros((1, *clip, 3), jnp.float32)
        params = self.model.init(key, video, stats, True)["params"]
        values = {"stats": stats}
        if self.config.discriminator.lecam_weight:
            values["anchors"] = lecam_anchors(self.model.scales)
        return init_player(params, self.optimizer, **values)

    def accepts(self, frames: int) -> bool:
        """Whether clips of ``frames`` frames are shown to the discriminator."""
        # A discriminator that needs several frames cannot see pictures.
        images = self.config.discriminator.images and self.model.smallest_clip[0] == 1
        return frames > 1 or images

    def compute_weight(self, step: jax.Array) -> jax.Array:
        """Weight of the tokenizer's adversarial loss at ``step``.

        It is 0 before ``start_step`` and then grows linearly over ``warmup_steps``.
        """
        since = jnp.asarray(step - self.config.discriminator.start_step, jnp.float32)
        # + 1, so that the first adversarial step has a weight above 0.
        grown = jnp.clip((since + 1.0) / max(1, self.config.discriminator.warmup_steps), 0.0, 1.0)
        return self.config.discriminator.weight * jnp.where(since >= 0, grown, 0.0)

    def compute_losses(
        self, state: State, prediction: jax.Array, target: jax.Array, step: jax.Array, key: Any
    ) -> AdversarialResult:
        """Losses and gradients of one batch, for the tokenizer and for the discriminator.

        Args:
          state: the discriminator's part of the training state.
          prediction, target: ``[B, T, H, W, 3]`` in [-1, 1].
          step: training step.
          key: random key that places the crop for the gradient penalty.
        """
        options = self.config.discriminator

        def compute(prediction, params):
            # [B, T, H, W, 3] -> a list of logit maps. Two calls, so that batch statistics never
            # mix real and fake clips.
            real, stats = self._apply(params, target, state["stats"])
            fake, stats = self._apply(params, prediction, stats)
            own = discriminator_loss(options.loss, real, fake)
            report = {"discriminator/real": _average_logits(real)}
            report["discriminator/fake"] = _average_logits(fake)
            report["discriminator/loss"] = own
            extra, anchors = jnp.float32(0), {}
            if options.lecam_weight:
                old = state["anchors"]
                report["discriminator/lecam"] = lecam(old, real, fake)
                extra = options.lecam_weight * report["discriminator/lecam"]
                new = lecam_update(old, real, fake, decay=options.lecam_decay)
                anchors = {"anchors": new}
            # Latent diffusion and Reducio halve the discriminator's loss: scale is 0.5 there.
            both = generator_loss(options.loss, fake), options.scale * (own + extra)
            return both, ({"stats": stats, **anchors}, report)

        (loss, _), pullback, (values, report) = jax.vjp(
            compute, prediction, state["params"], has_aux=True
        )
        # Two backward passes through the same forward pass, one for each loss.
        one, none = jnp.float32(1), jnp.float32(0)
        # The half of each result that is not used is never computed: the compiler removes it.
        to_prediction = pullback((one, none))[0]
        grads = pullback((none, one))[1]
        if options.r1_weight:
            grads, penalty = self._add_penalty(grads, state, target, step, key)
            report |= penalty
        weight = self.compute_weight(step)
        return AdversarialResult(loss, to_prediction, weight, grads, values, report)

    def make_update(self, result: AdversarialResult, step: jax.Array) -> PlayerUpdate:
        """The discriminator's update; before ``start_step`` it leaves everything unchanged."""
        return PlayerUpdate(
            result.grads,
            self.optimizer,
            self.rate(step),
            result.values,
            active=step >= self.config.discriminator.start_step,
        )

    def _apply(self, params: Any, video: jax.Array, stats: Any):
        return self.model.apply({"params": params}, video, stats, True)

    def _add_penalty(self, grads, state, target, step, key):
        """Add R1's gradient every ``r1_every`` steps, multiplied by ``r1_every``.

        This is the lazy regularisation of StyleGAN2 (Karras et al. 2020, appendix B). Returns the
        gradients and the scalars to log: R1 and its 0/1 indicator (see ``SHARE``).
        """
        every = self.config.discriminator.r1_every
        crop = _crop_randomly(key, target, self.config.discriminator.r1_crop)

        def penalty(params):
            return r1_penalty(logits, params, crop, gamma=self.config.discriminator.r1_weight)

        # Use the running statistics: with batch statistics, the gradient at one sample would
        # depend on the other samples. Second derivatives are computed in float32.
        discriminator = self.model.clone(dtype=jnp.float32)

        def logits(params, video):
            return discriminator.apply({"params": params}, video, state["stats"], False)[0]

        def add(grads):
            value, own = jax.value_and_grad(penalty)(state["params"])
            return jax.tree.map(lambda g, o: g + every * o, grads, own), value

        def skip(grads):
            return grads, jnp.float32(0)

        # A branch and not a factor of 0: other steps must not pay for second derivatives.
        due = step % every == 0
        grads, value = jax.lax.cond(due, add, skip, grads)
        report = {
            "discriminator/r1": value,
            "discriminator/r1" + SHARE: jnp.asarray(due, jnp.float32),
        }
        return grads, report


def _average_logits(logits: Any) -> jax.Array:
    """Mean logit over scales, samples and positions."""
    return sum(scale.mean() for scale in logits) / len(logits)


def _crop_randomly(key: jax.Array, video: jax.Array, size: tuple[int, int, int]) -> jax.Array:
    """Crop ``[B, T, H, W, C]`` to at most ``size`` (frames, height, width), float32.

    The place is random in height and width; in time the crop starts at the first frame.
    """
    # Small buckets have clips below the size of the crop: these are taken whole.
    wanted = [min(have, most) for have, most in zip(video.shape[1:4], size, strict=True)]
    rooms = [have - want for have, want in zip(video.shape[2:4], wanted[1:], strict=True)]
    places = [
        jax.random.randint(k, (), 0, room + 1)
        for k, room in zip(jax.random.split(key), rooms, strict=True)
    ]
    # All samples and channels, from frame 0, at one place for the whole batch.
    starts = (0, 0, *places, 0)
    return jax.lax.dynamic_slice(
        video.astype(jnp.float32), starts, (video.shape[0], *wanted, video.shape[4])
    )
