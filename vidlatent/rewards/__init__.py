"""Rewards: differentiable judges of videos, for fine-tuning generators and for scoring folders.

    base.py      the contract and the table ``REWARDS``
    chosen.py    the rewards of a config, with their weights, as one
    frames.py    rewards of single frames, of all or of the worst
    mps.py       preference for the frames, given the prompt
    pixels.py    motion, colour and sharpness, which need no weights

``config.eval.rewards`` names those that ``--mode=eval`` scores with, ``config.rewards.use`` those
of a fine-tuning; ``config.rewards.<name>`` holds a reward's options. To add one, write a class with
the methods of ``base.Reward`` and register it (docs/rewards.md):

    REWARDS.register('brightness', RewardEntry(make_brightness, 'mean of all pixels'))
"""

from vidlatent.rewards.base import (
    REWARDS,
    PixelReward,
    Reward,
    RewardEntry,
    RewardInputs,
    RewardSetting,
)
from vidlatent.rewards.chosen import ChosenRewards, make_rewards
from vidlatent.rewards.frames import FrameReward

__all__ = [
    "REWARDS",
    "ChosenRewards",
    "FrameReward",
    "PixelReward",
    "Reward",
    "RewardEntry",
    "RewardInputs",
    "RewardSetting",
    "make_rewards",
]

_HERE = "vidlatent.rewards."
REWARDS.register("motion", _HERE + "pixels:MOTION")
REWARDS.register("colour", _HERE + "pixels:COLOUR")
REWARDS.register("sharpness", _HERE + "pixels:SHARPNESS")
REWARDS.register("mps", _HERE + "mps:MPS")
REWARDS.register("videoalign", _HERE + "videoalign:VIDEOALIGN")
