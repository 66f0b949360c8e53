"""Pixel and latent losses by value, at both ends of their range, and over padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlatent.errors import VidlatentError
from vidlatent.losses import l1, l2, make_terms, outlier, pseudo_huber
from vidlatent.losses.base import LossInputs
from vidlatent.losses.latent import kl
from vidlatent.models.pretrained import random_params
from vidlatent.models.tokenizers.base import Posterior

rng = np.random.default_rng(0)
SHAPE = (3, 2, 4, 6, 3)
PREDICTION, TARGET = (rng.normal(size=SHAPE).astype(np.float32) for _ in range(2))
ALL, FIRST_TWO = jnp.ones(3), jnp.asarray([1.0, 1.0, 0.0])


def test_values_and_padding():
    apart = PREDICTION - TARGET
    np.testing.assert_allclose(l1(PREDICTION, TARGET, ALL), np.abs(apart).mean(), rtol=1e-6)
    np.testing.assert_allclose(l2(PREDICTION, TARGET, ALL), (apart**2).mean(), rtol=1e-6)
    padded = PREDICTION.copy()
    padded[2] = 1e3
    for loss in (l1, l2, pseudo_huber):
        want = loss(PREDICTION[:2], TARGET[:2], jnp.ones(2))
        np.testing.assert_allclose(loss(padded, TARGET, FIRST_TWO), want, rtol=1e-6)
    for loss in (l1, l2, pseudo_huber):
        assert loss(PREDICTION, TARGET, jnp.zeros(3)) == 0


@pytest.mark.parametrize("name", ["l1", "l2"])
def test_sums_at_256_do_not_grow_with_the_picture(name):
    """IV-VAE eq. 5: (256 * 256) / (h * w) times the sum over a frame."""
    _, term = make_terms({name: {"weight": 1.0, "reduction": "sum_at_256"}})[name]
    small = LossInputs(PREDICTION, TARGET, ALL)
    power = {"l1": 1, "l2": 2}[name]
    per_frame = (np.abs(PREDICTION - TARGET) ** power).sum(axis=(2, 3, 4)) * 256 * 256 / (4 * 6)
    np.testing.assert_allclose(term.value(small, {}, {}), per_frame.mean(), rtol=1e-5)
    large = LossInputs(*(jnp.tile(x, (1, 1, 2, 3, 1)) for x in small[:2]), ALL)
    np.testing.assert_allclose(term.value(large, {}, {}), per_frame.mean(), rtol=1e-5)


def test_outlier():
    x = PREDICTION.copy()
    x[1, 0, 2, 3, 1] = 30.0
    mean = x.mean(axis=(2, 3), keepdims=True)
    std = x.std(axis=(2, 3), keepdims=True, ddof=1)
    want = np.maximum(0, x - mean - 3 * std).mean()
    assert want > 0
    np.testing.assert_allclose(outlier(x, ALL), want, rtol=1e-5)
    assert outlier(-x, ALL) == 0
    flat = jnp.full(SHAPE, 0.3)
    value, grad = jax.value_and_grad(outlier)(flat, ALL)
    assert value == 0 and np.isfinite(grad).all()


def posterior(logvar=None):
    shape = (3, 2, 2, 3, 4)
    mean = rng.normal(size=shape).astype(np.float32)
    logvar = rng.normal(size=shape).astype(np.float32) if logvar is None else logvar
    return Posterior(jnp.asarray(mean), jnp.broadcast_to(jnp.float32(logvar), shape))


def test_kl_reductions():
    made = posterior()
    mean, logvar = np.asarray(made.mean), np.asarray(made.logvar)
    each = 0.5 * (mean**2 + np.exp(logvar) - 1 - logvar)
    pixels = 16 * 24
    wants = {
        "sum_per_clip": each.sum(axis=(1, 2, 3, 4)).mean(),
        "sum_per_frame": each.sum(axis=(2, 3, 4)).mean(),
        "sum_at_256": each.sum(axis=(2, 3, 4)).mean() * 256 * 256 / pixels,
        "mean": each.mean(),
    }
    for reduction, want in wants.items():
        np.testing.assert_allclose(kl(made, ALL, reduction, pixels), want, rtol=1e-5)
    np.testing.assert_allclose(
        kl(made, FIRST_TWO), each[:2].sum(axis=(1, 2, 3, 4)).mean(), rtol=1e-5
    )
    near = Posterior(jnp.zeros((1, 1, 1, 1, 1)), jnp.full((1, 1, 1, 1, 1), 1e-4))
    np.testing.assert_allclose(kl(near, jnp.ones(1)), 0.25e-8, rtol=1e-2)


@pytest.mark.parametrize("logvar", [-1e4, 1e4, -np.inf])
def test_kl_clamps_the_variance(logvar):
    made = posterior(logvar)
    value, grad = jax.value_and_grad(lambda p: kl(p, ALL))(made)
    assert np.isfinite(value) and np.isfinite(grad.mean).all()
    assert (grad.logvar == 0).all()


def test_ivvae_sum_is_a_mean_in_disguise():
    """Eq. 5 over 3 * 256^2: means of pixels, and the KL's weight per element times z / 192."""
    z, height, width = 4, 16, 24
    shape = (3, 2, height // 8, width // 8, z)
    made = Posterior(*(jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(2)))
    video = rng.normal(size=(2, 3, 5, height, width, 3)).astype(np.float32)
    given = LossInputs(*video, ALL, made)
    networks = {"lpips_tiny": random_params("lpips_tiny")}

    def total(reduction, kl_weight):
        options = {"reduction": reduction}
        weights = {"l1": 1.0, "lpips_tiny": 1.0, "kl": kl_weight}
        terms = make_terms({name: {"weight": w, **options} for name, w in weights.items()})
        return sum(w * term.value(given, {}, networks) for w, term in terms.values())

    summed = total("sum_at_256", 3e-2)
    np.testing.assert_allclose(summed / (3 * 256**2), total("mean", 3e-2 * z / 192), rtol=1e-5)


def test_kl_of_a_deterministic_tokenizer():
    with pytest.raises(VidlatentError, match="config.loss.kl: .* no variance"):
        kl(Posterior(jnp.zeros((1, 1, 2, 2, 4))), jnp.ones(1))
