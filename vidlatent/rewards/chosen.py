"""The rewards of a config, called as one."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vidlatent.errors import VidlatentError
from vidlatent.models.frozen import FrozenNetwork
from vidlatent.registry import did_you_mean
from vidlatent.rewards.base import REWARDS, Arrays, Reward, RewardInputs, RewardSetting
from vidlatent.rewards.frames import FrameReward

__all__ = ["ChosenRewards", "make_rewards"]


class ChosenRewards:
    """Some rewards and the weight of each of their scores.

    Args:
      rewards: by their names in ``REWARDS``.
      weights: score -> weight; empty: every score counts 1, else those that are absent count 0.

    Attributes:
      rewards: as given.
      names: of all scores, in order.
      weights: of each score.

    Raises:
      VidlatentError: two rewards give a score of one name; a weight for a score that none gives.
    """

    def __init__(self, rewards: Mapping[str, Reward], weights: Mapping[str, float]):
        self.rewards = dict(rewards)
        self.names = tuple(score for reward in rewards.values() for score in reward.names)
        for name in self.names:
            if self.names.count(name) > 1:
                raise VidlatentError(f"two rewards give a score called {name!r}: use one of them.")
        for name in weights:
            if name not in self.names:
                hint = did_you_mean(name, self.names)
                raise VidlatentError(f"config.rewards.weights: no reward gives {name!r}: {hint}")
        unnamed = 0.0 if weights else 1.0
        self.weights = {name: float(weights.get(name, unnamed)) for name in self.names}

    @property
    def reads_prompt(self) -> bool:
        return any(reward.reads_prompt for reward in self.rewards.values())

    @property
    def reads_first(self) -> bool:
        return any(reward.reads_first for reward in self.rewards.values())

    @property
    def frozen(self) -> dict[str, FrozenNetwork]:
        """The networks of all rewards, for ``models.frozen.load_frozen``: ``reward_<name>``."""
        networks = {name: reward.frozen for name, reward in self.rewards.items()}
        return {f"reward_{name}": found for name, found in networks.items() if found is not None}

    def tokenize(self, prompts: Sequence[str]) -> dict[str, Arrays]:
        """Reward -> arrays ``[B, ...]`` of its prompts; see ``Reward.tokenize``."""
        return {name: reward.tokenize(prompts) for name, reward in self.rewards.items()}

    def encode(self, frozen: Mapping[str, Any], tokens: Mapping[str, Arrays]) -> dict[str, Arrays]:
        """Reward -> what it needs of the prompts, without a gradient; see ``Reward.encode``."""
        found = {
            name: reward.encode(_params_of(frozen, name), tokens[name])
            for name, reward in self.rewards.items()
        }
        return jax.lax.stop_gradient(found)

    def score(
        self,
        frozen: Mapping[str, Any],
        video: jax.Array,
        prompts: Mapping[str, Arrays],
        *,
        first: jax.Array | None = None,
        fps: float = 0.0,
    ) -> dict[str, jax.Array]:
        """Score -> ``[B]`` float32 of videos ``[B, T, H, W, 3]`` in [-1, 1].

        Args:
          frozen: parameters, as ``load_frozen`` placed those of ``frozen``; may hold others too.
          video: what is judged.
          prompts: from ``encode``.
          first: given first frames ``[B, H, W, 3]``.
          fps: frames a second; a constant of the compiled program.

        Raises:
          VidlatentError: while it is traced: a video that a reward cannot judge, or no ``first``
            where one needs it.
        """
        scores: dict[str, jax.Array] = {}
        for name, reward in self.rewards.items():
            inputs = self._make_inputs(name, video, prompts, first, fps)
            scores |= reward.score(_params_of(frozen, name), inputs)
        return scores

    def score_each(
        self,
        name: str,
        frozen: Mapping[str, Any],
        video: jax.Array,
        prompts: Mapping[str, Arrays],
        *,
        first: jax.Array | None = None,
        fps: float = 0.0,
    ) -> dict[str, jax.Array]:
        """As ``score``, of one reward, before the mean over frames: score -> ``[B, K]``.

        ``K`` is the number of frames that count for a reward of frames, and 1 for others.
        """
        reward = self.rewards[name]
        params = _params_of(frozen, name)
        inputs = self._make_inputs(name, video, prompts, first, fps)
        if isinstance(reward, FrameReward):
            return {reward.names[0]: reward.score_each(params, inputs)}
        return {score: value[:, None] for score, value in reward.score(params, inputs).items()}

    def _make_inputs(self, name, video, prompts, first, fps) -> RewardInputs:
        if self.rewards[name].reads_first and first is None:
            raise VidlatentError(
                f"the reward {name} compares with the first frame, and none is given: it is for "
                "image-to-video."
            )
        return RewardInputs(video, prompts[name], first, fps)

    def sum(self, scores: Mapping[str, jax.Array]) -> jax.Array:
        """``[B]`` float32: the weighted sum of the scores."""
        return sum(
            (weight * scores[name] for name, weight in self.weights.items()), start=jnp.float32(0)
        )

    def label(self, scores: Mapping[str, Any]) -> dict[str, Any]:
        """``scores`` with ``_random`` added to the names of those that random weights gave.

        So nobody takes a smoke run's curve for a published reward's.
        """
        random = {n for reward in self.rewards.values() if reward.random for n in reward.names}
        return {f"{name}_random" if name in random else name: x for name, x in scores.items()}


def make_rewards(
    names: Sequence[str], config: ConfigDict, *, dtype: Any = jnp.float32
) -> ChosenRewards:
    """The rewards of some names, with their options from ``config.rewards``.

    Nothing is loaded: ``ChosenRewards.frozen`` says what there is to load.

    Args:
      names: such as ``config.rewards.use``.
      config: a whole config; ``rewards`` and ``networks`` are read.
      dtype: compute dtype of networks.

    Raises:
      VidlatentError: no name, an unknown one, an option that the reward does not have, or a value
        that it refuses.
    """
    if not names:
        raise VidlatentError(
            "no reward is named: give config.rewards.use, such as ('motion',), one or more of "
            f"{', '.join(REWARDS.names())}."
        )
    setting = RewardSetting(config.networks.to_dict(), dtype)
    options = {name: config.rewards.get(name, {}) for name in names}
    rewards = {name: _make(name, setting, options[name]) for name in names}
    return ChosenRewards(rewards, dict(config.rewards.weights))


def _make(name: str, setting: RewardSetting, options: Mapping[str, Any]) -> Reward:
    make = REWARDS.get(name).make
    known = list(inspect.signature(make).parameters)[1:]
    for option in options:
        if option not in known:
            hint = did_you_mean(option, known) if known else "it has no options."
            raise VidlatentError(f"unknown option config.rewards.{name}.{option}: {hint}")
    return make(setting, **options)


def _params_of(frozen: Mapping[str, Any], name: str) -> Any:
    return frozen.get(f"reward_{name}", {})
