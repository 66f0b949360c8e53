"""A reward that says nothing about a video: the control of experiments with rewards.

``config.imports = ("experiments.chance_reward",)`` brings it in.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vidlatent.rewards import REWARDS, PixelReward, RewardEntry, RewardInputs

__all__ = ["Chance"]


class Chance(PixelReward):
    """A number in [0, 1) that follows from the pixels and that nothing about them tells."""

    names = ("chance",)

    def score(self, params: object, inputs: RewardInputs) -> dict[str, jax.Array]:
        del params
        inputs.check()
        total = inputs.video.astype(jnp.float32).sum(axis=(1, 2, 3, 4))
        # The usual hash of shaders: two videos that differ in a thousandth share nothing.
        return {"chance": jnp.mod(43758.547 * jnp.sin(12.9898 * total), 1.0)}


REWARDS.register(
    "chance", RewardEntry(lambda setting: Chance(), "a number that says nothing about the video")
)
