"""PSNR against hand-worked values and scikit-image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio

from vidlatent.errors import VidlatentError
from vidlatent.metrics.psnr import PSNR_CEILING, psnr


def test_hand_worked_values():
    a = np.zeros((2, 3, 4, 5, 3), np.uint8)
    b = a.copy()
    b[0, 0] = 255  # The whole range apart: 0 dB.
    b[0, 1] = 1  # 20 log10(255)
    b[0, 2, 0, 0, 0] = 6  # MSE 36 / 60
    b[1, 0, ..., 1] = 30  # MSE 300
    values = np.asarray(psnr(a, b))
    assert values.shape == (2, 3) and values.dtype == np.float32
    assert values[0] == pytest.approx([0.0, 48.130804, 50.349292], abs=1e-4)
    assert values[1, 0] == pytest.approx(23.359592, abs=1e-4)
    # Equal frames have a number, too: the ceiling, which nothing exceeds.
    assert (values[1, 1:] == PSNR_CEILING).all()
    nearly = np.ones((1, 1, 2, 2, 3), np.float32)
    assert psnr(nearly, nearly + 1e-6)[0, 0] == PSNR_CEILING
    assert np.isnan(psnr(nearly, nearly * np.nan)).all()


@pytest.mark.parametrize("kind", ["uint8", "signed", "unit", "bfloat16"])
def test_equals_scikit_image_frame_by_frame(kind):
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (2, 3, 20, 17, 3))
    b = np.clip(a + rng.normal(0, 12, a.shape), 0, 255)
    given, span = None, 2.0
    if kind == "uint8":
        a, b, span = a.astype(np.uint8), b.astype(np.uint8), 255
    elif kind == "unit":
        a, b, given, span = (a / 255).astype(np.float32), (b / 255).astype(np.float32), 1.0, 1.0
    else:
        a, b = (
            jnp.asarray(v / 127.5 - 1, jnp.float32 if kind == "signed" else kind) for v in (a, b)
        )
    values = psnr(a, b, given)
    for i, j in np.ndindex(2, 3):
        x, y = (np.asarray(v[i, j], np.uint8 if kind == "uint8" else np.float64) for v in (a, b))
        assert values[i, j] == pytest.approx(
            peak_signal_noise_ratio(x, y, data_range=span), abs=2e-5
        )


def test_uint8_does_not_wrap_around_and_ranges_agree():
    a, b = np.full((1, 1, 2, 2, 3), 250, np.uint8), np.full((1, 1, 2, 2, 3), 5, np.uint8)
    signed = [v.astype(np.float32) / 127.5 - 1 for v in (a, b)]
    assert psnr(a, b)[0, 0] == pytest.approx(20 * np.log10(255 / 245), abs=1e-5)
    assert psnr(*signed)[0, 0] == pytest.approx(float(psnr(a, b)[0, 0]), abs=1e-5)


def test_under_jit():
    a = jnp.ones((1, 2, 4, 4, 3))
    np.testing.assert_allclose(jax.jit(psnr)(a, a * 0.5), [[12.0412, 12.0412]], atol=1e-4)


def test_errors():
    a = np.zeros((1, 2, 16, 16, 3), np.uint8)
    for other in (a[:, :1], a.astype(np.float32)):
        with pytest.raises(VidlatentError, match="one shape and dtype"):
            psnr(a, other)
    with pytest.raises(VidlatentError, match="axes"):
        psnr(a[0], a[0])
    with pytest.raises(VidlatentError, match="int32"):
        psnr(a.astype(np.int32), a.astype(np.int32))
