"""The refiner's training conditions: deviation, confidence, shuffled and real frames."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlatent.diffusion import refiner
from vidlatent.errors import VidlatentError


def test_deviation():
    """Three forms of eq. 13 agree, an exact base model gives the datum itself, and the error of the
    result is as large as that of the velocity (root mean square)."""
    rng = np.random.default_rng(0)
    z0, eps, v_hat = rng.standard_normal((3, 5, 2, 3, 3, 4))
    sigma = np.array([0.01, 0.2, 0.5, 0.8, 0.999])[:, None, None, None, None]
    z = (1 - sigma) * z0 + sigma * eps
    hat = z - sigma * v_hat
    got = refiner.add_velocity_error(z0, eps, v_hat, sigma)
    np.testing.assert_allclose(got, (hat - z0) / sigma + z0, atol=1e-10)
    np.testing.assert_allclose(got, hat + (eps - (v_hat + hat)), atol=1e-10)
    error = np.sqrt(np.square(got - z0).mean())
    np.testing.assert_allclose(error, np.sqrt(np.square(v_hat - (eps - z0)).mean()))
    out = refiner.deviate(
        lambda z, s: jnp.asarray(eps - z0, jnp.float32),
        *(jnp.asarray(x, jnp.float32) for x in (z0, eps)),
        jnp.asarray(sigma[:, 0, 0, 0, 0], jnp.float32),
    )
    np.testing.assert_allclose(out["z0_tilde"], z0, atol=1e-6)
    np.testing.assert_allclose(out["z0_hat"], z0, atol=1e-6)


def test_trust():
    """Confidence is 0.2 to 0.8, falls as the estimate moves away, and is 1 for frame 0."""
    rng = np.random.default_rng(1)
    first = jnp.asarray(rng.standard_normal((2, 1, 3, 4, 5)), jnp.float32)
    apart = jnp.asarray(rng.standard_normal(first.shape), jnp.float32)
    values = [refiner.estimate_confidence(first, first + s * apart) for s in (0.0, 0.3, 1.0, 50.0)]
    np.testing.assert_allclose(values[0], 0.8)
    for near, far in zip(values, values[1:], strict=False):
        assert (far < near).all() and (far >= 0.2).all()
    rising = refiner.estimate_confidence(first, first + apart, mode="error")
    np.testing.assert_allclose(rising + values[2], 1.0, atol=1e-6)
    flat = refiner.estimate_confidence(first, first + apart, spatial=False)
    assert flat.shape == (2, 1, 3, 4, 1) and (flat == flat[:, :, :1, :1]).all()
    mask = refiner.make_condition_mask(values[2], 7)
    assert mask.shape == (2, 7, 3, 4, 4) and (mask[:, 0] == 1).all()
    np.testing.assert_array_equal(mask[:, 5], values[2][:, 0].repeat(4, -1))
    with pytest.raises(VidlatentError, match="mode 'confidense' of.*did you mean 'confidence'"):
        refiner.estimate_confidence(first, first, mode="confidense")


@pytest.fixture(scope="module")
def orders():
    """10,000 orders of 10 frames, of each kind alone and of the mixture."""
    keys = jax.random.split(jax.random.key(0), 10000)

    @jax.jit
    def draw(rate, odds):
        return jax.vmap(lambda k: refiner.draw_frame_order(k, 10, rate, odds))(keys)

    def kind(rate, *odds):
        return np.asarray(draw(rate, jnp.asarray(odds)))

    return [kind(1.0, *row) for row in np.eye(3)] + [kind(0.5, 6.0, 3.0, 1.0)]


def test_shuffle_keeps_frames(orders):
    """Frame 0 stays, no frame is lost, and each kind of shuffle does what it should."""
    for drawn in orders:
        assert (drawn[:, 0] == 0).all()
        np.testing.assert_array_equal(np.sort(drawn, axis=1), np.tile(np.arange(10), (10000, 1)))
    window, swap, whole, _ = orders
    places = np.arange(10)
    assert np.abs(window - places).max() == 3
    moved = window != places
    first, last = moved.argmax(1), 9 - moved[:, ::-1].argmax(1)
    assert moved.any(1).all() and (last - first).max() == 3
    moved = swap != places
    assert (moved.sum(1) == 2).all() and np.abs(swap - places).max(1).min() == 2
    counts = np.stack([(whole == f).sum(0) for f in range(1, 10)])[:, 1:]
    np.testing.assert_allclose(counts / 10000, 1 / 9, atol=0.016)


def test_shuffle_rates(orders):
    """Half of the clips are shuffled, the three kinds 6:3:1, within 3 sigma."""
    *kinds, mixed = orders
    places = np.arange(10)

    def share(drawn, event):
        return event(drawn != places, np.abs(drawn - places)).mean()

    for event in (
        lambda moved, far: moved.any(1),
        lambda moved, far: far.max(1) >= 4,
        lambda moved, far: moved.sum(1) >= 5,
    ):
        parts = [share(drawn, event) for drawn in kinds]
        expected = 0.5 * np.dot([0.6, 0.3, 0.1], parts)
        sigma = np.sqrt(expected * (1 - expected) / 10000)
        assert abs(share(mixed, event) - expected) < 3.5 * sigma


def test_short_clips():
    sizes = (1, 2, 3)

    @jax.jit
    def draw(key):
        orders = [refiner.draw_frame_order(key, n, rate=1.0) for n in sizes]
        return orders, [refiner.draw_real_frames(key, n, rate=1.0) for n in sizes]

    for frames, order, real in zip(sizes, *draw(jax.random.key(3)), strict=True):
        assert sorted(order.tolist()) == list(range(frames)) and order[0] == 0
        assert not real[0] and real.sum() == min(1, frames - 1)


def test_real_frames_and_dropout():
    """The mask is 1 exactly where real frames are shown; condition and mask are dropped together,
    but for the first frame."""
    keys = jax.random.split(jax.random.key(1), 4000)
    draws = jax.jit(jax.vmap(lambda k: refiner.draw_real_frames(k, 9)))(keys)
    counts = np.asarray(draws.sum(1))
    assert not draws[:, 0].any() and set(counts) == {0, 1, 2}
    assert abs((counts > 0).mean() - 0.2) < 0.02
    rng = np.random.default_rng(2)
    condition, real = rng.standard_normal((2, 2, 9, 2, 2, 3)).astype(np.float32)
    mask = np.full((2, 9, 2, 2, 4), 0.4, np.float32)
    chosen = np.asarray(draws)[np.flatnonzero(counts)[:2]]
    order = np.array([[0, 2, 1, *range(3, 9)], list(range(9))])

    @jax.jit
    def run():
        shown = refiner.use_real_frames(*map(jnp.asarray, (condition, mask, real, chosen)))
        kept = refiner.drop_frames(condition, mask, jnp.array([True, False]))
        return shown, kept, refiner.apply_order(jnp.asarray(condition), jnp.asarray(order))

    (shown, trust), (kept, left), turned = jax.tree.map(np.asarray, run())
    np.testing.assert_array_equal(trust == 1, chosen[..., None, None, None] & (mask > 0))
    np.testing.assert_array_equal(shown[chosen], real[chosen])
    np.testing.assert_array_equal(shown[~chosen], condition[~chosen])
    assert (kept[0, 1:] == 0).all() and (left[0, 1:] == 0).all()
    np.testing.assert_array_equal(kept[:, 0], condition[:, 0])
    np.testing.assert_array_equal(kept[1], condition[1])
    np.testing.assert_array_equal(left[1], mask[1])
    np.testing.assert_array_equal(turned[0, 1], condition[0, 2])
    np.testing.assert_array_equal(turned[1], condition[1])
