"""What a reward is: a differentiable judge of videos, and the table of those a config can name.

A reward has a part on the host and a part on the devices:

    tokens = reward.tokenize(prompts)              # texts to arrays [B, ...], NumPy
    prompt = reward.encode(params, tokens)         # pure; once for each prompt
    scores = reward.score(params, RewardInputs(video, prompt, first, fps))    # pure: name -> [B]

``params`` is an argument, so that a large network is split over devices like any frozen one
(``models.frozen``); a reward without weights takes ``{}``. ``score`` keeps four promises, which
``tests/rewards/test_contract.py`` holds every registered reward to:

* Each row is scored by itself: batch mates do not matter.
* Gradients reach the pixels, finite and not all zero, and are exactly zero at pixels that the
  reward does not look at (``seen``).
* Scores are float32, whatever the compute dtype.
* A size, a number of frames or a frame rate that it cannot judge is refused while it is traced; one
  that it resamples is said in its docstring.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from vidlatent.errors import VidlatentError
from vidlatent.models.frozen import FrozenNetwork, hold_in
from vidlatent.models.pretrained import NETWORKS, network_apply, network_shapes
from vidlatent.models.pretrained.load import load_network_params, seed_of
from vidlatent.registry import Registry
from vidlatent.spec import check_shape

__all__ = [
    "REWARDS",
    "Arrays",
    "PixelReward",
    "Reward",
    "RewardEntry",
    "RewardInputs",
    "RewardSetting",
    "to_unit",
]

# Name in ``config.rewards`` and ``config.eval.rewards`` -> ``RewardEntry``.
REWARDS = Registry("reward")

Arrays = Mapping[str, Any]  # arrays by name, batch first


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RewardInputs:
    """What a reward is shown: a pytree, whose ``fps`` is a constant of the compiled program.

    Attributes:
      video: ``[B, T, H, W, 3]`` floats in [-1, 1], as decoders return them. Values beyond are left
        to each reward; a decoder's may lie a little outside.
      prompt: what ``encode`` made of the prompts.
      first: the given first frames ``[B, H, W, 3]`` in [-1, 1] of image-to-video; None without.
      fps: frames a second, one for the whole batch; 0 where it is not known.
    """

    video: jax.Array
    prompt: Arrays = dataclasses.field(default_factory=dict)
    first: jax.Array | None = None
    fps: float = dataclasses.field(default=0.0, metadata={"static": True})

    def check(self) -> dict[str, int]:
        """The sizes B, T, H, W.

        Raises:
          VidlatentError: the video or the first frames have another shape than they should.
        """
        sizes = check_shape(self.video, "B T H W C", C=3)
        if self.first is not None:
            check_shape(self.first, "B _ _ C", B=sizes["B"], C=3)
        return sizes


class Reward(Protocol):
    """A reward, made by its factory from its options.

    Attributes:
      names: of the scores that it gives. More is better in each.
      network: name in ``models.pretrained.NETWORKS`` of what it judges with; '' for none.
      frozen: that network's parameters, and how they are loaded; None for a reward without.
      random: these are random weights, asked for to try things out: scores will be labelled so.
      reads_prompt: whether a score depends on the prompt.
      reads_first: whether it needs the first frame.
    """

    names: tuple[str, ...]
    network: str
    frozen: FrozenNetwork | None
    random: bool
    reads_prompt: bool
    reads_first: bool

    def tokenize(self, prompts: Sequence[str]) -> Arrays:
        """Prompts as NumPy arrays ``[B, ...]``; {} if it needs none of them.

        Args:
          prompts: one for each video; '' where there is none.

        Raises:
          VidlatentError: a prompt that it cannot judge by.
        """
        ...

    def encode(self, params: Any, tokens: Arrays) -> Arrays:
        """What ``score`` needs of the prompts: pure, run once for each prompt. No gradient."""
        ...

    def score(self, params: Any, inputs: RewardInputs) -> dict[str, jax.Array]:
        """Name -> ``[B]`` float32: pure and differentiable with respect to ``inputs.video``.

        Raises:
          VidlatentError: while it is traced, for what it cannot judge.
        """
        ...

    def seen(self, frames: int, height: int, width: int, fps: float) -> np.ndarray:
        """The pixels that can change a score, bool ``[T, H, W]``."""
        ...


class PixelReward:
    """Base of rewards that look at all pixels, without a network and without the prompt."""

    names: tuple[str, ...] = ()
    network: str = ""
    frozen: FrozenNetwork | None = None
    random: bool = False
    reads_prompt: bool = False
    reads_first: bool = False

    def tokenize(self, prompts: Sequence[str]) -> Arrays:
        del prompts
        return {}

    def encode(self, params: Any, tokens: Arrays) -> Arrays:
        del params
        return tokens

    def seen(self, frames: int, height: int, width: int, fps: float) -> np.ndarray:
        del fps
        return np.ones((frames, height, width), bool)

    def refuse(self, wrong: bool, needs: str, inputs: RewardInputs) -> None:
        """Raise a ``VidlatentError`` saying what the reward needs, if something is wrong."""
        if wrong:
            shape, fps = tuple(inputs.video.shape), inputs.fps
            raise VidlatentError(
                f"the reward {'/'.join(self.names)} needs {needs}; it was given videos {shape} at "
                f"{fps:g} frames a second."
            )


def to_unit(pixels: jax.Array) -> jax.Array:
    """Pixels in [-1, 1] as float32 in [0, 1]."""
    return (pixels.astype(jnp.float32) + 1) / 2


@dataclasses.dataclass(frozen=True)
class RewardSetting:
    """What every factory is given beside its options.

    Attributes:
      networks: ``config.networks``: name -> weights file.
      dtype: compute dtype of networks.
    """

    networks: Mapping[str, str]
    dtype: Any = jnp.float32

    def describe(self, name: str) -> FrozenNetwork:
        """A network of ``models.pretrained``: ``Reward.frozen``.

        Parameters that are only used in ``dtype`` are kept in it. The file is read by ``load``.
        """
        definition, apply = NETWORKS.get(name), network_apply(name, self.dtype)
        inputs = [jax.ShapeDtypeStruct(*shape) for shape in definition.typed_inputs()]

        def compute(params: Any) -> Any:
            return apply(params, *(jnp.zeros(x.shape, x.dtype) for x in inputs))

        abstract = hold_in(self.dtype, network_shapes(name), compute)
        return FrozenNetwork(
            abstract, functools.partial(load_network_params, name, self.path(name))
        )

    def is_random(self, name: str) -> bool:
        """Whether random weights are asked for: ``Reward.random``."""
        return seed_of(self.path(name)) is not None

    def path(self, name: str) -> str:
        """The weights file of a network."""
        # The network of another package may have no key yet: an empty path says what is missing.
        return self.networks.get(name, "")


@dataclasses.dataclass(frozen=True)
class RewardEntry:
    """A reward as it is registered.

    Attributes:
      make: ``(setting, **options) -> Reward``. The options are the keys of
        ``config.rewards.<name>``.
      definition: what its scores are, in a few words; stored with every result.
    """

    make: Callable[..., Reward]
    definition: str
