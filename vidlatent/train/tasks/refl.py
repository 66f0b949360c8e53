"""Training a generator by the gradients of rewards of its own samples: ReFL (FSVideo 2.4.3).

Each step takes some steps of the sampler without a gradient and one with, decodes the first frames
of the clean sample that this one predicts, and raises what the rewards say of them. Beside it goes
the usual loss on the clips of the data set, whose texts, classes and first frames are the prompts.
Decoder and rewards are frozen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from ml_collections import ConfigDict

from vidlatent import config as configs
from vidlatent.diffusion.refl import attach_gradient, hinge
from vidlatent.errors import VidlatentError
from vidlatent.latents.refiner_inputs import Parts
from vidlatent.latents.space import Latents
from vidlatent.registry import did_you_mean
from vidlatent.sample.judge import Judge
from vidlatent.sample.policy import Policy
from vidlatent.train.state import random_key
from vidlatent.train.tasks.rewarded import RewardedTask
from vidlatent.train.update import make_slice_keys

__all__ = ["ReflTask"]


class ReflTask(RewardedTask):
    """Raises ``config.rewards.use`` by their gradients, through the frozen decoder.

    Arguments are those of ``RewardedTask``.
    """

    def __init__(
        self,
        config: ConfigDict,
        model: Any = None,
        latents: Latents | None = None,
        parts: Parts | None = None,
        tokenizer: ConfigDict | None = None,
    ):
        _check(config)
        super().__init__(config, model, latents, parts, tokenizer)
        self._hinges = _read_hinges(self.config, self.judge.names, self.weights)

    def make_judge(self, names: Sequence[str], tokenizer: ConfigDict | None) -> Judge:
        refl = self.config.refl
        judge = Judge(self.config, self.latents, names, tokenizer, remat=refl.stream)
        decoder = judge.decoder
        if refl.stream and decoder.streams:
            decoder.groups = refl.groups
        elif refl.stream and self.spec.chunks is None:
            logging.warning(
                "refl: the decoder of %s cannot go on from piece to piece: whole clips go through "
                "it, backward too.",
                self.spec.name,
            )
        return judge

    def check_prompts(self) -> None:
        super().check_prompts()
        if self.config.refl.flow_weight:
            raise VidlatentError(
                f"config.refl.flow_weight={self.config.refl.flow_weight} counts the loss on the "
                f"clips, and config.data.path={self.config.data.path} holds prompts without any: "
                "set it to 0."
            )

    def make_policy(self, shape: tuple[int, ...]) -> Policy:
        policy, (first, last) = super().make_policy(shape), self.config.refl.steps
        if not first <= last < policy.steps:
            raise VidlatentError(
                f"config.refl.steps=({first}, {last}): the sampler's steps are 0 to "
                f"{policy.steps - 1} (config.sampler.steps), and the first is not after the last."
            )
        return policy

    def compute_loss(
        self, params: Any, batch: Mapping[str, jax.Array], frozen: Any, step: Any, number: Any
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        refl = self.config.refl
        reward, report = self._lose_rewards(params, batch, frozen, step, number)
        loss = refl.scale * reward
        report["reward_loss"] = reward
        if refl.flow_weight:
            flow, more = super().compute_loss(params, batch, frozen, step, number)
            report |= {**more, "data_loss": flow}
            loss += refl.flow_weight * flow
        return loss, report

    def _lose_rewards(
        self, trained: Any, batch: Mapping[str, jax.Array], frozen: Any, step: Any, number: Any
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The rewards' part of the loss, before its scale, and what is logged of it."""
        config, refl, mask = self.config, self.config.refl, batch["mask"]
        key = make_slice_keys(config.seed, step, number)
        latent, conditions = jax.lax.stop_gradient(self.inputs(batch, frozen, key("latent")))
        policy = self.policy_of(self.find_shape(latent))
        index = jax.random.randint(key("refl step"), (), refl.steps[0], refl.steps[1] + 1)
        seed = config.seed if config.rl.start_seed < 0 else config.rl.start_seed
        start = jax.random.fold_in(random_key(seed, "rollout start", step), number)
        noise = jax.random.normal(start, (len(mask), *policy.shape), jnp.float32)
        params = self.merge(trained, frozen)
        state = policy.walk(jax.lax.stop_gradient(params), conditions, noise, 0, index)
        clean = policy.predict_clean(params, conditions, jax.lax.stop_gradient(state), index)
        seen = clean[:, : refl.latents or None]
        shown = self.judge.show(batch, frozen, conditions.get("first"))
        rows = mask / jnp.maximum(mask.sum(), 1.0)  # a slice may hold padding only

        def lose(each):
            hinges = ((self._hinges[name], scores) for name, scores in each.items())
            losses = (weight * hinge(scores, *rest)[0] for (weight, *rest), scores in hinges)
            return sum(rows @ loss for loss in losses)

        if refl.stream:
            held = jax.lax.stop_gradient(seen)
            loss, each, gradient = self.judge.differentiate(frozen, held, shown, lose)
            loss = attach_gradient(seen, loss, gradient)
        else:
            loss, each = self.judge.lose(frozen, seen, shown, lose)
        if refl.divide_by_guidance:
            loss = loss / policy.guidance_at(index)
        return loss, {**self._report(each, rows), "step_with_gradient": index.astype(jnp.float32)}

    def _report(self, each: Mapping[str, jax.Array], rows: jax.Array) -> dict[str, jax.Array]:
        means = {name: rows @ scores.mean(axis=1) for name, scores in each.items()}
        below = {n: rows @ hinge(x, *self._hinges[n][1:])[1] for n, x in each.items()}
        label = self.judge.rewards.label
        return {
            "reward": sum(w * means[n] for n, w in self.judge.rewards.weights.items()),
            **{f"reward/{name}": value for name, value in label(means).items()},
            **{f"below_margin/{name}": value for name, value in label(below).items()},
        }


def _read_hinges(
    config: ConfigDict, names: Sequence[str], weights: Sequence[float]
) -> dict[str, tuple[float, float, float, float]]:
    """Score -> its weight, margin, mean and deviation.

    Raises:
      VidlatentError: a name that no reward gives, or a negative weight.
    """
    refl = config.refl
    for key in ("margins", "standards"):
        for name, *_ in refl[key]:
            if name not in names:
                hint = did_you_mean(name, names)
                raise VidlatentError(f"config.refl.{key}: no reward gives {name!r}: {hint}")
    if min(weights) < 0:
        raise VidlatentError(
            "config.rewards.weights: a hinge raises scores: give weights of 0 or more to refl."
        )
    margins = dict(refl.margins)
    standards = {name: rest for name, *rest in refl.standards}
    return {
        name: (weight, margins.get(name, refl.margin), *standards.get(name, (0.0, 1.0)))
        for name, weight in zip(names, weights, strict=True)
    }


def _check(config: ConfigDict) -> None:
    """Raise ``VidlatentError`` for options that do not go together."""
    if configs.role_of(config) == "refiner":
        raise VidlatentError(
            "config.task=refl tunes base models; a refiner learns by policy updates: take "
            "stage=grpo."
        )
    for name in config.rewards.use:
        if config.rewards.get(name, {}).get("quantize") == "round":
            raise VidlatentError(
                f"config.rewards.{name}.quantize=round has no gradient for refl: set it to "
                "straight or none."
            )
