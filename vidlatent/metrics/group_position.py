"""Scores by a frame's place in its group, which show whether a codec treats all frames alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["by_group_position", "max_margin"]


def by_group_position(
    sums: Sequence[float], counts: Sequence[int], *, first: int, group: int
) -> tuple[list[float], list[int]]:
    """Mean of a metric over the frames at each place of a frame group, and how many there are.

    A group is the frames that share a latent frame. Frames before the first whole group (frame 0 of
    a causal tokenizer) are left out. For 17 frames in groups of 4, place 0 averages frames 1, 5, 9
    and 13 (IV-VAE, supplement 1.2).

    Args:
      sums: by frame of the window, the metric summed over clips.
      counts: by frame, the number of clips that have it.
      first: frames of the shortest legal clip.
      group: frames that share a latent frame.

    Returns:
      ``group`` means (NaN where there is no frame) and as many counts.
    """
    # Frames before the first whole group get places below 0.
    places = np.arange(len(sums)) - first % group
    means, numbers = [], []
    for place in range(group):
        here = (places >= 0) & (places % group == place)
        number = int(np.asarray(counts)[here].sum())
        total = float(np.asarray(sums, np.float64)[here].sum())
        means.append(total / number if number else float("nan"))
        numbers.append(number)
    return means, numbers


def max_margin(values: Sequence[float]) -> float:
    """Best minus worst place of a group."""
    return float(max(values) - min(values))
