"""Gride against DADApy's numbers, case by case."""

import json

import numpy as np
import pytest

from vidlatent.metrics.gride import gride, gride_estimate


def test_clouds(reference):
    points = np.load(reference("gride", "points.npz"))
    clouds = json.loads(reference("gride", "expected.json").read_text())["clouds"]
    assert clouds
    for name, case in clouds.items():
        cloud = points[name]
        assert cloud.shape == (case["N"], case["D"])
        scales = gride(cloud.astype(np.float64), range_max=case["ranks"][-1][1])
        assert [[s.n1, s.n2] for s in scales] == case["ranks"]
        for field, key in (("dimension", "ids"), ("error", "ids_err"), ("distance", "mean_scale")):
            values = [getattr(scale, field) for scale in scales]
            np.testing.assert_allclose(values, case[key], rtol=1e-5, err_msg=f"{name} {key}")
        # The points' own precision is enough.
        assert gride(cloud, range_max=case["ranks"][-1][1]) == scales


def test_ratios_with_a_known_law(reference):
    cases = json.loads(reference("gride", "mu_cases.json").read_text())
    assert cases
    for case in cases:
        ratios, n1, n2 = np.asarray(case["mus"]), case["n1"], case["n2"]
        assert gride_estimate(ratios, n1, n2) == pytest.approx((case["id"], case["err"]), rel=1e-5)
        measured = np.log(ratios).mean() * case["true_d"]
        assert measured == pytest.approx(case["mean_log_mu_times_d"], rel=1e-5)
