"""Judging latents by rewards inside a compiled function: decode, and score the frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vidlatent.latents.decoder import FrozenDecoder
from vidlatent.latents.space import Latents
from vidlatent.models.frozen import FrozenNetwork
from vidlatent.models.load import resolve_dtype
from vidlatent.rewards import ChosenRewards, make_rewards

__all__ = ["Judge", "Shown", "repeat_shown"]

_TOKENS = "reward_tokens"


class Shown(NamedTuple):
    """What is shown to decoder and rewards beside the latents of P prompts.

    Attributes:
      prompts: reward -> what it needs of the prompts.
      condition: what the decoder reads; None for nothing.
      first: given first frames ``[P, H, W, 3]`` in [-1, 1]; None without.
    """

    prompts: Any
    condition: Any
    first: jax.Array | None


class Judge:
    """The frozen decoder and some rewards; their parameters are an argument.

    Args:
      config: of the run.
      latents: facts about the latents.
      names: of the rewards.
      tokenizer: config of the tokenizer, if its run need not be there.
      groups: groups of frames that are decoded at a time, see ``FrozenDecoder``.

    Attributes:
      rewards: all of them.
      names: of their scores, in the order in which ``score`` gives them.
    """

    def __init__(
        self,
        config: ConfigDict,
        latents: Latents,
        names: Sequence[str],
        tokenizer: ConfigDict | None = None,
        groups: int = 0,
    ):
        self.rewards: ChosenRewards = make_rewards(names, config, dtype=resolve_dtype(config))
        self.names = self.rewards.names
        self.decoder = FrozenDecoder(config, latents, tokenizer, groups)
        self.fps = float(config.sample.fps or latents.fps)

    @property
    def frozen(self) -> dict[str, FrozenNetwork]:
        return {"tokenizer": self.decoder.frozen, **self.rewards.frozen}

    def read_prompts(self, batch: Mapping[str, Any], labels: Sequence[str]) -> dict[str, Any]:
        """Arrays ``[B, ...]`` of a host batch's prompts, made by the rewards' own tokenizers.

        A prompt is the clip's caption, or the name of its class, or ''.

        Args:
          batch: of the loader.
          labels: names of the classes.
        """
        size = len(batch["mask"])
        if "caption" in batch:
            prompts = list(batch["caption"])
        elif "label" in batch:
            prompts = [labels[n] if 0 <= n < len(labels) else "" for n in batch["label"]]
        else:
            prompts = [""] * size
        real = np.flatnonzero(batch["mask"])
        if len(real):
            # Padding has no prompt, which a reward may refuse.
            prompts = [
                p if m else prompts[real[0]] for p, m in zip(prompts, batch["mask"], strict=True)
            ]
        tokens = self.rewards.tokenize(prompts)
        return {
            f"{_TOKENS}/{reward}/{name}": array
            for reward, arrays in tokens.items()
            for name, array in arrays.items()
        }

    def show(
        self, batch: Mapping[str, jax.Array], frozen: Mapping[str, Any], first: jax.Array | None
    ) -> Shown:
        """What decoder and rewards see of a batch's prompts, once for all samples of each.

        Args:
          batch: with the arrays of ``read_prompts``.
          frozen: parameters.
          first: standardised latents ``[P, 1, h, w, c]`` of the given first frames, or None.
        """
        tokens: dict[str, dict[str, Any]] = {name: {} for name in self.rewards.rewards}
        for name, array in batch.items():
            if name.startswith(_TOKENS + "/"):
                _, reward, own = name.split("/", 2)
                tokens[reward][own] = array
        condition = self.decoder.make_condition(batch, frozen["tokenizer"])
        frames = None
        if first is not None and self.rewards.reads_first:
            frames = self.decoder(frozen["tokenizer"], first, condition)[:, 0]
        return jax.lax.stop_gradient(Shown(self.rewards.encode(frozen, tokens), condition, frames))

    def score(self, frozen: Mapping[str, Any], latent: jax.Array, shown: Shown) -> jax.Array:
        """Scores ``[B, R]`` float32 of standardised latents ``[B, t, h, w, c]``."""
        video = self.decoder(frozen["tokenizer"], latent, shown.condition)
        scores = self.rewards.score(frozen, video, shown.prompts, first=shown.first, fps=self.fps)
        return jnp.stack([scores[name] for name in self.names], axis=-1)


def repeat_shown(shown: Shown, prompts: int, times: int) -> Shown:
    """What is shown of P prompts for ``times`` samples of each, which follow one another."""

    def repeat(x):
        # A decoder may read several frames of each video: [P n, ...] -> [P, n, ...]
        rows = x.reshape(prompts, -1, *x.shape[1:])
        return jnp.repeat(rows, times, axis=0).reshape(-1, *x.shape[1:])

    return jax.tree.map(repeat, shown)
