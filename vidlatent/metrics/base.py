"""What a metric is, and the table of those that ``config.eval.metrics`` can name.

A metric has two halves. ``measure`` is a pure function inside the compiled evaluation step. The
parameters of the network it looks through are arguments: as constants of the program they would
cost memory and compile time. It returns one row a clip. The evaluation gathers these rows on every
process and either averages them (``FrameMetric``) or hands them to an accumulator (``SetMetric``),
leaving out rows that are padding. So a score does not depend on the number of processes, devices
or batches.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from vidlatent.errors import VidlatentError
from vidlatent.models.frozen import FrozenNetwork
from vidlatent.models.pretrained import Network
from vidlatent.models.pretrained.load import load_network
from vidlatent.parallel.multihost import place_as
from vidlatent.registry import Registry, did_you_mean

__all__ = [
    "METRICS",
    "Accumulator",
    "FrameMetric",
    "Metric",
    "MetricEntry",
    "MetricRequest",
    "SetMetric",
    "collect_networks",
    "make_metrics",
]

# Name in ``config.eval.metrics`` -> ``MetricEntry``.
METRICS = Registry("metric")

# What ``config.eval.random_networks`` looks through instead: small networks of the same kind.
_SMALL_NETWORKS = {
    "lpips_vgg": "lpips_tiny",
    "lpips_alex": "lpips_tiny",
    "i3d_kinetics400": "i3d_tiny",
    "videomae_g": "videomae_tiny",
    "c3d_ucf101": "c3d_tiny",
}


@dataclasses.dataclass(frozen=True)
class MetricRequest:
    """What the factory of a metric is given.

    Attributes:
      name: the name as it stands in the config.
      ending: what follows the registered name in it; '' unless the entry allows endings.
      entry: the metric's entry in ``METRICS``.
      network: the network that the entry asks for, with its weights; None if it asks for none.
      is_splits: ``config.eval.is_splits``.
    """

    name: str
    ending: str
    entry: MetricEntry
    network: Network | None
    is_splits: int


@dataclasses.dataclass(frozen=True)
class MetricEntry:
    """A metric as it is registered.

    Attributes:
      make: makes the metric from a ``MetricRequest``.
      definition: what the number is, in a few words; stored with every result.
      unit: '' for a number without one.
      better: 'higher' or 'lower'.
      network: name in ``models.pretrained.NETWORKS`` of the network that it looks through, whose
        weights ``config.networks`` names; '' for none.
      endings: regular expression of what may follow the registered name; '' for nothing.
    """

    make: Callable[[MetricRequest], Metric]
    definition: str
    unit: str = ""
    better: str = "higher"
    network: str = ""
    endings: str = ""


class Accumulator(Protocol):
    """Turns the rows that a ``SetMetric`` measured into scores of the whole set."""

    def add(self, side: int, rows: Any, mask: Any, clips: Any, starts: Any) -> None:
        """Take in what ``look`` returned for a batch of one side.

        Args:
          side: 0 for originals, 1 for reconstructions or generated clips. The two sides need
            neither the same clips nor equally many.
          rows: ``[B, pieces, D]``.
          mask: ``[B]``; rows with 0 are padding.
          clips, starts: ``[B]``: number of each row's clip and the second its window starts at.
            Processes deliver rows in different orders; these bring them into one.
        """
        ...

    def result(self, name: str) -> tuple[dict[str, float], dict[str, Any]]:
        """Scores by the name each is reported under, and what else defines them."""
        ...


class _Base:
    """What both kinds of metrics have.

    Attributes:
      asked: the name in the config.
      name: the name that the score is reported under. It says all that changes the number: the
        network, whether its weights are random, how frames are resized.
      network: what it looks through, or None.
      about: how the number is defined, for the result.
    """

    def __init__(self, request: MetricRequest, name: str, about: Mapping[str, Any]):
        entry = request.entry
        self.asked, self.name, self.network = request.name, name, request.network
        self.about = {"asked_as": request.name, "definition": entry.definition}
        self.about |= {"unit": entry.unit} if entry.unit else {}
        self.about |= {"better": entry.better}
        self.about |= {} if request.network is None else {"network": request.network.label}
        self.about |= about

    def _network_with(self, params: Mapping[str, Any]) -> Network:
        assert self.network is not None
        # The arguments of the compiled step in place of the weights loaded here.
        return self.network._replace(params=params[self.network.name])


class FrameMetric(_Base):
    """A value for every frame; every clip counts alike, with the mean over its frames.

    Args:
      request: what the factory was given.
      name: the name that the score is reported under.
      function: ``(video, restored)``, or with a network ``(network, video, restored)``, of videos
        uint8 ``[B, T, H, W, 3]``, to float32 ``[B, T]``.
      about: what else defines the number.
    """

    def __init__(
        self, request: MetricRequest, name: str, function: Callable[..., jax.Array], **about: Any
    ):
        super().__init__(request, name, about)
        self._function = function

    def measure(self, params: Mapping[str, Any], video: jax.Array, restored: jax.Array) -> Any:
        """``[B, T]`` float32 of two videos uint8 ``[B, T, H, W, 3]``."""
        if self.network is None:
            return self._function(video, restored)
        return self._function(self._network_with(params), video, restored)


class SetMetric(_Base):
    """A number for a whole set of clips, from what a network sees in each.

    Args:
      request: what the factory was given.
      name: the name that the score is reported under.
      features: ``(network, clips)`` to ``[B, D]``, of clips uint8 ``[B, T, H, W, 3]``.
      accumulate: makes the object that turns these rows into scores.
      cut: clips are cut into consecutive pieces of so many frames; frames that fill no piece are
        left out. 0: whole clips.
      about: what else defines the number.
    """

    def __init__(
        self,
        request: MetricRequest,
        name: str,
        features: Callable[[Network, jax.Array], jax.Array],
        accumulate: Callable[[], Accumulator],
        cut: int = 0,
        **about: Any,
    ):
        super().__init__(request, name, about)
        self.accumulate, self.cut = accumulate, cut
        self._features = features

    def measure(self, params: Mapping[str, Any], video: jax.Array, restored: jax.Array) -> Any:
        """``[2, B, pieces, D]`` float32: of the originals, and of the reconstructions.

        Raises:
          VidlatentError: clips shorter than a piece.
        """
        # One video after the other: half the memory, and the network is compiled once.
        return jax.lax.map(lambda clips: self.look(params, clips), jnp.stack([video, restored]))

    def look(self, params: Mapping[str, Any], video: jax.Array) -> jax.Array:
        """``[B, pieces, D]`` float32 of clips uint8 ``[B, T, H, W, 3]``.

        Raises:
          VidlatentError: clips shorter than a piece.
        """
        network = self._network_with(params)
        batch, frames = video.shape[:2]
        length = self.cut or frames
        pieces = frames // length
        if not pieces:
            raise VidlatentError(
                f"{self.asked} looks at {length} frames, and clips of {frames} are scored: score "
                "longer ones (config.data.buckets) or leave it out of config.eval.metrics."
            )
        # [B, T, H, W, 3] -> [B pieces, length, H, W, 3]
        parts = video[:, : pieces * length].reshape(batch * pieces, length, *video.shape[2:])
        return self._features(network, parts).reshape(batch, pieces, -1)


Metric = FrameMetric | SetMetric


def make_metrics(
    names: Sequence[str],
    weights: Mapping[str, str],
    *,
    random_networks: bool = False,
    is_splits: int = 10,
) -> tuple[Metric, ...]:
    """The metrics of some names, with the weights of their networks read.

    Args:
      names: see ``METRICS``; several that would be reported under one name count once.
      weights: ``config.networks``: network name -> file, or ``random``.
      random_networks: look through small random networks instead of the published ones, to try
        things out; the reported names say so.
      is_splits: parts into which an inception score divides the clips.

    Raises:
      VidlatentError: an unknown name; weights that are missing or do not fit; ``is_splits`` < 1.
    """
    loaded: dict[str, Network] = {}
    metrics: dict[str, Metric] = {}
    for name in names:
        entry, ending = _find(name)
        network = entry.network
        if random_networks:
            network = _SMALL_NETWORKS.get(network, network)
        # Several metrics may look through one network; its file is read once.
        if network and network not in loaded:
            loaded[network] = load_network(network, weights[network])
        metric = entry.make(MetricRequest(name, ending, entry, loaded.get(network), is_splits))
        # Names in the config may differ and mean one score: it is measured once.
        metrics.setdefault(metric.name, metric)
    return tuple(metrics.values())


def _find(name: str) -> tuple[MetricEntry, str]:
    """The entry that a name in the config stands for, and the ending the name has beyond it."""
    known = METRICS.names()
    # Longest first: fvd_i3d_tiny is a name of its own, not fvd_i3d with an ending.
    for start in sorted(filter(name.startswith, known), key=len, reverse=True):
        entry, ending = METRICS.get(start), name.removeprefix(start)
        if not ending or (entry.endings and re.fullmatch(entry.endings, ending)):
            return entry, ending
    raise VidlatentError(
        f"config.eval.metrics: unknown metric {name!r}: {did_you_mean(name, known)}"
    )


def collect_networks(metrics: Iterable[Metric]) -> dict[str, FrozenNetwork]:
    """The networks that metrics look through by name, each once, for ``frozen.load_frozen``."""
    found = {}
    for metric in metrics:
        if metric.network is not None:
            params = metric.network.params
            abstract = jax.eval_shape(lambda held=params: held)
            found[metric.network.name] = FrozenNetwork(
                abstract, functools.partial(place_as, params)
            )
    return found
