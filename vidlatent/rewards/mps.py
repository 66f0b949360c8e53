"""MPS as a reward: preference for the frames, given the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vidlatent.data.text.clip import ClipTokenizer, hashing_clip_tokenizer, load_clip_tokenizer
from vidlatent.data.text.tokens import WORDS
from vidlatent.errors import VidlatentError
from vidlatent.models.pretrained import NETWORKS
from vidlatent.models.pretrained.clip.image import QUANTIZE, center_seen
from vidlatent.models.rewards.mps.model import PromptStates
from vidlatent.registry import did_you_mean
from vidlatent.rewards.base import Arrays, RewardEntry, RewardSetting
from vidlatent.rewards.frames import FrameReward

__all__ = ["CONDITIONS", "MPS", "MpsReward"]

# What the released weights were trained to look for, and parts of it (DiffSynth-Studio's).
_LOOKS = "light, color, clarity, tone, style, ambiance, artistry"
_MAKING = "shape, face, hair, hands, limbs, structure, instance, texture"
_MEANING = "quantity, attributes, position, number, location"
CONDITIONS = {
    "overall": f"{_LOOKS}, {_MAKING}, {_MEANING}, word, things.",
    "aesthetics": _LOOKS,
    "quality": _MAKING,
    "semantic": _MEANING,
}


class MpsReward(FrameReward):
    """MPS of each frame: only its middle square counts, at the size that CLIP reads.

    Frames of any size are resampled to it, and the frame rate does not matter. Scores of the
    released weights lie at about -10 to 20.

    Args:
      setting: where the weights are.
      network: 'mps', or 'mps_tiny' to try things out.
      tokenizer: CLIP's file (``data.text.clip``); 'words' hashes words, for 'mps_tiny'.
      condition: a name of ``CONDITIONS``, or a text of one's own.
      threshold: share of the largest similarity to the condition above which a token counts.
      padding: number that texts are filled up with; -1: the end mark's. It takes part in the
        similarity.
      quantize: 'none', 'straight' or 'round': see ``models.pretrained.clip.image.preprocess``.
      lowest, frames_at_once: as ``FrameReward``.

    Raises:
      VidlatentError: an unknown network or rounding, or no tokenizer.
    """

    names: tuple[str, ...] = ("mps",)
    reads_prompt = True

    def __init__(
        self,
        setting: RewardSetting,
        *,
        network: str,
        tokenizer: str,
        condition: str,
        threshold: float,
        padding: int,
        quantize: str,
        lowest: int,
        frames_at_once: int,
    ):
        super().__init__(lowest, frames_at_once)
        if quantize not in QUANTIZE:
            hint = did_you_mean(quantize, QUANTIZE)
            raise VidlatentError(f"config.rewards.mps.quantize={quantize!r}: {hint}")
        self.network = network
        self.frozen, self.random = setting.describe(network), setting.is_random(network)
        self._module = NETWORKS.get(network).module(dtype=setting.dtype)
        self._threshold, self._quantize = threshold, quantize
        self._tokenizer = self._open_tokenizer(tokenizer, padding)
        self._condition = self._tokenizer([CONDITIONS.get(condition, condition)])

    def _open_tokenizer(self, path: str, padding: int) -> ClipTokenizer:
        text = self._module.text
        if path == WORDS:
            return hashing_clip_tokenizer(text.vocab, text.length)
        try:
            return load_clip_tokenizer(path, padding, text.length)
        except VidlatentError as error:
            raise VidlatentError(f"config.rewards.mps.tokenizer={path!r}: {error}") from error

    def tokenize(self, prompts: Sequence[str]) -> Arrays:
        return {"tokens": self._tokenizer(prompts)}

    def encode(self, params: Any, tokens: Arrays) -> Arrays:
        given = jnp.asarray(tokens["tokens"]), jnp.asarray(self._condition), self._threshold
        return self._module.apply({"params": params}, *given, method="read")._asdict()

    def score_images(self, params: Any, images: jax.Array, prompt: Arrays) -> jax.Array:
        given = images, PromptStates(**prompt), self._quantize
        return self._module.apply({"params": params}, *given, method="score")

    def seen(self, frames: int, height: int, width: int, fps: float) -> np.ndarray:
        del fps
        seen = center_seen(height, width, self._module.vision.side)
        return np.broadcast_to(seen, (frames, height, width))


MPS = RewardEntry(MpsReward, "MPS of the frames: preference for a picture, given its prompt")
