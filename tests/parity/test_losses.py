"""Pixel losses and a critic's size against numbers computed from the papers' formulas."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlatent.losses import pseudo_huber
from vidlatent.models.critics import build_critic


@pytest.fixture(scope="module")
def case(reference):
    with np.load(reference("losses", "losses.npz")) as stored:
        return {key: stored[key] for key in stored.files if key.startswith("huber.")}


@pytest.mark.parametrize(
    ("reduction", "name"), [("norm", "per_sample_raw"), ("scaled_norm", "per_sample_normalised")]
)
def test_pseudo_huber(case, reduction, name):
    """Each sample of the case by itself, then their mean; no layout matters."""
    pred, target = (jnp.asarray(case[f"huber.{k}"], jnp.float32) for k in ("pred", "target"))
    per_root = float(case["huber.c"]) / np.sqrt(np.prod(pred.shape[1:]))
    fields = {"reduction": reduction, "c_per_root": per_root}
    want = case[f"huber.{name}"]
    for i, one in enumerate(np.eye(len(want), dtype=np.float32)):
        np.testing.assert_allclose(pseudo_huber(pred, target, one, **fields), want[i], rtol=1e-5)
    mean = pseudo_huber(pred, target, jnp.ones(len(want)), **fields)
    np.testing.assert_allclose(mean, want.mean(), rtol=1e-5)


def test_pseudo_huber_elementwise(case):
    """The same formula in one dimension: there the three reductions agree."""
    pred, target = (np.float32(case[f"huber.{k}"]).ravel()[:7, None] for k in ("pred", "target"))
    ones = jnp.ones(7)
    values = [
        pseudo_huber(pred, target, ones, reduction=reduction)
        for reduction in ("elementwise", "norm", "scaled_norm")
    ]
    np.testing.assert_allclose(values, values[0], rtol=1e-6)


def test_size_of_the_promag_critic(reference):
    want = json.loads(reference("promag_fixtures.json").read_text())["param_counts_full_size"]
    critic = build_critic({"name": "patch3d", "time_kernels": (3, 3, 3, 3, 3)})
    stats = critic.init_stats()
    video = jax.ShapeDtypeStruct((1, 17, 64, 64, 3), jnp.float32)
    shapes = jax.eval_shape(lambda k, v: critic.init(k, v, stats, True), jax.random.key(0), video)
    size = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    assert size == want["patch_discriminator_kernel_3_4_4"]
