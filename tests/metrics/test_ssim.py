"""SSIM against hand-worked values and scikit-image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.metrics import structural_similarity

from vidlatent.errors import VidlatentError
from vidlatent.metrics.ssim import _at_once, _in_bands, ssim


def reference(x, y, span):
    return structural_similarity(
        x,
        y,
        data_range=span,
        channel_axis=-1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )


def scenes():
    """uint8 [4, 1, 40, 53, 3]: noise, smooth waves, nearly flat, flat dark; and worse."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:40, :53]
    waves = 128 + 100 * np.sin(x / 7 + y / 5)[..., None] * np.array([1.0, 0.5, -1])
    flat = np.full((40, 53, 3), 250) + rng.normal(0, 1, (40, 53, 3))
    dark = np.full((40, 53, 3), 3.0)
    a = np.stack([rng.integers(0, 256, (40, 53, 3)), waves, flat, dark])[:, None]
    b = a + rng.normal(0, 6, a.shape) + 4
    return (np.clip(v, 0, 255).astype(np.uint8) for v in (a, b))


def test_equals_scikit_image_on_uint8():
    a, b = scenes()
    values = np.asarray(ssim(a, b))
    assert values.shape == (4, 1) and values.dtype == np.float32
    expected = [
        reference(x[0].astype(float), y[0].astype(float), 255) for x, y in zip(a, b, strict=True)
    ]
    np.testing.assert_allclose(values[:, 0], expected, atol=5e-6)


def test_float_ranges_give_the_same_values():
    a, b = scenes()
    expected = ssim(a, b)
    signed = [v.astype(np.float32) / 127.5 - 1 for v in (a, b)]
    np.testing.assert_allclose(ssim(*signed), expected, atol=5e-6)
    unit = [v.astype(np.float32) / 255 for v in (a, b)]
    np.testing.assert_allclose(ssim(*unit, 1.0), expected, atol=5e-6)
    assert reference(unit[1][1, 0], unit[0][1, 0], 1.0) == pytest.approx(
        float(expected[1, 0]), abs=1e-5
    )


def test_hand_worked_values():
    a = np.full((1, 3, 12, 11, 3), 100, np.uint8)
    b = a.copy()
    b[0, 1] = 150  # Flat frames: only the luminance term, (2*100*150 + C1) / (100^2 + 150^2 + C1).
    b[0, 2] = 0
    c1 = (0.01 * 255) ** 2
    expected = [1.0, (30000 + c1) / (32500 + c1), c1 / (10000 + c1)]
    np.testing.assert_allclose(ssim(a, b)[0], expected, atol=2e-6)


def test_inverted_structure_is_negative_and_equal_frames_are_one():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (1, 1, 16, 16, 3), np.uint8)
    assert ssim(a, 255 - a)[0, 0] < -0.5
    assert ssim(a, a)[0, 0] == pytest.approx(1.0, abs=1e-6)


def test_smallest_frame_is_one_window():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, 1, 1, 11, 11, 3), np.uint8)
    expected = reference(a[0, 0].astype(float), b[0, 0].astype(float), 255)
    assert ssim(a, b)[0, 0] == pytest.approx(expected, abs=5e-6)


@pytest.mark.parametrize("rows", [1, 7, 30, 99])
def test_bands_of_rows_are_the_whole(rows):
    """30 rows of the map: one at a time, with a last band of fewer new ones, at once."""
    a, b = (np.moveaxis(v.reshape(2, 2, *v.shape[2:]), 1, 0) for v in scenes())
    whole = _at_once(a, b, 0.0, 255.0)
    assert whole.shape == (2, 2)
    np.testing.assert_allclose(_in_bands(a, b, 0.0, 255.0, rows), whole, atol=2e-6)


def test_under_jit_with_bfloat16():
    a, b = scenes()
    low = [jnp.asarray(v / 127.5 - 1, jnp.bfloat16) for v in (a, b)]
    exact = [np.asarray(v, np.float32) for v in low]
    np.testing.assert_allclose(jax.jit(ssim)(*low), ssim(*exact), atol=1e-5)


def test_errors():
    a = np.zeros((1, 1, 10, 64, 3), np.uint8)
    with pytest.raises(VidlatentError, match="at least 11x11 pixels, not 10x64"):
        ssim(a, a)
    b = np.zeros((1, 1, 16, 16, 3), np.uint8)
    with pytest.raises(VidlatentError, match="one shape and dtype"):
        ssim(b, b.astype(np.float32))
