"""A reward that is trained or scored on judged pairs of videos."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vidlatent.data.sources.pairs import PairSource
from vidlatent.errors import VidlatentError
from vidlatent.models.load import resolve_dtype
from vidlatent.registry import did_you_mean
from vidlatent.rewards.base import RewardInputs
from vidlatent.rewards.chosen import make_rewards
from vidlatent.spec import FrameRule, LatentSpec

__all__ = ["PairJudge"]

_TOKENS = "tokens/"


class PairJudge:
    """The reward of ``config.rewards.use`` and the pairs of ``config.data.path``.

    A reward that reads the first frame is given each video's own.

    Args:
      config: of the run.

    Attributes:
      reward: the reward.
      names: of its scores, those that were judged.
      arrays: of a host batch that it needs.
      spec: which videos it takes.

    Raises:
      VidlatentError: not one reward with a network is named, the data are no pairs, or they judge
        by a score that the reward does not give.
    """

    arrays = ("video", "other", "judged", "mask")
    # No latents take part: videos of any size and length, as the reward allows.
    spec = LatentSpec("pixels", 3, 1, 1, 1, FrameRule(1, 1))

    def __init__(self, config: ConfigDict):
        use = tuple(config.rewards.use)
        rewards = make_rewards(use, config, dtype=resolve_dtype(config)).rewards
        if len(use) != 1 or not rewards[use[0]].network:
            raise VidlatentError(
                f"config.rewards.use={use!r}: name the one reward that is trained, one with a "
                "network, such as ('mps',)."
            )
        if config.data.source != "pairs":
            raise VidlatentError(
                f"config.data.source={config.data.source!r}: a reward learns from judged pairs; "
                "set --config.data.source=pairs and name their folder by --config.data.path."
            )
        self.reward = rewards[use[0]]
        source, known = PairSource(config.data.path), self.reward.names
        self._fps = float(config.data.fps)
        for score in source.scores:
            if score and score not in known:
                raise VidlatentError(
                    f"{source.where} judges by {score!r}: {did_you_mean(score, known)}"
                )
        # A judgement that names no score is one of all.
        whole = source.scores == ("",)
        self.names = known if whole else tuple(n for n in known if n in source.scores)
        self._columns = [0 if whole else source.scores.index(name) for name in self.names]

    def read_batch(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The arrays of a host batch that go to the devices, with the prompts' tokens."""
        prompts = list(batch.get("caption", [""] * len(batch["mask"])))
        real = np.flatnonzero(batch["mask"])
        if len(real):
            # Padding has no prompt, which a reward may refuse.
            told = zip(prompts, batch["mask"], strict=True)
            prompts = [prompt if mask else prompts[real[0]] for prompt, mask in told]
        tokens = self.reward.tokenize(prompts)
        arrays = {name: batch[name] for name in self.arrays}
        return arrays | {_TOKENS + name: array for name, array in tokens.items()}

    def score(
        self, params: Any, batch: Mapping[str, jax.Array], other: Any = None
    ) -> dict[str, jax.Array]:
        """``first``, ``second`` and ``judged`` of each score, ``[B, scores]``.

        Args:
          params: of the reward's network.
          batch: of ``read_batch``.
          other: those that judge the second videos, where they draw a dropout of their own.
        """
        tokens = {
            name.removeprefix(_TOKENS): array
            for name, array in batch.items()
            if name.startswith(_TOKENS)
        }
        prompt = self.reward.encode(params, tokens)
        found = {}
        for side, name in (("first", "video"), ("second", "other")):
            video = batch[name].astype(jnp.float32) / 127.5 - 1
            first = video[:, 0] if self.reward.reads_first else None
            judge = other if side == "second" and other is not None else params
            scores = self.reward.score(judge, RewardInputs(video, prompt, first, self._fps))
            found[side] = jnp.stack([scores[score] for score in self.names], axis=1)
        return found | {"judged": batch["judged"][:, jnp.array(self._columns)]}
