"""Rewards of single frames: a video gets their mean over all frames, or over the worst ones."""

from __future__ import annotations

import abc

import jax
import jax.numpy as jnp

from vidlatent.errors import VidlatentError
from vidlatent.losses.frames import map_frames
from vidlatent.rewards.base import Arrays, PixelReward, RewardInputs

__all__ = ["FrameReward", "find_lowest"]


class FrameReward(PixelReward, abc.ABC):
    """A reward of pictures, called with a few frames at a time.

    Args:
      lowest: a video's score is the mean over so many of its frames, those that score lowest, and
        only they get a gradient (FSVideo's image reward: 10); 0: over all frames.
      frames_at_once: of each video; memory against speed. The gradient recomputes their
        activations.

    Raises:
      VidlatentError: a negative ``lowest``, or no frame at once.
    """

    def __init__(self, lowest: int, frames_at_once: int):
        if lowest < 0 or frames_at_once < 1:
            raise VidlatentError(
                f"a reward of frames was given lowest={lowest} and frames_at_once="
                f"{frames_at_once}: give 0 or more, and 1 or more."
            )
        self.lowest, self.frames_at_once = lowest, frames_at_once

    @abc.abstractmethod
    def score_images(self, params: object, images: jax.Array, prompt: Arrays) -> jax.Array:
        """``[N]`` float32 of images ``[N, H, W, 3]`` in [-1, 1], each by its row of ``prompt``."""

    def score_frames(self, params: object, video: jax.Array, prompt: Arrays) -> jax.Array:
        """``[B, T]`` float32: the score of every frame of videos ``[B, T, H, W, 3]``."""

        def score(images: jax.Array) -> jax.Array:
            each = len(images) // len(video)
            rows = {name: jnp.repeat(x, each, axis=0) for name, x in prompt.items()}
            return self.score_images(params, images, rows)

        return map_frames(score, video, at_once=self.frames_at_once)

    def score_each(self, params: object, inputs: RewardInputs) -> jax.Array:
        """``[B, K]`` float32: the scores of the frames that count, whose mean is the video's."""
        frames = inputs.check()["T"]
        video = inputs.video.astype(jnp.float32)
        if self.lowest and self.lowest < frames:
            # Chosen without a gradient, so that the backward pass knows these few alone.
            everything = self.score_frames(params, jax.lax.stop_gradient(video), inputs.prompt)
            worst = find_lowest(everything, self.lowest)
            video = jnp.take_along_axis(video, worst[:, :, None, None, None], axis=1)
        return self.score_frames(params, video, inputs.prompt)

    def score(self, params: object, inputs: RewardInputs) -> dict[str, jax.Array]:
        (name,) = self.names
        return {name: self.score_each(params, inputs).mean(axis=1)}


def find_lowest(scores: jax.Array, count: int) -> jax.Array:
    """Places ``[B, count]`` of the lowest scores of ``[B, T]``, lowest first; no gradient."""
    return jax.lax.top_k(-jax.lax.stop_gradient(scores), count)[1]
