"""The adversarial losses and the discriminator's regularisers by their known values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlatent.errors import VidlatentError
from vidlatent.kernels.conv3d import conv3d
from vidlatent.losses.adversarial import (
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    lecam,
    lecam_anchors,
    lecam_update,
    r1_penalty,
)

VIDEO = jax.random.normal(jax.random.key(0), (3, 4, 6, 4, 3))


def test_hinge():
    sure, unsure = jnp.full((2, 3), 1.5), jnp.zeros((2, 3))
    assert discriminator_loss("hinge", sure, -sure) == 0
    assert discriminator_loss("hinge", unsure, unsure) == 2
    assert generator_loss("hinge", sure) == -1.5


def test_non_saturating():
    zero = jnp.zeros((2, 3))
    np.testing.assert_allclose(
        discriminator_loss("non_saturating", zero, zero), 2 * np.log(2), rtol=1e-6
    )
    np.testing.assert_allclose(generator_loss("non_saturating", zero), np.log(2), rtol=1e-6)
    far = jnp.full((2, 3), 1e5)
    value, grad = jax.value_and_grad(lambda x: generator_loss("non_saturating", x))(-far)
    assert value == 1e5 and np.isfinite(grad).all()


@pytest.mark.parametrize("kind", ["hinge", "non_saturating"])
def test_scales_and_samples_weigh_the_same(kind):
    a, b = (jax.random.normal(jax.random.key(i), (3, 2 + 3 * i)) for i in range(2))
    both = [generator_loss(kind, x) for x in (a, b)]
    np.testing.assert_allclose(generator_loss(kind, [a, b]), sum(both) / 2, rtol=1e-6)
    both = [discriminator_loss(kind, x, 2 * x) for x in (a, b)]
    np.testing.assert_allclose(
        discriminator_loss(kind, [a, b], [2 * a, 2 * b]), sum(both) / 2, rtol=1e-6
    )
    mask = jnp.asarray([1.0, 0, 1])
    kept = generator_loss(kind, a[jnp.asarray([0, 2])])
    np.testing.assert_allclose(generator_loss(kind, a, mask), kept, rtol=1e-6)
    assert generator_loss(kind, [a.astype(jnp.bfloat16)]).dtype == jnp.float32


def test_unknown_kind():
    with pytest.raises(VidlatentError, match="unknown adversarial loss 'hingge': did you mean"):
        generator_loss("hingge", jnp.zeros((1, 1)))


def test_r1_of_a_constant_discriminator_is_zero():
    assert r1_penalty(lambda p, x: [jnp.ones((3, 2)) * p], 2.0, VIDEO) == 0


def test_r1_of_a_linear_discriminator():
    weights = jax.random.normal(jax.random.key(1), VIDEO.shape[1:])

    def discriminator(scale, x):
        return [(x * w).sum(axis=(1, 2, 3, 4))[:, None] * scale for w in (weights, 2 * weights)]

    square = float(jnp.square(weights).sum())
    want = 10.0 * (square + 4 * square) / 2
    np.testing.assert_allclose(r1_penalty(discriminator, 1.0, VIDEO), want, rtol=1e-5)
    # A penalty that trains: it has a gradient to the discriminator's parameters.
    grad = jax.grad(lambda s: r1_penalty(discriminator, s, VIDEO, gamma=1.0))(1.5)
    np.testing.assert_allclose(grad, 2 * 1.5 * want / 10, rtol=1e-5)


def test_r1_does_not_depend_on_the_size_of_the_clip():
    kernel = jax.random.normal(jax.random.key(2), (2, 2, 2, 3, 1))

    def discriminator(kernel, x):
        return jnp.tanh(conv3d(x, kernel, (2, 2, 2)))[..., 0]

    @jax.jit
    def penalties():
        tiled = jnp.tile(VIDEO, (1, 1, 2, 3, 1))
        mask = jnp.asarray([0.0, 1, 0])
        return (
            r1_penalty(discriminator, kernel, VIDEO),
            r1_penalty(discriminator, kernel, tiled),
            r1_penalty(discriminator, kernel, VIDEO[1:2]),
            r1_penalty(discriminator, kernel, VIDEO, mask=mask),
        )

    once, tiled, alone, masked = penalties()
    assert once > 0
    np.testing.assert_allclose(tiled, once, rtol=1e-5)
    np.testing.assert_allclose(masked, alone, rtol=1e-5)


def test_lecam():
    real, fake = [jnp.full((2, 3), 2.0), jnp.full((2,), 4.0)], [jnp.zeros((2, 3)), jnp.ones((2,))]
    anchors = lecam_anchors(2)
    for _ in range(2):
        anchors = lecam_update(anchors, real, fake, decay=0.5)
    np.testing.assert_allclose(anchors["real"], [1.5, 3.0])
    np.testing.assert_allclose(anchors["fake"], [0.0, 0.75])
    above = ((2 - 0) ** 2 + (4 - 0.75) ** 2) / 2
    below = ((1.5 - 0) ** 2 + (3 - 1) ** 2) / 2
    np.testing.assert_allclose(lecam(anchors, real, fake), above + below, rtol=1e-6)
    # On the other side of the anchors only the two-sided form costs anything.
    assert lecam(anchors, [-x for x in real], [x + 9 for x in fake]) == 0
    assert lecam(anchors, [-x for x in real], [x + 9 for x in fake], one_sided=False) > 0


def test_adaptive_weight():
    rec, adv = {"a": jnp.full((4,), 3.0)}, {"a": jnp.full((4,), 1.5)}
    np.testing.assert_allclose(adaptive_weight(rec, adv, 0.05), 0.05 * 6 / (3 + 1e-4), rtol=1e-6)
    none = jax.tree.map(jnp.zeros_like, adv)
    assert adaptive_weight(rec, none, 2.0) == 2.0 * 1e4
    assert adaptive_weight(none, none) == 0
    grad = jax.grad(lambda x: adaptive_weight({"a": x}, adv))(rec["a"])
    assert (grad == 0).all()
