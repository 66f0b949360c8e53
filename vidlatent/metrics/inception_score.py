"""Inception score of a set of clips, from a classifier's probabilities; the metrics ``is_*``."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from vidlatent.errors import VidlatentError
from vidlatent.metrics.base import METRICS, MetricEntry, MetricRequest, SetMetric
from vidlatent.metrics.pixels import scale_pixels
from vidlatent.models.pretrained import NETWORKS

__all__ = ["InceptionAccumulator", "InceptionScore", "inception_score"]


class InceptionScore(NamedTuple):
    """Mean and (population) standard deviation over ``splits`` parts of ``n`` clips."""

    mean: float
    std: float
    n: int
    splits: int


def inception_score(probabilities: Any, splits: int = 10, seed: int | None = 42) -> InceptionScore:
    """``exp(mean KL(p(y|x) || p(y)))`` of each part, ``p(y)`` being the part's own mean.

    The rows are shuffled by NumPy's legacy generator, as in the video metrics of StyleGAN-V and of
    the papers that use its code. The score depends on the order of the rows, so several processes
    sort theirs first.

    Args:
      probabilities: ``[n, K]``, rows summing to 1.
      splits: parts of nearly equal size.
      seed: of the shuffle; None to keep the order.

    Raises:
      VidlatentError: fewer rows than parts, or rows that are no distributions.
    """
    rows = np.array(probabilities, np.float64)
    if rows.ndim != 2 or not 1 <= splits <= len(rows):
        raise VidlatentError(
            f"an inception score in {splits} parts needs [n, K] probabilities of {splits} clips "
            f"or more, not an array {rows.shape}."
        )
    if not (rows >= 0).all() or np.abs(rows.sum(axis=1) - 1).max() > 1e-3:
        raise VidlatentError("an inception score takes probabilities: rows of sum 1, none below 0.")
    if seed is not None:
        np.random.RandomState(seed).shuffle(rows)
    scores = []
    for part in range(splits):
        p = rows[part * len(rows) // splits : (part + 1) * len(rows) // splits]
        q = np.broadcast_to(p.mean(axis=0), p.shape)
        # 0 log 0 = 0: a class that a clip excludes adds nothing.
        terms = np.where(p > 0, p * np.log(np.where(p > 0, p / np.where(q > 0, q, 1), 1)), 0)
        scores.append(np.exp(terms.sum(axis=1).mean()))
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)), len(rows), splits)


_FEWEST = 2  # clips in a split: a single one always scores 1


class InceptionAccumulator:
    """Class probabilities of originals and of restored or generated clips, until all are there.

    Args:
      splits: parts of the clips, each scored by itself; at least 1.
    """

    def __init__(self, splits: int = 10):
        if splits < 1:
            raise VidlatentError(
                f"config.eval.is_splits is {splits}: an inception score needs 1 part or more."
            )
        self._splits = splits
        self._rows: tuple[dict[tuple[int, float, int], np.ndarray], ...] = ({}, {})

    def add(self, side: int, rows: Any, mask: Any, clips: Any, starts: Any) -> None:
        """Take in ``[B, pieces, K]`` of windows that begin at ``starts`` of ``clips``."""
        rows = np.asarray(rows)
        for row in np.flatnonzero(mask):
            for piece in range(rows.shape[1]):
                # The same on any number of processes, unlike the order of arrival.
                key = (int(clips[row]), float(starts[row]), piece)
                self._rows[side][key] = rows[row, piece]

    def result(self, name: str) -> tuple[dict[str, float], dict[str, Any]]:
        """The score of the restored or generated clips, and the originals', each with its spread.

        With fewer than two clips for each split there is one split; the name says how many. Fewer
        originals than splits have no score.

        Raises:
          VidlatentError: nothing was added.
        """
        if not self._rows[1]:
            raise VidlatentError(f"{name}: no clip was added.")
        # The score depends on the order of the rows, and the order in which they arrive depends on
        # the number of processes, so sort first.
        sides = [[side[key] for key in sorted(side)] for side in self._rows]
        splits = self._splits if len(sides[1]) >= _FEWEST * self._splits else 1
        restored = inception_score(np.stack(sides[1]), splits)
        name = f"{name}_splits{splits}"
        found = {name: restored.mean}
        about = {"n": restored.n, "splits": splits, "std_over_splits": restored.std}
        if len(sides[0]) >= splits:
            originals = inception_score(np.stack(sides[0]), splits)
            found[f"{name}_of_originals"] = originals.mean
            about |= {"std_over_splits_of_originals": originals.std}
            about |= {"n_of_originals": originals.n} if originals.n != restored.n else {}
        return found, about


def _classify(network, clips):
    return network.apply(network.params, scale_pixels(clips))["probabilities"]


def _make(request: MetricRequest) -> SetMetric:
    network = request.network
    assert network is not None
    frames, side = NETWORKS.get(network.name).inputs[0][1:3]
    accumulate = functools.partial(InceptionAccumulator, request.is_splits)
    accumulate()  # a wrong number of splits is refused before any clip is decoded
    return SetMetric(
        request,
        f"is_{network.label}",
        _classify,
        accumulate,
        frames,
        resize=f"bilinear, corners aligned, to {side}x{side}",
    )


for _name, _network in (("is_c3d", "c3d_ucf101"), ("is_c3d_tiny", "c3d_tiny")):
    METRICS.register(
        _name,
        MetricEntry(
            _make,
            "inception score of the reconstructed or generated clips, and of the originals, by "
            "C3D (UCF-101)",
            network=_network,
        ),
    )
