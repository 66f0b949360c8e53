"""Rewards that need no weights: motion, colour and sharpness, smooth functions of the pixels.

They are for tests, for trying a recipe out, and as a watch on another reward: a run whose reward
rises while the motion falls has found a loophole.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vidlatent.data.renderers.shapes import COLOURS
from vidlatent.errors import VidlatentError
from vidlatent.registry import did_you_mean
from vidlatent.rewards.base import (
    Arrays,
    PixelReward,
    RewardEntry,
    RewardInputs,
    RewardSetting,
    to_unit,
)

__all__ = ["COLOUR", "MOTION", "SHARPNESS", "Colour", "Motion", "Sharpness"]

# Added under square roots: a still or plain video has a finite gradient.
_FLOOR = 1e-6


class Motion(PixelReward):
    """How much the picture changes in a second: root mean square of differences times the rate.

    Pixels count in [0, 1]. A faster video of the same scene has smaller differences and a higher
    rate, so every rate is judged alike and none is resampled.
    """

    names: tuple[str, ...] = ("motion",)

    def score(self, params: object, inputs: RewardInputs) -> dict[str, jax.Array]:
        del params
        frames = inputs.check()["T"]
        self.refuse(frames < 2, "two frames or more", inputs)
        self.refuse(inputs.fps <= 0, "a known frame rate", inputs)
        steps = jnp.diff(to_unit(inputs.video), axis=1)
        amplitude = jnp.sqrt(jnp.square(steps).mean(axis=(1, 2, 3, 4)) + _FLOOR)
        return {"motion": inputs.fps * amplitude}


class Colour(PixelReward):
    """How much of the video has one colour, named in the config or by the prompt.

    Args:
      colour: a name of ``data.renderers.shapes.COLOURS``; '' takes the first in each prompt.
      measure: 'share': mean over the pixels of ``exp(-d^2 / (2 width^2))``, where ``d`` is the
        distance from the colour in RGB in [0, 1]; 'closeness': ``1 - mean d^2 / 3``, which has a
        gradient far from the colour too.
      width: of 'share'.

    Raises:
      VidlatentError: an unknown colour or measure.
    """

    names: tuple[str, ...] = ("colour",)

    def __init__(self, colour: str, measure: str, width: float):
        for word, known in ((colour or "red", COLOURS), (measure, ("share", "closeness"))):
            if word not in known:
                hint = did_you_mean(word, known)
                raise VidlatentError(f"config.rewards.colour: unknown {word!r}: {hint}")
        if width <= 0:
            raise VidlatentError(f"config.rewards.colour.width={width:g}: give a positive number.")
        self.colour, self.measure, self.width = colour, measure, width
        self.reads_prompt = not colour

    def tokenize(self, prompts: Sequence[str]) -> Arrays:
        names = [self.colour or _find_colour(prompt) for prompt in prompts]
        return {"rgb": np.array([COLOURS[name] for name in names], np.float32) / 255}

    def score(self, params: object, inputs: RewardInputs) -> dict[str, jax.Array]:
        del params
        inputs.check()
        colour = inputs.prompt["rgb"][:, None, None, None, :]
        distance = jnp.square(to_unit(inputs.video) - colour).sum(axis=-1)
        if self.measure == "share":
            value = jnp.exp(distance / (-2 * self.width**2)).mean(axis=(1, 2, 3))
        else:
            value = 1 - distance.mean(axis=(1, 2, 3)) / 3
        return {"colour": value}


class Sharpness(PixelReward):
    """Root mean square of the Laplacian of the frames' brightness, pixels in [0, 1].

    Frame rates do not matter to it.
    """

    names: tuple[str, ...] = ("sharpness",)

    def score(self, params: object, inputs: RewardInputs) -> dict[str, jax.Array]:
        del params
        sizes = inputs.check()
        self.refuse(min(sizes["H"], sizes["W"]) < 3, "frames of 3x3 pixels or more", inputs)
        grey = to_unit(inputs.video).mean(axis=-1)
        middle = grey[:, :, 1:-1, 1:-1]
        laplacian = grey[:, :, :-2, 1:-1] + grey[:, :, 2:, 1:-1] - 4 * middle
        laplacian += grey[:, :, 1:-1, :-2] + grey[:, :, 1:-1, 2:]
        return {"sharpness": jnp.sqrt(jnp.square(laplacian).mean(axis=(1, 2, 3)) + _FLOOR)}

    def seen(self, frames: int, height: int, width: int, fps: float) -> np.ndarray:
        seen = super().seen(frames, height, width, fps)
        # The Laplacian is taken of inner pixels, and none of them has a corner for a neighbour.
        seen[:, :: height - 1, :: width - 1] = False
        return seen


def _make_colour(setting: RewardSetting, *, colour: str, measure: str, width: float) -> Colour:
    del setting
    return Colour(colour, measure, width)


MOTION = RewardEntry(
    lambda setting: Motion(), "root mean square change of the pixels in [0, 1] in a second"
)
COLOUR = RewardEntry(_make_colour, "how much of the video has the colour of the config or prompt")
SHARPNESS = RewardEntry(
    lambda setting: Sharpness(), "root mean square Laplacian of the brightness in [0, 1]"
)


def _find_colour(prompt: str) -> str:
    for word in re.findall(r"[a-z]+", prompt.lower()):
        if word in COLOURS:
            return word
    raise VidlatentError(
        f"the reward colour finds none of {', '.join(COLOURS)} in the prompt {prompt!r}: name one "
        "in every prompt, or one for all of them by config.rewards.colour.colour."
    )
