"""Scores of sets of clips: Fréchet distance from streamed sums, inception score."""

import numpy as np
import pytest

from vidlatent.errors import VidlatentError
from vidlatent.metrics import FeatureSums, frechet_of_sums, inception_score
from vidlatent.metrics.frechet import frechet_distance, moments
from vidlatent.metrics.fvd import FrechetAccumulator


@pytest.fixture
def features():
    rng = np.random.default_rng(0)
    return rng.standard_normal((60, 7)) @ rng.standard_normal((7, 7)) + 3


def sums_of(*pieces):
    sums = FeatureSums(pieces[0].shape[1])
    for piece in pieces:
        sums.add(piece)
    return sums


def test_streamed_sums_are_those_of_the_whole(features):
    sums = sums_of(*np.array_split(features, [1, 20, 20, 47]))
    assert sums.n == 60
    for found, expected in zip(sums.moments(), moments(features), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    other = features[::-1] * 1.3 + 0.1
    distance = frechet_of_sums(sums, sums_of(other))
    assert distance == pytest.approx(frechet_distance(features, other), rel=1e-9)


def test_processes_merge_to_the_whole(features):
    parts = [sums_of(part) for part in np.array_split(features, [13, 14, 40])]
    whole = FeatureSums(7)
    for part in parts:
        whole.merge(FeatureSums.unpack(part.pack()))
    assert whole.n == 60
    for found, expected in zip(whole.moments(), sums_of(features).moments(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-13)
    np.testing.assert_array_equal(FeatureSums.unpack(whole.pack()).pack(), whole.pack())


def test_padding_rows_do_not_count(features):
    padded = np.concatenate([features, np.full((4, 7), np.nan)])
    sums = FeatureSums(7)
    sums.add(padded, mask=np.arange(64) < 60)
    np.testing.assert_array_equal(sums.pack(), sums_of(features).pack())


def test_covariance_is_biased(features):
    np.testing.assert_allclose(sums_of(features).moments()[1], np.cov(features.T, bias=True))


def test_distances_with_a_known_value(features):
    sums = sums_of(features)
    assert frechet_of_sums(sums, sums) == pytest.approx(0, abs=1e-7)
    shift = np.arange(7) / 10
    assert frechet_of_sums(sums, sums_of(features + shift)) == pytest.approx(shift @ shift)
    # Gaussians that commute: |m|^2 + sum (s_a - s_b)^2; scaling about the mean scales each s.
    centre = features.mean(axis=0)
    wider = centre + 1.5 * (features - centre) + shift
    expected = shift @ shift + 0.25 * np.trace(sums.moments()[1])
    assert frechet_of_sums(sums_of(wider), sums) == pytest.approx(expected)
    # Fewer clips than dimensions, where covariances are singular.
    few = sums_of(features[:4])
    assert frechet_of_sums(few, few) == pytest.approx(0, abs=1e-6)


def exact(mean, covariance):
    """Four points with this mean and (biased) covariance ``[2, 2]`` to the last bit or so."""
    root = np.linalg.cholesky(covariance)
    return mean + np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]]) @ root.T


def test_known_gaussians_that_do_not_commute():
    """Both sides as an accumulator takes them, one in batches and with more clips."""
    a, b = np.array([[2.0, 0.7], [0.7, 1.0]]), np.array([[0.5, -0.3], [-0.3, 3.0]])
    means = np.array([1.0, -2.0]), np.array([0.25, 0.5])
    real, made = exact(means[0], a), np.concatenate([exact(means[1], b)] * 3)
    tally = FrechetAccumulator()
    tally.add(0, real[:, None], np.ones(4), np.arange(4), np.zeros(4))
    for part in (made[:5], made[5:]):
        padded = np.concatenate([part, np.full((2, 2), np.nan)])[:, None]
        mask = np.arange(len(padded)) < len(part)
        tally.add(1, padded, mask, np.arange(len(padded)), np.zeros(len(padded)))
    # Of 2x2 matrices: tr (A B)^(1/2) = (tr A B + 2 (det A B)^(1/2))^(1/2).
    cross = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))
    expected = np.sum((means[0] - means[1]) ** 2) + np.trace(a + b) - 2 * cross
    found, about = tally.result("fvd")
    assert found == {"fvd": pytest.approx(expected, rel=1e-12)}
    assert about == {"n": 12, "n_of_originals": 4, "dimensions": 2}
    lonely = FrechetAccumulator()
    lonely.add(1, made[:, None], np.ones(12), np.arange(12), np.zeros(12))
    with pytest.raises(VidlatentError, match="fvd: no clip was added"):
        lonely.result("fvd")


def test_sums_that_cannot_be():
    with pytest.raises(VidlatentError, match="not an array"):
        FeatureSums(3).add(np.zeros((2, 4)))
    with pytest.raises(VidlatentError, match="not finite"):
        FeatureSums(2).add(np.array([[1.0, np.inf]]))
    with pytest.raises(VidlatentError, match="no clip"):
        FeatureSums(2).moments()


def test_inception_score_with_known_values():
    assert inception_score(np.full((40, 8), 1 / 8), splits=4)[:2] == pytest.approx((1.0, 0.0))
    # Sure of one class each, all classes equally often: as many as there are classes.
    sure = np.eye(5)[np.arange(50) % 5]
    assert inception_score(sure, splits=1).mean == pytest.approx(5)
    # One of two parts has two classes, the other one.
    lopsided = np.eye(2)[[0, 1, 0, 1, 1, 1, 1, 1]]
    score = inception_score(lopsided, splits=2, seed=None)
    assert score == pytest.approx((1.5, 0.5, 8, 2))


def test_inception_score_shuffles_as_published():
    rng = np.random.default_rng(1)
    rows = rng.dirichlet(np.ones(6), 31)
    order = np.arange(31)
    np.random.RandomState(42).shuffle(order)
    scores = []
    for part in range(10):
        p = rows[order][part * 31 // 10 : (part + 1) * 31 // 10]
        gain = (p * (np.log(p) - np.log(p.mean(axis=0, keepdims=True)))).sum(axis=1).mean()
        scores.append(np.exp(gain))
    kept = rows.copy()
    score = inception_score(rows)
    assert score == pytest.approx((np.mean(scores), np.std(scores), 31, 10))
    np.testing.assert_array_equal(rows, kept)


@pytest.mark.parametrize(
    "rows, message",
    [
        (np.full((9, 2), 0.5), "10 clips or more"),
        (np.full((20, 2), 0.6), "rows of sum 1"),
        (np.full(20, 1.0), "not an array"),
    ],
)
def test_inception_score_refuses(rows, message):
    with pytest.raises(VidlatentError, match=message):
        inception_score(rows)
