"""Picture measures of a released evaluation, on its numbers."""

import jax.numpy as jnp
import numpy as np
import pytest

from vidlatent.metrics import psnr_reducio, ssim_reducio


def cases(path):
    """Pairs of uint8 videos of one clip, with the PSNR and SSIM averaged over their frames."""
    arrays = np.load(path)
    numbers = sorted({name.split("/")[1] for name in arrays.files if name.startswith("io/")})
    assert numbers
    for number in numbers:
        x, y = (np.moveaxis(arrays[f"io/{number}/{v}_u8"], 1, -1)[None] for v in "xy")
        yield x, y, *(float(arrays[f"io/{number}/{name}"]) for name in ("psnr", "ssim"))


def test_reducio_psnr_and_ssim(reference):
    for x, y, decibels, similarity in cases(reference("reducio", "metrics.npz")):
        assert psnr_reducio(x, y).shape == x.shape[:2]
        assert jnp.mean(psnr_reducio(x, y)) == pytest.approx(decibels, rel=1e-5)
        assert jnp.mean(ssim_reducio(x, y)) == pytest.approx(similarity, abs=1e-5)
    # The last case in floats beyond [-1, 1], which are clipped.
    wide = [v.astype(np.float32) / 127.5 - 1 for v in (x, y)]
    wide = [np.where(v > 0.999, 1.5, v) for v in wide]
    assert jnp.mean(psnr_reducio(*wide)) == pytest.approx(decibels, rel=1e-5)
    assert jnp.mean(ssim_reducio(*wide)) == pytest.approx(similarity, abs=1e-5)
