"""VideoAlign's reward (Liu et al. 2025, arXiv:2501.13918): three scores of a video and its prompt.

The language model reads the video's tokens, an instruction and the prompt. At three tokens of the
instruction a linear head turns its state into a score: visual quality (VQ), motion quality (MQ) and
text alignment (TA). Only the last of them stands behind the prompt, so VQ and MQ cannot depend on
it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from vidlatent.errors import VidlatentError
from vidlatent.models.rewards.videoalign.frames import MERGE, PATCH, patchify
from vidlatent.models.rewards.videoalign.language import LanguageModel, LanguageSizes, rms_norm
from vidlatent.models.rewards.videoalign.positions import (
    Tables,
    axis_positions,
    axis_tables,
    sequence_tables,
)
from vidlatent.models.rewards.videoalign.vision import VisionSizes, VisionTower
from vidlatent.spec import check_shape

__all__ = ["POSITIONS", "SCORES", "Shown", "VideoAlign", "normalize_scores"]

SCORES = ("vq", "mq", "ta")
POSITIONS = ("sequential", "axes")
# Of the released reward's scores on its authors' videos (model_config.json of the release).
MEAN = (3.6757, 1.1646, 2.8105)
STD = (2.2476, 1.3811, 2.5121)


class Shown(NamedTuple):
    """A video or a picture as the network takes it.

    Attributes:
      patches: ``[B, t, rows columns, 1176]``, from ``frames.patchify``.
      rows, columns: patches in a frame.
      token: number of the tokens that its own take the place of.
    """

    patches: jax.Array
    rows: int
    columns: int
    token: int

    @property
    def merged(self) -> tuple[int, int, int]:
        """Tokens in time, rows and columns."""
        return self.patches.shape[1], self.rows // MERGE, self.columns // MERGE


class VideoAlign(nn.Module):
    """Qwen2-VL with a linear head.

    Attributes:
      vision, language: sizes of the two transformers.
      video_token, picture_token: numbers of the tokens that the tower's take the place of.
      score_tokens: numbers of the tokens at which VQ, MQ and TA are read.
      outputs: of a new head: 1: the same for the three tokens (the release); 3: one for each. A
        head that is loaded keeps its own number.
      positions: ``'sequential'``: the number of the token, as the released reward was trained;
        ``'axes'``: Qwen2-VL's own positions in time, rows and columns (M-RoPE), which give other
        scores.
      remat: keep only the states between blocks for the backward pass.
      dtype: compute dtype; norms, softmax and positions are float32, as are the last norm, the head
        and the scores: in bfloat16 many would be equal.
    """

    vision: VisionSizes = VisionSizes()
    language: LanguageSizes = LanguageSizes()
    video_token: int = 151_656
    picture_token: int = 151_655
    score_tokens: tuple[int, int, int] = (151_657, 151_658, 151_659)
    outputs: int = 1
    positions: str = "sequential"
    remat: bool = True
    dtype: Any = jnp.float32

    def setup(self) -> None:
        if self.positions not in POSITIONS:
            raise VidlatentError(f"positions={self.positions!r}: use {' or '.join(POSITIONS)}.")
        if self.outputs not in (1, 3):
            raise VidlatentError(f"VideoAlign's head has 1 or 3 outputs, not {self.outputs}.")
        width = self.language.width
        self.visual = VisionTower(self.vision, width, self.remat, self.dtype)
        self.text = LanguageModel(self.language, self.remat, self.dtype)
        kind = jnp.promote_types(self.dtype, jnp.float32)
        self.norm = rms_norm(self.language.eps, kind, "norm")
        self.head = self._make_head(width)

    def _make_head(self, width: int) -> Any:
        # Existing weights are not checked for ``outputs``, which files differ in.
        if self.has_variable("params", "head"):
            return self.get_variable("params", "head")
        normal = nn.initializers.normal(width**-0.5)
        return self.param("head", lambda key: {"kernel": normal(key, (width, self.outputs))})

    def __call__(
        self, frames: jax.Array, tokens: jax.Array, picture: jax.Array | None = None
    ) -> jax.Array:
        """VQ, MQ and TA, ``[B, 3]`` float32, as the head gives them.

        Args:
          frames: ``[B, 2 t, h, w, 3]``, from ``frames.FrameRule.prepare``.
          tokens: ``[B, L]``, from ``template.fill_template``: the video's tokens and the three
            scores' once each, padded on the right.
          picture: ``[B, 2, h, w, 3]``, from ``prepare_picture``, for a reward that reads the given
            first frame as well (FSVideo's); the tokens then have its place.
        """
        shown = [(frames, self.video_token)]
        shown += [] if picture is None else [(picture, self.picture_token)]
        spans = []
        for pixels, token in shown:
            sizes = check_shape(pixels, "B T H W C", B=tokens.shape[0], C=3)
            if sizes["H"] % (PATCH * MERGE) or sizes["W"] % (PATCH * MERGE) or sizes["T"] % 2:
                raise VidlatentError(
                    f"frames {tuple(pixels.shape)}: VideoAlign takes an even number of frames with "
                    f"sides of a multiple of {PATCH * MERGE}; FrameRule.prepare makes them."
                )
            spans.append(Shown(patchify(pixels), sizes["H"] // PATCH, sizes["W"] // PATCH, token))
        return self.score(tokens, *spans)

    def score(self, tokens: jax.Array, *spans: Shown) -> jax.Array:
        """``__call__`` from patches."""
        states = self.text(self.embed(tokens, *spans), self.tables(tokens, *spans))
        # [B, 3]: where each of the three tokens stands.
        places = jnp.stack([jnp.argmax(tokens == i, axis=1) for i in self.score_tokens], axis=1)
        return self.read(jnp.take_along_axis(states, places[..., None], axis=1))

    def embed(self, tokens: jax.Array, *spans: Shown) -> jax.Array:
        """What the language model reads, ``[B, L, D]``: the tower's tokens among the text's."""
        x = self.text.embed(tokens)
        for patches, rows, columns, token in spans:
            tower, own = self.visual(patches, (rows, columns)), tokens == token
            # The n-th of these tokens is the tower's n-th.
            number = jnp.clip(jnp.cumsum(own, axis=1) - 1, 0, tower.shape[1] - 1)
            placed = jnp.take_along_axis(tower, number[..., None], axis=1)
            x = jnp.where(own[..., None], placed, x)
        return x

    def tables(self, tokens: jax.Array, *spans: Shown) -> Tables:
        """Rotary positions of the language model."""
        language, length = self.language, tokens.shape[1]
        if self.positions == "sequential":
            return sequence_tables(length, language.head_dim, language.base)
        positions = axis_positions(
            length, *((tokens == shown.token, shown.merged) for shown in spans)
        )
        return axis_tables(positions, language.head_dim, language.base, language.sections)

    def read(self, states: jax.Array) -> jax.Array:
        """The head at the states ``[B, 3, D]`` of the three tokens: ``[B, 3]``."""
        kernel = self.head["kernel"]
        h = self.norm(states)
        y = jnp.matmul(h, kernel.astype(h.dtype), precision=lax.Precision.HIGHEST)
        # Three outputs: the first at the first token, the second at the second, the third there.
        return y[..., 0] if kernel.shape[-1] == 1 else jnp.diagonal(y, axis1=1, axis2=2)


def normalize_scores(
    scores: jax.Array, mean: Sequence[float] = MEAN, std: Sequence[float] = STD
) -> dict[str, jax.Array]:
    """VQ, MQ and TA ``[B, 3]`` by their mean and deviation, by name; ``overall`` is their sum."""
    x = (scores - jnp.array(mean, scores.dtype)) / jnp.array(std, scores.dtype)
    return {name: x[:, i] for i, name in enumerate(SCORES)} | {"overall": x.sum(axis=1)}
