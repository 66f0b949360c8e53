"""Pixel losses and a discriminator's size against numbers computed from the papers' formulas."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vidlatent.losses import pseudo_huber
from vidlatent.models.discriminators import build_discriminator

REDUCTIONS = {"norm": "per_sample_raw", "scaled_norm": "per_sample_normalised"}


def test_every_array_has_a_reader(reference):
    """``losses_family`` sees to the arrays of a family; its tests stand here and beside."""
    with np.load(reference("losses", "losses.npz")) as stored:
        families = {name.partition(".")[0] for name in stored.files}
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    opened = set(re.findall(r'losses_family\("(\w+)"\)', tests))
    assert families <= opened, f"no test opens {families - opened}"


def test_pseudo_huber(losses_family):
    """Each sample of the case by itself, then their mean; no layout matters."""
    with losses_family("huber") as case:
        pred, target = (jnp.asarray(case[k], jnp.float32) for k in ("pred", "target"))
        per_root = float(case["c"]) / np.sqrt(np.prod(pred.shape[1:]))
        for reduction, name in REDUCTIONS.items():
            fields, want = {"reduction": reduction, "c_per_root": per_root}, case[name]
            for i, one in enumerate(np.eye(len(want), dtype=np.float32)):
                value = pseudo_huber(pred, target, one, **fields)
                np.testing.assert_allclose(value, want[i], rtol=1e-5)
            mean = pseudo_huber(pred, target, jnp.ones(len(want)), **fields)
            np.testing.assert_allclose(mean, want.mean(), rtol=1e-5)


def test_pseudo_huber_elementwise():
    """The same formula in one dimension: there the three reductions agree."""
    pred, target = np.random.default_rng(0).normal(size=(2, 7, 1)).astype(np.float32)
    ones = jnp.ones(7)
    values = [
        pseudo_huber(pred, target, ones, reduction=reduction)
        for reduction in ("elementwise", *REDUCTIONS)
    ]
    np.testing.assert_allclose(values, values[0], rtol=1e-6)


def test_size_of_the_promag_discriminator(reference):
    want = json.loads(reference("promag_fixtures.json").read_text())["param_counts_full_size"]
    discriminator = build_discriminator({"name": "patch3d", "time_kernels": (3, 3, 3, 3, 3)})
    stats = discriminator.init_stats()
    video = jax.ShapeDtypeStruct((1, 17, 64, 64, 3), jnp.float32)
    shapes = jax.eval_shape(
        lambda k, v: discriminator.init(k, v, stats, True), jax.random.key(0), video
    )
    size = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    assert size == want["patch_discriminator_kernel_3_4_4"]
