"""Intrinsic dimension of a cloud of points with Gride, equal to DADApy's numbers.

Let ``r_k`` be the distance from a point to its k-th neighbour. If points are spread evenly on a
d-dimensional surface, the ratio ``mu = r_n2 / r_n1`` has a distribution that depends on d alone:
``mu^-d`` is Beta(n1, n2 - n1). Gride (Denti, Doimo, Laio and Mira 2021) takes the d of the greatest
likelihood, with n2 = 2 n1, at n1 = 1, 2, 4, ...: the dimension at growing scales. FSVideo, table 1,
uses it for latents.

How distances are computed: a Gram matrix in float32 on the device, one block of rows at a time,
proposes neighbours; their distances are then computed in float64 from the points themselves. The
differences between the two show how far float32 can be trusted. Rows where it may have missed a
neighbour (tight clusters far apart, repeated points) are searched again with a float64 Gram matrix,
which DADApy uses for all rows. So the usual cost is one matrix product and the memory of two
float32 copies of the points, and the result is at least as exact as DADApy's. The two disagree only
for points closer than about 1e-7 of the size of the cloud, where DADApy measures rounding errors:
repeated points have a distance of exactly zero here.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vidlatent.errors import VidlatentError
from vidlatent.spec import check_shape

__all__ = ["GrideScale", "gride", "gride_estimate", "neighbour_distances"]

_EPS = np.finfo(np.float64).eps
# Search interval and final width of the bisection, as in DADApy; twice the width is the least value
# of 1 - mu^-d.
_LOWEST, _HIGHEST, _WIDTH = 0.001, 1000.0, 1e-7
_SPARE = 31  # neighbours proposed beyond those asked for
_ROWS = 512  # of the distance matrix held at a time


@dataclasses.dataclass(frozen=True)
class GrideScale:
    """Intrinsic dimension seen at one scale.

    Attributes:
      n1, n2: neighbour ranks whose distances are compared.
      dimension: the estimate, between 0.001 and 1000.
      error: its standard error, from the Fisher information.
      distance: mean distance to the two neighbours.
      n: number of points.
    """

    n1: int
    n2: int
    dimension: float
    error: float
    distance: float
    n: int


def gride(points: Any, range_max: int = 64, block: int = _ROWS) -> list[GrideScale]:
    """Intrinsic dimension at the ranks (1, 2), (2, 4), ... up to ``range_max``.

    Args:
      points: ``[N, D]`` floats, one point a row.
      range_max: highest neighbour rank; fewer points than that give fewer scales.
      block: rows of the distance matrix held at a time.

    Returns:
      One entry a scale. For few points of a high-dimensional cloud the estimates are too low, the
      more so at large scales.

    Raises:
      VidlatentError: fewer than three points, a value that is not finite, or a wrong shape.
    """
    points = np.asarray(points)
    count = check_shape(points, "N D")["N"]
    if count < 3 or range_max < 2:
        raise VidlatentError(
            f"an intrinsic dimension needs at least 3 points and 2 neighbours, "
            f"not {count} points and {range_max} neighbours."
        )
    steps = int(np.log2(min(count - 1, range_max)))
    ranks = 2 ** np.arange(steps + 1)
    distances = neighbour_distances(points, int(ranks[-1]), block=block)[:, ranks - 1]
    # Repeated points have a distance of 0, which would make the ratio infinite. With this floor the
    # ratio is very large instead, and ``gride_estimate`` filters it out.
    distances = np.maximum(distances, _EPS)
    scales = []
    for inner, outer, n1 in zip(distances.T[:-1], distances.T[1:], ranks.tolist(), strict=False):
        dimension, error = gride_estimate(outer / inner, n1, 2 * n1)
        mean = float(np.mean(np.stack([inner, outer])))
        scales.append(GrideScale(n1, 2 * n1, dimension, error, mean, count))
    return scales


def gride_estimate(ratios: Any, n1: int, n2: int) -> tuple[float, float]:
    """Maximum-likelihood dimension and its standard error.

    Ratios above the median plus twenty times the distance from there to the 95th percentile
    (repeated points) are left out of the estimate, but not of its error. The zero of the
    likelihood's derivative is found by bisection in [0.001, 1000]; for ranks (1, 2) it is
    ``(N - 1) / sum(log mu)``.

    Args:
      ratios: ``[N]``: ``mu = r_n2 / r_n1 >= 1`` of each point.
      n1, n2: neighbour ranks.
    """
    mus = np.array(ratios, np.float64)
    # With neighbours at equal distance 1 - mu^-d would be 0, and it is divided by.
    mus[mus == 1] += 10 * _EPS
    # Repeated points have enormous ratios, which would dominate the sum of logarithms.
    high, middle = np.percentile(mus, [95, 50])
    kept = mus[mus < middle + 20 * (high - middle)]
    low, top = _LOWEST, _HIGHEST
    at_top = _slope(top, kept, n1, n2)
    while top - low > _WIDTH:
        centre = (low + top) / 2.0
        # The slope has one zero; the half whose ends differ in sign holds it.
        if _slope(centre, kept, n1, n2) * at_top > 0:
            top = centre
        else:
            low = centre
    dimension = (low + top) / 2.0
    return float(dimension), float(_information(dimension, mus, n1, n2) ** -0.5)


def _slope(d: float, mus: np.ndarray, n1: int, n2: int) -> float:
    """Minus the log-likelihood's derivative, with N - 1 in place of N (unbiased for n1 = 1)."""
    share = np.maximum(1.0 - mus**-d, 2 * _WIDTH)
    return np.sum(((1 - n2 + n1) / share + n2 - 1.0) * np.log(mus)) - (len(mus) - 1) / d


def _information(d: float, mus: np.ndarray, n1: int, n2: int) -> float:
    inverse = mus**-d
    share = np.maximum(1.0 - inverse, 5 * _EPS)
    return len(mus) / d**2 + np.sum((n2 - n1 - 1) * (np.log(mus) / share) ** 2 * inverse)


def neighbour_distances(points: Any, count: int, *, block: int = _ROWS) -> np.ndarray:
    """Euclidean distances from each point to its ``count`` nearest others, ascending.

    Args:
      points: ``[N, D]`` floats, kept as they are; N above ``count``.
      count: neighbours.
      block: rows of the distance matrix held at a time.

    Returns:
      ``[N, count]`` float64, each distance computed in float64 from the difference of two points.

    Raises:
      VidlatentError: too few points, a value that is not finite, or a wrong shape.
    """
    points = np.asarray(points)
    total = check_shape(points, "N D")["N"]
    if not 0 < count < total:
        raise VidlatentError(f"{total} points have no {count} neighbours each: give more points.")
    if not np.issubdtype(points.dtype, np.floating):
        points = points.astype(np.float64)
    result = np.empty((total, count))
    # Spare ones, as float32 may put close neighbours in the wrong order.
    kept = min(total - 1, count + _SPARE)
    doubtful = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start, squares, index, error in _propose_neighbours(points, kept, min(block, total)):
            exact = np.stack(
                list(
                    pool.map(
                        functools.partial(_squared_distances, points), *_number_rows(start, index)
                    )
                )
            )
            # How far float32 was off where float64 is known, with a margin for where it is not.
            slack = 4 * np.abs(exact - squares).max(axis=1) + error
            exact.sort(axis=1)
            result[start : start + len(exact)] = np.sqrt(exact[:, :count])
            if kept < total - 1:
                # Could a point that was not proposed be nearer than the ones that were?
                unsure = exact[:, count - 1] > squares[:, -1] - slack
                doubtful += (start + np.flatnonzero(unsure)).tolist()
        for start in range(0, len(doubtful), block):
            rows = np.asarray(doubtful[start : start + block])
            index = _find_nearest_in_float64(points, rows, kept)
            exact = np.stack(
                list(pool.map(functools.partial(_squared_distances, points), rows, index))
            )
            result[rows] = np.sqrt(np.sort(exact, axis=1)[:, :count])
    return result


def _number_rows(start: int, index: np.ndarray) -> tuple[range, np.ndarray]:
    return range(start, start + len(index)), index


def _squared_distances(points: np.ndarray, row: int, index: np.ndarray) -> np.ndarray:
    """Squared distances from one point to some others, float64."""
    apart = np.subtract(points[index], points[row], dtype=np.float64)
    return np.einsum("kd,kd->k", apart, apart)


def _propose_neighbours(
    points: np.ndarray, kept: int, block: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """For blocks of rows: first row, squared distances and indices of likely neighbours, rounding.

    Yields ``(start, [rows, kept], [rows, kept], [rows])``; the last is the least error to expect of
    a squared distance.
    """
    total = len(points)
    with np.errstate(invalid="ignore"):
        centre = points.mean(axis=0, dtype=np.float64)
    if not np.isfinite(centre).all():
        raise VidlatentError(
            "an intrinsic dimension needs finite points: some are infinite or NaN."
        )
    # Scaled to a length of at most one, so that squares stay in the range of float32.
    longest = 0.0
    for start in range(0, total, block):
        part = points[start : start + block] - centre
        longest = max(longest, float(np.sqrt(np.einsum("nd,nd->n", part, part).max())))
    moved = np.empty(points.shape, np.float32)
    unit = longest or 1.0
    for start in range(0, total, block):
        moved[start : start + block] = (points[start : start + block] - centre) / unit
    # Only the device's copy is needed from here on.
    device = jnp.asarray(moved)
    del moved
    squares = jnp.einsum("nd,nd->n", device, device, precision=jax.lax.Precision.HIGHEST)
    # All blocks have one shape and so one compiled program: the last overlaps the one before it.
    starts = [min(start, total - block) for start in range(0, total, block)]
    # The device works on the next block while the host computes exact distances of this one.
    ahead = _find_nearest(device, squares, starts[0], rows=block, kept=kept)
    for number, start in enumerate(starts):
        found = jax.device_get(ahead)
        if number + 1 < len(starts):
            ahead = _find_nearest(device, squares, starts[number + 1], rows=block, kept=kept)
        near = found[0].astype(np.float64) * unit**2
        error = np.finfo(np.float32).eps * (near[:, -1] + unit**2 * found[2].astype(np.float64))
        yield start, near, found[1], error


@functools.partial(jax.jit, static_argnames=("rows", "kept"))
def _find_nearest(points: jax.Array, squares: jax.Array, start: Any, *, rows: int, kept: int):
    """Squared distances, indices and own squared lengths of a block of rows, ascending."""
    own = jax.lax.dynamic_slice_in_dim(points, start, rows)
    mine = jax.lax.dynamic_slice_in_dim(squares, start, rows)
    products = jnp.einsum("nd,md->nm", own, points, precision=jax.lax.Precision.HIGHEST)
    # |a - b|^2 = |a|^2 + |b|^2 - 2 a.b: [rows, N]
    apart = mine[:, None] + squares - 2 * products
    itself = start + jnp.arange(rows)[:, None] == jnp.arange(len(points))
    # top_k finds the greatest, so distances change sign; a point is no neighbour of itself.
    far, index = jax.lax.top_k(-jnp.where(itself, jnp.inf, apart), kept)
    return -far, index, mine


def _find_nearest_in_float64(points: np.ndarray, rows: np.ndarray, kept: int) -> np.ndarray:
    """Indices ``[len(rows), kept]`` of the nearest points, by a Gram matrix in float64."""
    centre = points.mean(axis=0, dtype=np.float64)
    own = points[rows] - centre
    apart = np.empty((len(rows), len(points)))
    for start in range(0, len(points), 1024):
        part = points[start : start + 1024] - centre
        lengths = np.einsum("nd,nd->n", part, part)
        # The row's own length is left out: it is the same for all candidates.
        apart[:, start : start + 1024] = lengths - 2 * own @ part.T
    apart[np.arange(len(rows)), rows] = np.inf
    return np.argpartition(apart, kept - 1, axis=1)[:, :kept]
