"""Judging latents by rewards inside a compiled function: decode, and score the frames."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
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
# {score: [B, K]} -> a float32 scalar
Lose = Callable[[Mapping[str, jax.Array]], jax.Array]


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
      groups, remat: pieces of the decoder, see ``FrozenDecoder``.

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
        remat: bool = False,
    ):
        self.rewards: ChosenRewards = make_rewards(names, config, dtype=resolve_dtype(config))
        self.names = self.rewards.names
        self.decoder = FrozenDecoder(config, latents, tokenizer, groups, remat)
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

    def lose(
        self, frozen: Mapping[str, Any], latent: jax.Array, shown: Shown, lose: Lose
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """A loss of the scores, and the scores, for plain differentiation.

        Args:
          frozen: parameters.
          latent: standardised, ``[B, t, h, w, c]``.
          shown: beside it.
          lose: loss of some of the scores, ``{name: [B, K]}`` (``ChosenRewards.score_each``), a
            float32 scalar. It is called for each reward, and the loss is the sum.

        Returns:
          The loss, and all scores as ``lose`` is given them.
        """
        video = self.decoder(frozen["tokenizer"], latent, shown.condition)
        found = [self._lose_one(name, frozen, video, shown, lose) for name in self.rewards.rewards]
        scores = {name: each for _, own in found for name, each in own.items()}
        return sum(loss for loss, _ in found), scores

    def differentiate(
        self, frozen: Mapping[str, Any], latent: jax.Array, shown: Shown, lose: Lose
    ) -> tuple[jax.Array, dict[str, jax.Array], jax.Array]:
        """``lose`` and its gradient with respect to the latent, with the memory of one chunk.

        Frames are decoded piece by piece. Then each reward by itself says how it would change them,
        slice by slice of its frames, and last that goes back through the decoder, piece by piece
        from the last one on. Nothing but frames and what a stream hands on is kept in between.

        Returns:
          The loss, the scores, and the gradient ``[B, t, h, w, c]``.
        """

        def decode(latent):
            return self.decoder(frozen["tokenizer"], latent, shown.condition)

        video, pull = jax.vjp(decode, latent)
        total, wanted = jnp.zeros((), jnp.float32), jnp.zeros_like(video)
        scores: dict[str, jax.Array] = {}
        for name in self.rewards.rewards:
            compute = functools.partial(self._lose_one, name, frozen, shown=shown, lose=lose)
            (loss, own), change = jax.value_and_grad(compute, has_aux=True)(video)
            scores |= own
            total, wanted = total + loss, wanted + change
            # The next reward begins when this one is done, so that only one's states are there.
            video, wanted = jax.lax.optimization_barrier((video, wanted))
        return total, scores, pull(wanted)[0]

    def _lose_one(self, name, frozen, video, shown, lose) -> tuple[Any, dict[str, jax.Array]]:
        each = self.rewards.score_each(
            name, frozen, video, shown.prompts, first=shown.first, fps=self.fps
        )
        return lose(each), each


def repeat_shown(shown: Shown, prompts: int, times: int) -> Shown:
    """What is shown of P prompts for ``times`` samples of each, which follow one another."""

    def repeat(x):
        # A decoder may read several frames of each video: [P n, ...] -> [P, n, ...]
        rows = x.reshape(prompts, -1, *x.shape[1:])
        return jnp.repeat(rows, times, axis=0).reshape(-1, *x.shape[1:])

    return jax.tree.map(repeat, shown)
