"""Intrinsic dimension: hand-worked values, exact neighbours in hard clouds, errors."""

import jax
import numpy as np
import pytest
from scipy.spatial.distance import cdist

from vidlatent.errors import VidlatentError
from vidlatent.metrics.gride import gride, gride_estimate, neighbour_distances


def direct(points, count):
    points = points.astype(np.float64)
    distances = cdist(points, points)
    np.fill_diagonal(distances, np.inf)
    return np.sort(distances, axis=1)[:, :count]


def rng():
    return np.random.default_rng(0)


def clouds():
    r = rng()
    clusters = np.repeat(r.normal(size=(3, 8)), 150, axis=0) * 100
    near = r.normal(size=(400, 8))
    near[200:] = near[:200] + 1e-9 * r.normal(size=(200, 8))
    return {
        "plain": r.normal(size=(300, 40)).astype(np.float32),
        "far from zero": (r.normal(size=(300, 40)) + 1e4).astype(np.float32),
        "near duplicates": near,
        "tight clusters": clusters + 1e-4 * r.normal(size=(450, 8)),
        "outliers": r.normal(size=(300, 8)) * np.where(np.arange(300) % 50, 1, 1e5)[:, None],
        "tiny": r.normal(size=(300, 8)) * 1e-30,
        "huge": r.normal(size=(300, 8)) * 1e30,
        "lattice": r.integers(0, 4, (300, 3)).astype(np.float64),
        "few": r.normal(size=(70, 8)),
    }


@pytest.mark.parametrize("name", clouds())
def test_distances_are_those_of_float64(name):
    points = clouds()[name]
    np.testing.assert_allclose(
        neighbour_distances(points, 64, block=128), direct(points, 64), rtol=1e-12
    )


def test_float16_integers_and_block_sizes():
    points = rng().integers(-50, 50, (150, 12))
    expected = direct(points, 20)
    for block in (1, 7, 150, 999):
        np.testing.assert_allclose(neighbour_distances(points, 20, block=block), expected)
    np.testing.assert_allclose(neighbour_distances(points.astype(np.float16), 20), expected)


def test_hand_worked_distances():
    line = np.array([[0.0], [1.0], [3.0], [7.0]])
    np.testing.assert_array_equal(
        neighbour_distances(line, 3), [[1, 3, 7], [1, 2, 6], [2, 3, 4], [4, 6, 7]]
    )
    inner, outer = [1, 1, 2, 4], [3, 2, 3, 6]
    (scale,) = gride(line, range_max=2)
    # No ratio is an outlier, so d = (N - 1) / sum(log mu), and its error d / sqrt(N).
    dimension = 3 / np.log(np.divide(outer, inner)).sum()
    assert (scale.n1, scale.n2, scale.n) == (1, 2, 4)
    assert scale.dimension == pytest.approx(dimension, abs=1e-6)
    assert scale.error == pytest.approx(dimension / 2, abs=1e-6)
    assert scale.distance == pytest.approx(22 / 8)


def test_outlying_ratios_leave_the_estimate_but_not_the_error():
    ratios = np.linspace(1.1, 1.5, 99)
    alone, _ = gride_estimate(ratios, 1, 2)
    dimension, error = gride_estimate(np.append(ratios, 1e15), 1, 2)
    assert dimension == pytest.approx(alone, abs=2e-7)
    assert error == pytest.approx(dimension / 10, rel=1e-9), "N / d^2 with N = 100"


def test_repeated_points_do_not_spoil_the_estimate():
    points = rng().normal(size=(600, 4))
    clean = gride(points)
    repeated = gride(np.concatenate([points, points[:8]]))
    for a, b in zip(clean, repeated, strict=True):
        assert b.dimension == pytest.approx(a.dimension, rel=0.06)
    triples = gride(np.repeat(points[:30], 3, axis=0), range_max=4)
    assert all(np.isfinite([s.dimension, s.error, s.distance]).all() for s in triples)


def test_dimension_of_a_plane_in_space():
    plane = rng().normal(size=(1000, 3)) @ rng().normal(size=(3, 50))
    scales = gride(plane.astype(np.float32))
    assert [(s.n1, s.n2) for s in scales] == [(1, 2), (2, 4), (4, 8), (8, 16), (16, 32), (32, 64)]
    assert all(2.6 < s.dimension < 3.3 for s in scales)
    assert all(s.n == 1000 for s in scales)


def test_few_points_give_fewer_scales():
    assert [s.n2 for s in gride(rng().normal(size=(65, 4)))][-1] == 64
    assert [s.n2 for s in gride(rng().normal(size=(64, 4)))][-1] == 32
    assert [s.n2 for s in gride(rng().normal(size=(3, 4)))] == [2]


def test_inside_a_mesh():
    points = rng().normal(size=(200, 16)).astype(np.float32)
    alone = gride(points)
    with jax.set_mesh(jax.make_mesh((8,), ("data",))):
        assert gride(points) == alone


def test_errors():
    with pytest.raises(VidlatentError, match="at least 3 points"):
        gride(np.zeros((2, 4)))
    with pytest.raises(VidlatentError, match="axes"):
        gride(np.zeros((20, 2, 2)))
    with pytest.raises(VidlatentError, match="no 10 neighbours"):
        neighbour_distances(np.zeros((10, 2)), 10)
    for bad in (np.nan, np.inf):
        points = rng().normal(size=(20, 3))
        points[3, 1] = bad
        with pytest.raises(VidlatentError, match="finite"):
            gride(points)
